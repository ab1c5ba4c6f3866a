import type { Engine, WriteOptions } from "./engine.ts";
import { apiVersionOf, resourceOf, type Kind } from "./kinds.ts";
import { copyOf, formatTime, isRecord, sameJson, type JsonObject, type KubeObject } from "./object.ts";
import { fieldSetOf, keyDefault, removeOwned, type FieldSet } from "./managed-fields.ts";
import type { Schema } from "./schema/schema.ts";
import { forbidden } from "./status.ts";
import type { StoredObject } from "./stored-object.ts";

/** An applied configuration. */
export interface ApplyRequest {
  readonly kind: Kind;
  readonly object: KubeObject;
  readonly options: WriteOptions;
  readonly nowMs: number;
}

/**
 * Server-side apply: merges the configuration into the object (or creates it), and removes what the same manager had
 * applied before and no longer does. Fields of other managers are taken over: there is no conflict detection.
 */
export async function applyObject(
  engine: Engine,
  request: ApplyRequest,
): Promise<{ stored: StoredObject; created: boolean }> {
  const { kind, options } = request;
  const applied = copyOf(request.object);
  const key = { resource: resourceOf(kind), namespace: options.namespace, name: applied.metadata.name };
  return engine.store.write((transaction) => {
    if (transaction.get(key) === undefined) {
      if (options.subresource !== "")
        throw forbidden({ resource: kind.plural, name: key.name }, "apply to a subresource needs an existing object");
      const managedFields = [managedEntry(request, fieldSetOf(kind.schema, withoutIdentity(applied)))];
      return { stored: engine.createIn(transaction, { kind, given: applied, options, managedFields }), created: true };
    }
    const change = (old: KubeObject): KubeObject => merged(old, request);
    return {
      stored: engine.updateIn(transaction, { kind, name: key.name, change, options, managed: true }),
      created: false,
    };
  }, options);
}

function merged(old: KubeObject, request: ApplyRequest): KubeObject {
  const { kind, options } = request;
  const applied = copyOf(request.object);
  const owned = fieldSetOf(kind.schema, withoutIdentity(applied));
  const entries = old.metadata.managedFields ?? [];
  const isOwn = (entry: JsonObject): boolean =>
    entry["manager"] === options.fieldManager &&
    entry["operation"] === "Apply" &&
    (entry["subresource"] ?? "") === options.subresource;
  const before = entries.find(isOwn);
  const others = entries.filter((entry) => !isOwn(entry));
  const result = copyOf(old);
  if (before !== undefined && isRecord(before["fieldsV1"])) {
    const kept = [owned, ...others.map((entry) => (isRecord(entry["fieldsV1"]) ? entry["fieldsV1"] : {}))];
    removeOwned(result, before["fieldsV1"], kept);
  }
  const next = mergeApplied(kind.schema, result, applied) as unknown as KubeObject; // an object merged with an object
  next.metadata = { ...result.metadata, ...next.metadata };
  const same = before !== undefined && sameJson(before["fieldsV1"], owned);
  next.metadata.managedFields = [...others, same ? before : managedEntry(request, owned)];
  return next;
}

function withoutIdentity(object: KubeObject): Record<string, unknown> {
  const { apiVersion: _version, kind: _kind, metadata, ...rest } = object;
  const {
    name: _name,
    namespace: _namespace,
    uid: _uid,
    resourceVersion: _revision,
    managedFields: _managed,
    ...meta
  } = metadata;
  return { ...rest, ...(Object.keys(meta).length > 0 && { metadata: meta }) };
}

function managedEntry(request: ApplyRequest, fields: FieldSet): JsonObject {
  const { subresource, fieldManager } = request.options;
  return {
    manager: fieldManager,
    operation: "Apply",
    apiVersion: apiVersionOf(request.kind),
    time: formatTime(request.nowMs),
    fieldsType: "FieldsV1",
    fieldsV1: fields,
    ...(subresource !== "" && { subresource }),
  };
}

/** Merges by the schema: maps key by key, keyed lists element by element, everything else is replaced. */
function mergeApplied(schema: Schema | undefined, target: unknown, applied: unknown): Record<string, unknown> {
  const result: Record<string, unknown> = isRecord(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(isRecord(applied) ? applied : {})) {
    const field = schema?.type === "map" ? schema.item : schema?.fields?.()[key];
    Object.defineProperty(result, key, {
      value: mergeValue(field, result[key], value),
      enumerable: true,
      configurable: true,
      writable: true,
    });
  }
  return result;
}

function mergeValue(schema: Schema | undefined, target: unknown, applied: unknown): unknown {
  if (schema?.atomic === true) return applied;
  if (isRecord(applied)) return mergeApplied(schema, target, applied);
  if (!Array.isArray(applied) || schema?.keys === undefined || !Array.isArray(target)) return applied;
  const keys = schema.keys;
  const same = (a: unknown, b: unknown): boolean =>
    keys.length === 0
      ? sameJson(a, b)
      : isRecord(a) &&
        isRecord(b) &&
        keys.every((key) => sameJson(a[key] ?? keyDefault(key), b[key] ?? keyDefault(key)));
  const result: unknown[] = [...target];
  for (const item of applied) {
    const index = result.findIndex((one) => same(one, item));
    if (index < 0) result.push(item);
    else result[index] = mergeValue(schema.item, result[index], item);
  }
  return result;
}
