import { isRecord, numberAt, recordAt, sameJson, textAt, textsAt, valueAt } from "../object.ts";
import { builtinSchema } from "./builtin.ts";
import type { Schema } from "./schema.ts";

const MAX_DEPTH = 32;
const TYPES: Readonly<Record<string, Schema["type"]>> = {
  string: "string",
  integer: "int",
  number: "number",
  boolean: "bool",
};

/**
 * The schema of a custom resource from `openAPIV3Schema` of its definition (a structural schema: Kubernetes'
 * apiextensions v1). `apiVersion`, `kind` and `metadata` are those of every object.
 */
export function customSchema(openApi: unknown): Schema {
  const root = convert(openApi, 0);
  const own = root.type === "object" ? (root.fields?.() ?? {}) : {};
  const fields = { ...own, apiVersion: TEXT, kind: TEXT, metadata: builtinSchema("ObjectMeta") };
  return { ...root, type: "object", fields: () => fields };
}

const TEXT: Schema = { type: "string" };

function convert(json: unknown, depth: number): Schema {
  if (!isRecord(json) || depth > MAX_DEPTH) return { type: "any" };
  const check = (value: unknown): string | undefined => valueProblem(json, value, 0);
  const description = textAt(json, "description");
  const common = {
    ...(description !== "" && { description }),
    ...(json["nullable"] === true && { nullable: true }),
    ...(Object.hasOwn(json, "default") && { default: json["default"] }),
  };
  if (json["x-kubernetes-int-or-string"] === true) return { ...common, type: "intstr", check };
  if (json["type"] === "array") return { ...common, ...listOf(json, depth), check };
  if (json["type"] === "object") return { ...common, ...objectOf(json, depth), check };
  return { ...common, type: TYPES[textAt(json, "type")] ?? "any", check };
}

function objectOf(json: Record<string, unknown>, depth: number): Schema {
  const additional = json["additionalProperties"];
  if (isRecord(additional)) return { type: "map", item: convert(additional, depth + 1) };
  const open = json["x-kubernetes-preserve-unknown-fields"] === true;
  const embedded = json["x-kubernetes-embedded-resource"] === true;
  const fields = fieldsOf(json, depth);
  const all = embedded ? { ...fields, apiVersion: TEXT, kind: TEXT, metadata: builtinSchema("ObjectMeta") } : fields;
  const atomic = json["x-kubernetes-map-type"] === "atomic";
  return {
    type: "object",
    fields: () => all,
    required: textsAt(json, "required"),
    enforceRequired: true,
    open: open || additional === true,
    ...(atomic && { atomic }),
  };
}

function listOf(json: Record<string, unknown>, depth: number): Schema {
  const item = convert(json["items"], depth + 1);
  const kind = textAt(json, "x-kubernetes-list-type");
  if (kind === "set") return { type: "list", item, keys: [] };
  return kind === "map"
    ? { type: "list", item, keys: textsAt(json, "x-kubernetes-list-map-keys") }
    : { type: "list", item };
}

function fieldsOf(json: Record<string, unknown>, depth: number): Record<string, Schema> {
  const entries = Object.entries(recordAt(json, "properties")).map(([name, value]) => [
    name,
    convert(value, depth + 1),
  ]);
  return Object.fromEntries(entries);
}

/** What of a schema's own conditions a value breaks; types and fields are checked elsewhere. */
function valueProblem(json: Record<string, unknown>, value: unknown, depth: number): string | undefined {
  if (value === null && json["nullable"] === true) return undefined;
  const options = json["enum"];
  if (Array.isArray(options) && !options.some((option) => sameJson(option, value))) {
    return `Unsupported value: ${JSON.stringify(value)}: supported values: ${options.map((option) => JSON.stringify(option)).join(", ")}`;
  }
  const own =
    typeof value === "string"
      ? textProblem(json, value)
      : typeof value === "number"
        ? numberProblem(json, value)
        : sizeProblem(json, value);
  return own ?? (depth < MAX_DEPTH ? logicProblem(json, value, depth) : undefined);
}

function textProblem(json: Record<string, unknown>, value: string): string | undefined {
  const [least, most] = [numberAt(json, "minLength"), numberAt(json, "maxLength")];
  const length = Array.from(value).length; // code points, as Go counts
  if (least !== undefined && length < least) return `Invalid value: should be at least ${least} chars long`;
  if (most !== undefined && length > most) return `Too long: may not be more than ${most} chars`;
  const pattern = textAt(json, "pattern");
  if (pattern !== "" && !findPattern(pattern)?.test(value))
    return `Invalid value: ${JSON.stringify(value)}: should match '${pattern}'`;
  return formatProblem(textAt(json, "format"), value);
}

function formatProblem(format: string, value: string): string | undefined {
  if (format === "date-time" && Number.isNaN(Date.parse(value)))
    return `Invalid value: ${JSON.stringify(value)}: must be a time (RFC 3339)`;
  if (format === "byte" && !/^[A-Za-z0-9+/]*={0,2}$/.test(value)) return "Invalid value: must be base64 text";
  return undefined;
}

function numberProblem(json: Record<string, unknown>, value: number): string | undefined {
  const [least, most, step] = [numberAt(json, "minimum"), numberAt(json, "maximum"), numberAt(json, "multipleOf")];
  if (least !== undefined && (json["exclusiveMinimum"] === true ? value <= least : value < least)) {
    return `Invalid value: ${value}: should be greater than or equal to ${least}`;
  }
  if (most !== undefined && (json["exclusiveMaximum"] === true ? value >= most : value > most)) {
    return `Invalid value: ${value}: should be less than or equal to ${most}`;
  }
  return step !== undefined && step > 0 && value % step !== 0
    ? `Invalid value: ${value}: should be a multiple of ${step}`
    : undefined;
}

function sizeProblem(json: Record<string, unknown>, value: unknown): string | undefined {
  const isList = Array.isArray(value);
  if (!isList && !isRecord(value)) return undefined;
  const size = isList ? value.length : Object.keys(value).length;
  const what = isList ? "Items" : "Properties";
  const [least, most] = [numberAt(json, `min${what}`), numberAt(json, `max${what}`)];
  if (least !== undefined && size < least) return `Invalid value: should have at least ${least} ${what.toLowerCase()}`;
  if (most !== undefined && size > most) return `Too many: ${size}: must have at most ${most} ${what.toLowerCase()}`;
  return isList ? duplicateProblem(json, value) : undefined;
}

function duplicateProblem(json: Record<string, unknown>, value: readonly unknown[]): string | undefined {
  const kind = textAt(json, "x-kubernetes-list-type");
  if (kind !== "set" && kind !== "map" && json["uniqueItems"] !== true) return undefined;
  const keys = textsAt(json, "x-kubernetes-list-map-keys");
  const ids = value.map((item) => JSON.stringify(kind === "map" ? keys.map((key) => valueAt(item, key)) : item));
  const index = ids.findIndex((id, position) => ids.indexOf(id) !== position);
  return index < 0 ? undefined : `Duplicate value: ${ids[index] ?? ""}`;
}

/** `allOf`, `anyOf`, `oneOf`, `not`, with the conditions on fields that such branches carry. */
function logicProblem(json: Record<string, unknown>, value: unknown, depth: number): string | undefined {
  const fits = (branch: unknown): boolean => !isRecord(branch) || branchProblem(branch, value, depth + 1) === undefined;
  const { allOf, anyOf, oneOf, not } = json;
  if (Array.isArray(allOf) && !allOf.every((branch) => fits(branch)))
    return "Invalid value: must validate all the schemas (allOf)";
  if (Array.isArray(anyOf) && !anyOf.some((branch) => fits(branch)))
    return "Invalid value: must validate at least one schema (anyOf)";
  if (Array.isArray(oneOf) && oneOf.filter((branch) => fits(branch)).length !== 1) {
    return "Invalid value: must validate one and only one schema (oneOf)";
  }
  return not !== undefined && fits(not) ? "Invalid value: must not validate the schema (not)" : undefined;
}

function branchProblem(json: Record<string, unknown>, value: unknown, depth: number): string | undefined {
  if (isRecord(value)) {
    const missing = textsAt(json, "required").find((name) => !Object.hasOwn(value, name));
    if (missing !== undefined) return `Required value: ${missing}`;
    for (const [name, inner] of Object.entries(recordAt(json, "properties"))) {
      const problem =
        isRecord(inner) && Object.hasOwn(value, name) ? branchProblem(inner, value[name], depth + 1) : undefined;
      if (problem !== undefined) return problem;
    }
  }
  return typeProblem(textAt(json, "type"), value) ?? valueProblem(json, value, depth);
}

function typeProblem(type: string, value: unknown): string | undefined {
  const fits: Readonly<Record<string, (value: unknown) => boolean>> = {
    string: (one) => typeof one === "string",
    integer: (one) => Number.isInteger(one),
    number: (one) => typeof one === "number",
    boolean: (one) => typeof one === "boolean",
    array: (one) => Array.isArray(one),
    object: (one) => isRecord(one),
  };
  return fits[type]?.(value) === false ? `Invalid value: must be of type ${type}` : undefined;
}

const patterns = new Map<string, RegExp | undefined>();
const MAX_PATTERNS = 1000;

/** A pattern of a schema; undefined when it is no regular expression. */
function findPattern(pattern: string): RegExp | undefined {
  if (patterns.has(pattern)) return patterns.get(pattern);
  if (patterns.size >= MAX_PATTERNS) patterns.clear();
  let found: RegExp | undefined;
  try {
    found = new RegExp(pattern, "u");
  } catch {
    found = undefined;
  }
  patterns.set(pattern, found);
  return found;
}
