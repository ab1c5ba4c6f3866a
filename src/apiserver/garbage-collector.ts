import { serverOptions, type ControllerParts } from "./controllers.ts";
import type { StoreEvent } from "./event-log.ts";
import type { KubeObject, OwnerReference } from "./object.ts";
import { StatusError } from "./status.ts";
import type { Transaction } from "./store.ts";
import type { ObjectKey } from "./stored-object.ts";

const FOREGROUND = "foregroundDeletion";
const ORPHAN = "orphan";

/**
 * Owner references: deletes what has lost its last owner (background), lets owners go after their dependents
 * (foreground), or cuts the references (orphan). Keeps an index of who depends on whom, from the store's changes.
 */
export class GarbageCollector {
  readonly #parts: ControllerParts;
  /** UID of an owner -> its dependents. */
  readonly #dependents = new Map<string, Map<string, ObjectKey>>();
  readonly #queue = new Map<string, { key: ObjectKey; tries: number }>();
  #scheduled = false;
  #stop: () => void = () => {};

  constructor(parts: ControllerParts) {
    this.#parts = parts;
  }

  start(): void {
    const { store } = this.#parts.engine;
    for (const resource of store.resources()) {
      for (const stored of store.list(resource)) {
        this.#index(stored.object, stored.key, true);
        if (needsLook(stored.object)) this.#enqueue(stored.key);
      }
    }
    this.#stop = store.subscribe("*", (event) => this.#onEvent(event));
  }

  stop(): void {
    this.#stop();
    this.#queue.clear();
  }

  #onEvent({ type, object, previous }: StoreEvent): void {
    if (previous !== undefined) this.#index(previous.object, previous.key, false);
    const { uid } = object.object.metadata;
    if (type === "DELETED") {
      for (const key of this.#dependents.get(uid)?.values() ?? []) this.#enqueue(key);
      for (const owner of object.object.metadata.ownerReferences ?? []) this.#enqueueOwner(owner, object.key);
      return;
    }
    this.#index(object.object, object.key, true);
    if (needsLook(object.object)) this.#enqueue(object.key);
  }

  #index(object: Readonly<KubeObject>, key: ObjectKey, add: boolean): void {
    const path = `${key.resource}/${key.namespace}/${key.name}`;
    for (const { uid } of object.metadata.ownerReferences ?? []) {
      let dependents = this.#dependents.get(uid);
      if (add) {
        if (dependents === undefined) this.#dependents.set(uid, (dependents = new Map()));
        dependents.set(path, key);
      } else if (dependents?.delete(path) === true && dependents.size === 0) this.#dependents.delete(uid);
    }
  }

  /** An owner that waits for its dependents may now be free. */
  #enqueueOwner(owner: OwnerReference, dependent: ObjectKey): void {
    const key = this.#keyOf(owner, dependent.namespace);
    if (key !== undefined) this.#enqueue(key);
  }

  #keyOf(owner: OwnerReference, namespace: string): ObjectKey | undefined {
    const kind = this.#parts.registry.findByKind(owner.apiVersion, owner.kind);
    if (kind === undefined) return undefined;
    const resource = kind.group === "" ? kind.plural : `${kind.plural}.${kind.group}`;
    return { resource, namespace: kind.namespaced ? namespace : "", name: owner.name };
  }

  #enqueue(key: ObjectKey): void {
    this.#queue.set(`${key.resource}/${key.namespace}/${key.name}`, { key, tries: 0 });
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => this.#work());
  }

  #work(): void {
    this.#scheduled = false;
    const { engine, log } = this.#parts;
    const keys = [...this.#queue.values()];
    this.#queue.clear();
    for (const { key } of keys) {
      engine.store
        .write((transaction) => this.#look(transaction, key))
        .catch((error: unknown) => {
          if (!(error instanceof StatusError)) log.error({ err: error, ...key }, "cannot collect an object");
        });
    }
  }

  #look(transaction: Transaction, key: ObjectKey): void {
    const found = transaction.get(key);
    const kind = this.#parts.registry.resource(key.resource)?.storage;
    if (found === undefined || kind === undefined) return;
    const { metadata } = found.object;
    if (isLeaving(found.object, ORPHAN)) return this.#orphan(transaction, key);
    if (isLeaving(found.object, FOREGROUND)) return this.#foreground(transaction, key);
    const owners = metadata.ownerReferences ?? [];
    const alive = owners.filter((owner) => this.#isAlive(transaction, owner, key.namespace));
    if (alive.length === owners.length) return;
    if (alive.length > 0) this.#setOwners(transaction, key, alive);
    else if (metadata.deletionTimestamp === undefined) {
      const options = serverOptions(key.namespace);
      this.#parts.engine.deleteIn(transaction, { kind, name: key.name, options, how: { uid: metadata.uid } });
    }
  }

  /** An owner of a kind that is not served counts as alive: nothing is deleted for what cannot be known. */
  #isAlive(transaction: Transaction, owner: OwnerReference, namespace: string): boolean {
    const key = this.#keyOf(owner, namespace);
    if (key === undefined) return true;
    return transaction.get(key)?.object.metadata.uid === owner.uid;
  }

  #setOwners(transaction: Transaction, key: ObjectKey, owners: readonly OwnerReference[]): void {
    this.#change(transaction, key, (object) => {
      if (owners.length === 0) delete object.metadata.ownerReferences;
      else object.metadata.ownerReferences = [...owners];
    });
  }

  #change(transaction: Transaction, key: ObjectKey, change: (object: KubeObject) => void): void {
    const kind = this.#parts.registry.resource(key.resource)?.storage;
    if (kind === undefined) return;
    this.#parts.engine.updateIn(transaction, {
      kind,
      name: key.name,
      options: serverOptions(key.namespace),
      change: (old) => {
        change(old);
        return old;
      },
    });
  }

  #dependentsOf(transaction: Transaction, uid: string): ObjectKey[] {
    const keys = [...(this.#dependents.get(uid)?.values() ?? [])];
    return keys.filter((key) =>
      transaction.get(key)?.object.metadata.ownerReferences?.some((owner) => owner.uid === uid),
    );
  }

  #orphan(transaction: Transaction, key: ObjectKey): void {
    const uid = transaction.get(key)?.object.metadata.uid ?? "";
    for (const dependent of this.#dependentsOf(transaction, uid)) {
      const owners = transaction.get(dependent)?.object.metadata.ownerReferences ?? [];
      this.#setOwners(
        transaction,
        dependent,
        owners.filter((owner) => owner.uid !== uid),
      );
    }
    this.#dropFinalizer(transaction, key, ORPHAN);
  }

  #foreground(transaction: Transaction, key: ObjectKey): void {
    const uid = transaction.get(key)?.object.metadata.uid ?? "";
    const dependents = this.#dependentsOf(transaction, uid);
    for (const dependent of dependents) this.#deleteDependent(transaction, dependent);
    const blocked = dependents.some((dependent) =>
      transaction
        .get(dependent)
        ?.object.metadata.ownerReferences?.some((owner) => owner.uid === uid && owner.blockOwnerDeletion === true),
    );
    if (!blocked) this.#dropFinalizer(transaction, key, FOREGROUND);
  }

  #deleteDependent(transaction: Transaction, key: ObjectKey): void {
    const object = transaction.get(key)?.object;
    const kind = this.#parts.registry.resource(key.resource)?.storage;
    if (object === undefined || kind === undefined || object.metadata.deletionTimestamp !== undefined) return;
    const how = { propagationPolicy: "Foreground" as const, uid: object.metadata.uid };
    this.#parts.engine.deleteIn(transaction, { kind, name: key.name, options: serverOptions(key.namespace), how });
  }

  #dropFinalizer(transaction: Transaction, key: ObjectKey, finalizer: string): void {
    this.#change(transaction, key, (object) => {
      object.metadata.finalizers = (object.metadata.finalizers ?? []).filter((one) => one !== finalizer);
    });
  }
}

function isLeaving(object: Readonly<KubeObject>, finalizer: string): boolean {
  const { deletionTimestamp, finalizers } = object.metadata;
  return deletionTimestamp !== undefined && (finalizers ?? []).includes(finalizer);
}

function needsLook(object: Readonly<KubeObject>): boolean {
  const owners = object.metadata.ownerReferences ?? [];
  return owners.length > 0 || isLeaving(object, FOREGROUND) || isLeaving(object, ORPHAN);
}
