import { isRecord, sameJson, type JsonObject } from "./object.ts";
import type { Schema } from "./schema/schema.ts";

/**
 * Which fields of an object somebody set, in the notation of FieldsV1: `f:NAME` a field, `k:{"key":"value"}` an element
 * of a keyed list, `v:VALUE` an element of a set; an empty object is a leaf.
 */
export type FieldSet = JsonObject;

/** The fields that a value sets. */
export function fieldSetOf(schema: Schema | undefined, value: unknown): FieldSet {
  if (schema?.atomic === true || (!isRecord(value) && !Array.isArray(value))) return {};
  if (isRecord(value)) {
    return Object.fromEntries(
      Object.entries(value).map(([key, field]) => [
        `f:${key}`,
        fieldSetOf(schema?.type === "map" ? schema.item : schema?.fields?.()[key], field),
      ]),
    );
  }
  if (schema?.keys === undefined) return {};
  return Object.fromEntries(value.map((item) => [elementName(schema.keys ?? [], item), fieldSetOf(schema.item, item)]));
}

function elementName(keys: readonly string[], item: unknown): string {
  if (keys.length === 0 || !isRecord(item)) return `v:${JSON.stringify(item)}`;
  return `k:${JSON.stringify(Object.fromEntries(keys.map((key) => [key, item[key] ?? keyDefault(key) ?? null])))}`;
}

/** Removes from `value` the fields of `before` that none of `kept` has. Changes `value` in place. */
export function removeOwned(value: unknown, before: FieldSet, kept: readonly FieldSet[]): void {
  for (const [name, inner] of Object.entries(before)) {
    const holders = kept.map((set) => set[name]).filter((one) => isRecord(one));
    if (holders.length === 0) removeField(value, name);
    else if (isRecord(inner) && Object.keys(inner).length > 0) {
      const deeper = holders.filter((holder): holder is FieldSet => isRecord(holder));
      removeOwned(findField(value, name), inner, deeper);
    }
  }
}

function findField(value: unknown, name: string): unknown {
  if (name.startsWith("f:")) return isRecord(value) ? value[name.slice(2)] : undefined;
  return Array.isArray(value) ? value[findElement(value, name)] : undefined;
}

function findElement(list: readonly unknown[], name: string): number {
  const wanted: unknown = JSON.parse(name.slice(2));
  if (name.startsWith("v:")) return list.findIndex((item) => sameJson(item, wanted));
  const keys = isRecord(wanted) ? wanted : {};
  return list.findIndex(
    (item) =>
      isRecord(item) &&
      Object.entries(keys).every(([key, value]) => sameJson(item[key] ?? keyDefault(key) ?? null, value)),
  );
}

function removeField(value: unknown, name: string): void {
  if (name.startsWith("f:")) {
    if (isRecord(value)) delete value[name.slice(2)];
    return;
  }
  if (!Array.isArray(value)) return;
  const index = findElement(value, name);
  if (index >= 0) value.splice(index, 1);
}

/** The value of a key field that is often left out. */
export function keyDefault(key: string): unknown {
  return key === "protocol" ? "TCP" : undefined;
}
