import { applyPatch, type Operation } from "rfc6902";
import { messageOf } from "#base/errors";
import { copyOf, isRecord, sameJson } from "./object.ts";
import type { Schema } from "./schema/schema.ts";
import { badRequest, StatusError, type Subject } from "./status.ts";

const MAX_JSON_PATCH_OPERATIONS = 10_000;
const OPERATIONS = new Set(["add", "remove", "replace", "move", "copy", "test"]);

/** RFC 6902. Throws 400 for what is no patch and 422 for one that does not fit; both name the operation. */
export function jsonPatch(target: unknown, patch: unknown, subject: Subject): unknown {
  if (!Array.isArray(patch)) throw badRequest("a JSON patch must be a list of operations");
  if (patch.length > MAX_JSON_PATCH_OPERATIONS) {
    throw badRequest(`a JSON patch may have at most ${MAX_JSON_PATCH_OPERATIONS} operations, not ${patch.length}`);
  }
  const operations = patch.map((operation: unknown, index) => checkOperation(operation, index));
  const result = copyOf(target);
  const failures = applyPatch(result, operations);
  const index = failures.findIndex((failure) => failure !== null);
  if (index < 0) return result;
  const operation = operations[index];
  const what = `the server rejected our request: operation ${index} (${operation?.op ?? ""} ${operation?.path ?? ""}): ${messageOf(failures[index])}`;
  throw new StatusError(422, "Invalid", { message: what, details: { name: subject.name, kind: subject.resource } });
}

function checkOperation(operation: unknown, index: number): Operation {
  if (!isRecord(operation)) throw badRequest(`JSON patch operation ${index} must be an object`);
  const { op, path, from } = operation;
  if (typeof op !== "string" || !OPERATIONS.has(op))
    throw badRequest(`JSON patch operation ${index}: unknown op ${JSON.stringify(op)}`);
  for (const [name, pointer] of Object.entries({ path, ...((op === "move" || op === "copy") && { from }) })) {
    if (typeof pointer !== "string" || !/^(\/([^~]|~[01])*)?$/.test(pointer)) {
      throw badRequest(`JSON patch operation ${index}: ${name} ${JSON.stringify(pointer)} is no JSON pointer`);
    }
  }
  if (["add", "replace", "test"].includes(op) && !Object.hasOwn(operation, "value")) {
    throw badRequest(`JSON patch operation ${index}: ${op} needs a value`);
  }
  return operation as unknown as Operation; // checked field by field just above
}

/** RFC 7386. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isRecord(patch)) return patch;
  const result: Record<string, unknown> = isRecord(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete result[key];
    else setOwn(result, key, mergePatch(result[key], value));
  }
  return result;
}

/** Sets a field even when it is called `__proto__`. */
function setOwn(target: Record<string, unknown>, key: string, value: unknown): void {
  Object.defineProperty(target, key, { value, enumerable: true, configurable: true, writable: true });
}

const DIRECTIVE = "$patch";
const RETAIN_KEYS = "$retainKeys";
const DELETE_FROM = "$deleteFromPrimitiveList/";
const SET_ORDER = "$setElementOrder/";

/**
 * Kubernetes' strategic merge: lists with merge keys are merged element by element, with the directives `$patch`,
 * `$retainKeys`, `$deleteFromPrimitiveList` and `$setElementOrder`. Throws 400 that names the field.
 */
export function strategicPatch(schema: Schema | undefined, target: unknown, patch: unknown): unknown {
  return strategicMerge(schema, { target, patch, path: "" });
}

interface Merge {
  readonly target: unknown;
  readonly patch: unknown;
  readonly path: string;
}

function strategicMerge(schema: Schema | undefined, { target, patch, path }: Merge): unknown {
  if (!isRecord(patch)) return patch;
  const directive = patch[DIRECTIVE];
  if (directive === "delete") return undefined;
  if (directive === "replace") return withoutDirectives(patch);
  if (directive !== undefined && directive !== "merge")
    throw badRequest(`${path}: unknown $patch directive ${JSON.stringify(directive)}`);
  const result: Record<string, unknown> = isRecord(target) ? { ...target } : {};
  retainKeys(result, patch[RETAIN_KEYS], path);
  for (const [key, value] of Object.entries(patch)) {
    if (isDirective(key)) continue;
    const at = path === "" ? key : `${path}.${key}`;
    const field = fieldSchema(schema, key);
    const merged = value === null ? undefined : mergeField(field, { target: result[key], patch: value, path: at });
    if (merged === undefined) delete result[key];
    else setOwn(result, key, merged);
  }
  applyListDirectives(schema, result, patch);
  return result;
}

function isDirective(key: string): boolean {
  return key === DIRECTIVE || key === RETAIN_KEYS || key.startsWith(DELETE_FROM) || key.startsWith(SET_ORDER);
}

function retainKeys(result: Record<string, unknown>, retained: unknown, path: string): void {
  if (retained === undefined) return;
  if (!Array.isArray(retained)) throw badRequest(`${path}.$retainKeys: expected a list`);
  for (const key of Object.keys(result)) if (!retained.includes(key)) delete result[key];
}

function fieldSchema(schema: Schema | undefined, key: string): Schema | undefined {
  if (schema?.type === "map") return schema.item;
  const fields = schema?.fields?.() ?? {};
  return Object.hasOwn(fields, key) ? fields[key] : undefined;
}

function mergeField(schema: Schema | undefined, merge: Merge): unknown {
  if (!Array.isArray(merge.patch)) return strategicMerge(schema, merge);
  if (schema?.keys === undefined) return withoutListDirectives(merge.patch);
  const target = Array.isArray(merge.target) ? merge.target : [];
  if (schema.keys.length === 0) return mergeSet(target, merge.patch);
  return mergeKeyed(schema, { ...merge, target, patch: merge.patch });
}

function mergeSet(target: readonly unknown[], patch: readonly unknown[]): unknown[] {
  return [...target, ...patch.filter((value) => !target.some((one) => sameJson(one, value)))];
}

/** Strategic merge uses the first key only (its tags name one); server-side apply uses all. */
function mergeKeyed(schema: Schema, merge: { target: unknown[]; patch: unknown[]; path: string }): unknown[] {
  const key = schema.keys?.[0] ?? "name";
  let result = [...merge.target];
  if (merge.patch.some((item) => isRecord(item) && item[DIRECTIVE] === "replace")) result = [];
  for (const [index, item] of merge.patch.entries()) {
    const at = `${merge.path}[${index}]`;
    if (!isRecord(item)) throw badRequest(`${at}: expected an object`);
    if (item[DIRECTIVE] === "replace" && item[key] === undefined) continue;
    if (item[key] === undefined) throw badRequest(`${at}: does not contain declared merge key: ${key}`);
    const found = result.findIndex((one) => isRecord(one) && sameJson(one[key], item[key]));
    const merged = strategicMerge(schema.item, {
      target: found < 0 ? undefined : result[found],
      patch: item,
      path: at,
    });
    if (merged === undefined) result = result.filter((_, position) => position !== found);
    else if (found < 0) result.push(merged);
    else result[found] = merged;
  }
  return result;
}

function applyListDirectives(
  schema: Schema | undefined,
  result: Record<string, unknown>,
  patch: Record<string, unknown>,
): void {
  for (const [directive, value] of Object.entries(patch)) {
    if (!Array.isArray(value)) continue;
    if (directive.startsWith(DELETE_FROM)) {
      const field = directive.slice(DELETE_FROM.length);
      const list = result[field];
      if (Array.isArray(list)) result[field] = list.filter((one) => !value.some((gone) => sameJson(one, gone)));
    } else if (directive.startsWith(SET_ORDER)) {
      const field = directive.slice(SET_ORDER.length);
      const list = result[field];
      if (Array.isArray(list)) result[field] = ordered(list, value, fieldSchema(schema, field)?.keys?.[0]);
    }
  }
}

/** Elements that the order names come in that order; the others keep their place relative to their predecessor. */
function ordered(list: readonly unknown[], order: readonly unknown[], key: string | undefined): unknown[] {
  const idOf = (item: unknown): unknown => (key !== undefined && isRecord(item) ? item[key] : item);
  const rank = (item: unknown): number => order.findIndex((one) => sameJson(idOf(one), idOf(item)));
  const named = list.filter((item) => rank(item) >= 0).toSorted((a, b) => rank(a) - rank(b));
  let next = 0;
  return list.map((item) => (rank(item) >= 0 ? named[next++] : item));
}

function withoutDirectives(patch: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(patch).filter(([key]) => key !== DIRECTIVE && key !== RETAIN_KEYS));
}

function withoutListDirectives(list: readonly unknown[]): unknown[] {
  return list.filter((item) => !(isRecord(item) && item[DIRECTIVE] !== undefined && Object.keys(item).length === 1));
}
