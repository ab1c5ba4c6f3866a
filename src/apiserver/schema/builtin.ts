import table from "./types.json" with { type: "json" };
import type { Schema } from "./schema.ts";

const types: Readonly<Record<string, Readonly<Record<string, string>>>> = table;
const known = new Map<string, Schema>();
const SCALARS = new Set(["string", "int", "number", "bool", "time", "bytes", "quantity", "intstr", "any"]);

/** Maps that apply replaces as a whole instead of merging them key by key. */
const ATOMIC = /^(LabelSelector|PodSpec\.nodeSelector|ServiceSpec\.selector)$/;

/**
 * The schema of a built-in type such as `Pod` or `ObjectMeta`. Notation of `types.json`: `[]T` list, `{}T` map,
 * `@a,b` merge keys of a list (`@*` a set), `!` required. Throws when there is no such type.
 */
export function builtinSchema(name: string): Schema {
  const found = known.get(name);
  if (found !== undefined) return found;
  const notation = types[name];
  if (notation === undefined) throw new Error(`no built-in type ${name}`);
  let fields: Record<string, Schema> | undefined;
  const schema: Schema = {
    type: "object",
    name,
    required: Object.keys(notation).filter((field) => notation[field]?.endsWith("!")),
    fields: () => (fields ??= readFields(name, notation)),
    ...(ATOMIC.test(name) && { atomic: true }),
  };
  known.set(name, schema);
  return schema;
}

function readFields(name: string, notation: Readonly<Record<string, string>>): Record<string, Schema> {
  return Object.fromEntries(
    Object.entries(notation).map(([field, text]) => {
      const schema = readNotation(text);
      return [field, ATOMIC.test(`${name}.${field}`) ? { ...schema, atomic: true } : schema];
    }),
  );
}

function readNotation(notation: string): Schema {
  const [text = "", keys] = notation.replace(/!$/, "").split("@");
  if (text.startsWith("[]")) {
    const item = readNotation(text.slice(2));
    return keys === undefined
      ? { type: "list", item }
      : { type: "list", item, keys: keys === "*" ? [] : keys.split(",") };
  }
  if (text.startsWith("{}")) return { type: "map", item: readNotation(text.slice(2)) };
  if (SCALARS.has(text)) return { type: text as Schema["type"] }; // looked up on this line
  return builtinSchema(text);
}
