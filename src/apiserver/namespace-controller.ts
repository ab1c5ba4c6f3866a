import type { ControllerParts } from "./controllers.ts";
import { serverOptions } from "./controllers.ts";
import { resourceOf, type Kind } from "./kinds.ts";
import { copyOf, ensureRecord, textsAt, type KubeObject } from "./object.ts";
import type { Transaction } from "./store.ts";

const FINALIZER = "kubernetes";

/**
 * Empties namespaces that are being deleted, and lets them go when nothing is left: pods get their grace, objects with
 * finalizers are waited for and named in the namespace's conditions.
 */
export function finalizeNamespaces(parts: ControllerParts): () => void {
  const { engine, log } = parts;
  const waiting = new Set<string>();
  let scheduled = false;
  const work = (): void => {
    scheduled = false;
    for (const name of waiting) {
      engine.store
        .write((transaction) => empty(parts, transaction, name))
        .then((done) => (done ? waiting.delete(name) : false))
        .catch((error: unknown) => log.error({ err: error, namespace: name }, "cannot finalize a namespace"));
    }
  };
  const schedule = (): void => {
    if (scheduled || waiting.size === 0) return;
    scheduled = true;
    setImmediate(work);
  };
  const look = (object: Readonly<KubeObject>): void => {
    if (object.metadata.deletionTimestamp !== undefined) waiting.add(object.metadata.name);
  };
  for (const { object } of engine.store.list("namespaces")) look(object);
  schedule();
  return engine.store.subscribe("*", ({ object, type }) => {
    if (object.key.resource === "namespaces" && type !== "DELETED") look(object.object);
    if (waiting.has(object.key.namespace) || object.key.resource === "namespaces") schedule();
  });
}

/** One step; true when the namespace is gone (or is not being deleted at all). */
function empty(parts: ControllerParts, transaction: Transaction, name: string): boolean {
  const key = { resource: "namespaces", namespace: "", name };
  const found = transaction.get(key);
  if (found === undefined || found.object.metadata.deletionTimestamp === undefined) return true;
  const kinds = parts.registry
    .resources()
    .map(({ storage }) => storage)
    .filter((kind) => kind.namespaced && kind.verbs.includes("list"));
  const left: string[] = [];
  for (const kind of kinds) {
    for (const { key: at } of transaction.list(resourceOf(kind), name)) {
      const { gone } = parts.engine.deleteIn(transaction, {
        kind,
        name: at.name,
        options: serverOptions(name),
        how: {},
      });
      if (!gone) left.push(`${resourceOf(kind)} ${at.name}`);
    }
  }
  return left.length === 0 ? release(parts, transaction, name) : note(parts, transaction, { name, left });
}

function namespaceKind(parts: ControllerParts): Kind {
  const kind = parts.registry.find("", "v1", "namespaces");
  if (kind === undefined) throw new Error("namespaces are not served");
  return kind;
}

function release(parts: ControllerParts, transaction: Transaction, name: string): boolean {
  const key = { resource: "namespaces", namespace: "", name };
  parts.engine.updateIn(transaction, {
    kind: namespaceKind(parts),
    name,
    options: serverOptions("", "finalize"),
    change: (old) => {
      ensureRecord(old, "spec")["finalizers"] = textsAt(old, "spec", "finalizers").filter((one) => one !== FINALIZER);
      return old;
    },
  });
  return transaction.get(key) === undefined;
}

function note(
  parts: ControllerParts,
  transaction: Transaction,
  what: { name: string; left: readonly string[] },
): boolean {
  const shown = what.left.slice(0, 10).join(", ");
  const message = `${what.left.length} objects are still there: ${shown}${what.left.length > 10 ? ", …" : ""}`;
  parts.engine.updateIn(transaction, {
    kind: namespaceKind(parts),
    name: what.name,
    options: serverOptions("", "status"),
    change: (old) => {
      const status = ensureRecord(old, "status");
      status["phase"] = "Terminating";
      status["conditions"] = [
        {
          type: "NamespaceContentRemaining",
          status: "True",
          reason: "SomeResourcesRemain",
          message,
          lastTransitionTime: copyOf(old.metadata.deletionTimestamp),
        },
      ];
      return old;
    },
  });
  return false;
}
