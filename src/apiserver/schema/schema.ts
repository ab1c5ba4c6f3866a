import { copyOf, isRecord } from "../object.ts";

/**
 * The shape of a value. Built-in kinds get theirs from `types.json`, custom resources from their OpenAPI schema; both
 * are decoded, pruned, merged and explained by the same code.
 */
export interface Schema {
  readonly type:
    | "object"
    | "map"
    | "list"
    | "string"
    | "int"
    | "number"
    | "bool"
    | "time"
    | "bytes"
    | "quantity"
    | "intstr"
    | "any";
  /** Of an object: its fields. Called when needed, because types refer to each other. */
  readonly fields?: () => Readonly<Record<string, Schema>>;
  /** Of a map or a list: what its values are. */
  readonly item?: Schema;
  /** Of a list that merges: the key fields; empty for a set of plain values. */
  readonly keys?: readonly string[];
  /** Of an object: fields that must be there; shown by explain. */
  readonly required?: readonly string[];
  /** Their absence is refused here; built-in kinds have rules of their own for that. */
  readonly enforceRequired?: boolean;
  /** The name of a built-in type, for OpenAPI references. */
  readonly name?: string;
  /** Of an object: fields that are not listed are kept. */
  readonly open?: boolean;
  readonly description?: string;
  /** Of a map that is replaced as a whole by apply. */
  readonly atomic?: boolean;
  readonly nullable?: boolean;
  /** Further conditions of a custom resource's value: returns what is wrong with it. */
  readonly check?: (value: unknown) => string | undefined;
  readonly default?: unknown;
}

/** What was found while reading an object by its schema. */
export interface SchemaFindings {
  /** Fields that the schema does not know; they have been removed. */
  readonly unknown: string[];
  /** Values of a wrong type or against a rule: path and problem. */
  readonly wrong: { field: string; message: string; missing?: boolean }[];
}

const MAX_DEPTH = 64;
const BASE64 = /^[A-Za-z0-9+/\n]*={0,2}\n?$/;

/**
 * Reads a value by its schema: removes unknown fields, and null where it stands for "not set". Collects everything
 * that is wrong instead of stopping at the first. Changes `value` in place.
 */
export function readBySchema(schema: Schema, value: unknown, findings: SchemaFindings): void {
  visit(schema, value, { path: "", depth: 0, findings });
}

interface Place {
  readonly path: string;
  readonly depth: number;
  readonly findings: SchemaFindings;
}

function inside(place: Place, name: string): Place {
  const path = place.path === "" || name.startsWith("[") ? `${place.path}${name}` : `${place.path}.${name}`;
  return { path, depth: place.depth + 1, findings: place.findings };
}

function visit(schema: Schema, value: unknown, place: Place): void {
  if (value === null && schema.nullable === true) return;
  if (place.depth > MAX_DEPTH) return wrong(place, `nested deeper than ${MAX_DEPTH}`);
  const expected = EXPECTED[schema.type];
  if (!expected.fits(value)) return mismatch(place, expected.name, value);
  if (schema.type === "object" && isRecord(value)) visitFields(schema, value, place);
  else if (schema.item !== undefined) {
    for (const [key, item] of entriesOf(value)) visit(schema.item, item, inside(place, key));
  }
  checkRule(schema, value, place);
}

/** What is inside a map or a list, with the names that paths use. */
function entriesOf(value: unknown): readonly [string, unknown][] {
  if (Array.isArray(value)) return value.map((item, index) => [`[${index}]`, item]);
  return isRecord(value) ? Object.entries(value) : [];
}

function fillDefaults(fields: Readonly<Record<string, Schema>>, value: Record<string, unknown>): void {
  for (const [key, field] of Object.entries(fields)) {
    if (field.default !== undefined && value[key] === undefined) value[key] = copyOf(field.default);
  }
}

function visitFields(schema: Schema, value: Record<string, unknown>, place: Place): void {
  const fields = schema.fields?.() ?? {};
  fillDefaults(fields, value);
  for (const key of Object.keys(value)) {
    const field = Object.hasOwn(fields, key) ? fields[key] : undefined;
    if (field === undefined) {
      if (schema.open === true) continue;
      place.findings.unknown.push(inside(place, key).path);
      delete value[key];
    } else if (value[key] === null && field.nullable !== true) delete value[key];
    else visit(field, value[key], inside(place, key));
  }
}

/** By type: how a value of it looks, and what to call it. */
const EXPECTED: Readonly<Record<Schema["type"], { name: string; fits: (value: unknown) => boolean }>> = {
  object: { name: "an object", fits: isRecord },
  map: { name: "an object", fits: isRecord },
  list: { name: "a list", fits: Array.isArray },
  string: { name: "a string", fits: (value) => typeof value === "string" },
  int: { name: "an integer", fits: Number.isInteger },
  number: { name: "a number", fits: (value) => typeof value === "number" },
  bool: { name: "a boolean", fits: (value) => typeof value === "boolean" },
  time: { name: "a time (RFC 3339)", fits: (value) => typeof value === "string" && !Number.isNaN(Date.parse(value)) },
  bytes: { name: "base64 text", fits: (value) => typeof value === "string" && BASE64.test(value) },
  quantity: { name: "a quantity such as 100m or 64Mi", fits: isQuantity },
  intstr: { name: "an integer or a string", fits: (value) => typeof value === "string" || Number.isInteger(value) },
  any: { name: "any value", fits: () => true },
};

function isQuantity(value: unknown): boolean {
  return (
    typeof value === "number" ||
    (typeof value === "string" && /^[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$/.test(value))
  );
}

function checkRule(schema: Schema, value: unknown, place: Place): void {
  const problem = schema.check?.(value);
  if (problem !== undefined) wrong(place, problem);
  if (schema.required === undefined || schema.enforceRequired !== true || !isRecord(value)) return;
  for (const name of schema.required) {
    if (value[name] === undefined) {
      place.findings.wrong.push({ field: inside(place, name).path, message: "Required value", missing: true });
    }
  }
}

function mismatch(place: Place, expected: string, value: unknown): void {
  const plain = typeof value !== "object" || value === null;
  const found = plain
    ? (JSON.stringify(value) ?? "nothing").slice(0, 80)
    : Array.isArray(value)
      ? "a list"
      : "an object";
  wrong(place, `expected ${expected}, found ${found}`);
}

function wrong(place: Place, message: string): void {
  place.findings.wrong.push({ field: place.path, message });
}
