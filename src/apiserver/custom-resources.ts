import { AGE_COLUMN, ageSince, NAME_COLUMN, type Column } from "./columns.ts";
import { serverOptions, type ControllerParts } from "./controllers.ts";
import { compareVersions } from "./discovery.ts";
import { findByPath, parseJsonPath } from "./json-path.ts";
import { NO_RULES, type Kind } from "./kinds.ts";
import { isRecord, listAt, recordAt, textAt, textsAt, valueAt, type KubeObject } from "./object.ts";
import type { Resource } from "./registry.ts";
import { CLEANUP_FINALIZER } from "./rules/definitions.ts";
import { customSchema } from "./schema/custom.ts";
import type { Transaction } from "./store.ts";

const DEFINITIONS = "customresourcedefinitions.apiextensions.k8s.io";
const VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/** Keeps the registry equal to the CustomResourceDefinitions, and empties what a deleted one leaves behind. */
export function serveDefinitions(parts: ControllerParts, onRemoved: (resource: string) => void): () => void {
  const { store } = parts.engine;
  const refresh = (): void => {
    const before = parts.registry.resources().map(({ resource }) => resource);
    parts.registry.setCustom(store.list(DEFINITIONS).flatMap(({ object }) => resourceOfDefinition(object)));
    for (const resource of before) if (parts.registry.resource(resource) === undefined) onRemoved(resource);
  };
  refresh();
  const clean = (name: string): void => {
    store
      .write((transaction) => cleanUp(parts, transaction, name))
      .catch((error: unknown) => {
        parts.log.error({ err: error, definition: name }, "cannot clean up a custom resource definition");
      });
  };
  const leaving = new Map<string, string>();
  const look = (object: Readonly<KubeObject>): void => {
    if (object.metadata.deletionTimestamp === undefined) return;
    leaving.set(object.metadata.name, object.metadata.name);
    clean(object.metadata.name);
  };
  for (const { object } of store.list(DEFINITIONS)) look(object);
  return store.subscribe("*", ({ type, object }) => {
    if (object.key.resource === DEFINITIONS) {
      refresh();
      if (type === "DELETED") leaving.delete(object.key.name);
      else look(object.object);
    } else if (type === "DELETED" && leaving.has(object.key.resource)) clean(object.key.resource);
  });
}

/** Deletes the objects of a definition that is being deleted; when none is left, lets it go. Its name is the resource. */
function cleanUp(parts: ControllerParts, transaction: Transaction, name: string): void {
  const found = transaction.get({ resource: DEFINITIONS, namespace: "", name });
  const definitions = parts.registry.resource(DEFINITIONS)?.storage;
  if (found?.object.metadata.deletionTimestamp === undefined || definitions === undefined) return;
  if (found.object.metadata.finalizers?.includes(CLEANUP_FINALIZER) !== true) return;
  if (deleteAll(parts, transaction, name) > 0) return;
  parts.engine.updateIn(transaction, {
    kind: definitions,
    name,
    options: serverOptions(""),
    change: (old) => {
      old.metadata.finalizers = (old.metadata.finalizers ?? []).filter((one) => one !== CLEANUP_FINALIZER);
      return old;
    },
  });
}

/** Deletes all objects of a resource; the answer is how many are still there, held by finalizers. */
function deleteAll(parts: ControllerParts, transaction: Transaction, resource: string): number {
  const kind = parts.registry.resource(resource)?.storage;
  if (kind === undefined) return 0;
  for (const { key } of transaction.list(resource)) {
    parts.engine.deleteIn(transaction, { kind, name: key.name, options: serverOptions(key.namespace), how: {} });
  }
  return transaction.list(resource).length;
}

function resourceOfDefinition(definition: Readonly<KubeObject>): Resource[] {
  const accepted = listAt(definition, "status", "conditions").some(
    (condition) => textAt(condition, "type") === "Established" && textAt(condition, "status") === "True",
  );
  if (!accepted) return [];
  const versions = listAt(definition, "spec", "versions");
  const served = versions
    .filter((version) => valueAt(version, "served") === true)
    .map((version) => kindOfVersion(definition, version))
    .sort((a, b) => compareVersions(a.version, b.version));
  const stored = versions.find((version) => valueAt(version, "storage") === true);
  if (served.length === 0 || stored === undefined) return [];
  return [{ resource: definition.metadata.name, versions: served, storage: kindOfVersion(definition, stored) }];
}

function kindOfVersion(definition: Readonly<KubeObject>, version: unknown): Kind {
  const names = recordAt(definition, "spec", "names");
  const subresources = recordAt(version, "subresources");
  const scale = subresources["scale"];
  const namespaced = textAt(definition, "spec", "scope") === "Namespaced";
  const fields = listAt(version, "selectableFields").map((field) => textAt(field, "jsonPath").replace(/^\./, ""));
  const selectorPath = textAt(scale, "labelSelectorPath") || undefined;
  return {
    group: textAt(definition, "spec", "group"),
    version: textAt(version, "name"),
    kind: textAt(names, "kind"),
    plural: textAt(names, "plural"),
    singular: textAt(names, "singular"),
    shortNames: textsAt(names, "shortNames"),
    categories: textsAt(names, "categories"),
    namespaced,
    verbs: VERBS,
    subresources: ["status", "scale"].filter((name) => isRecord(subresources[name])),
    schema: customSchema(valueAt(version, "schema", "openAPIV3Schema")),
    columns: columnsOf(version),
    selectableFields: ["metadata.name", ...(namespaced ? ["metadata.namespace"] : []), ...fields],
    rules: NO_RULES,
    custom: true,
    ...(isRecord(scale) && {
      scale: {
        specPath: textAt(scale, "specReplicasPath"),
        statusPath: textAt(scale, "statusReplicasPath"),
        selectorPath: selectorPath ?? "",
      },
    }),
  };
}

function columnsOf(version: unknown): readonly Column[] {
  const columns = listAt(version, "additionalPrinterColumns").flatMap((column): Column[] => {
    const path = parseJsonPath(textAt(column, "jsonPath"));
    if (path === undefined) return [];
    const type = textAt(column, "type");
    const priority = valueAt(column, "priority");
    return [
      {
        name: textAt(column, "name"),
        type: type === "integer" || type === "number" || type === "boolean" || type === "date" ? type : "string",
        format: textAt(column, "format"),
        description: textAt(column, "description"),
        priority: typeof priority === "number" ? priority : 0,
        value: (object, nowMs) => cellOf(findByPath(object, path), type, nowMs),
      },
    ];
  });
  return [NAME_COLUMN, ...(columns.length === 0 ? [AGE_COLUMN] : columns)];
}

function cellOf(found: readonly unknown[], type: string, nowMs: number): unknown {
  if (found.length === 0 || found[0] === null) return undefined;
  const [first] = found;
  const text = found.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join(",");
  if (type === "date") return ageSince(text, nowMs);
  return type === "string" || found.length > 1 ? text : first;
}
