import { installError } from "./errors.ts";
import { holdAll, type Values } from "./template.ts";
import { CONTRADICTIONS, VALUE_TABLE, type ValueSpec } from "./value-table.ts";

/** Objects of values as users write them, with nesting. */
export type GivenValues = Readonly<Record<string, unknown>>;

/**
 * The defaults with what is given on top; a later one counts more. Maps that are one value (resources) are merged too, as Helm
 * does; null takes a key away. Throws `INSTALL_VALUE`, `INSTALL_CONTRADICTION`.
 */
export function readValues(...given: readonly GivenValues[]): Values {
  const merged = given.reduce<GivenValues>(merge, defaultValues());
  checkNames(merged, "");
  const values = new Map(VALUE_TABLE.map((spec) => [spec.path, checked(spec, at(merged, spec.path))] as const));
  for (const { conditions, reason } of CONTRADICTIONS) {
    if (holdAll(conditions, values)) throw installError("INSTALL_CONTRADICTION", reason);
  }
  return values;
}

/** What values.yaml holds. */
function defaultValues(): GivenValues {
  return VALUE_TABLE.reduce<GivenValues>((all, spec) => merge(all, nested(spec.path, spec.default)), {});
}

/** `a.b` and 1 to `{ a: { b: 1 } }`. */
export function nested(path: string, leaf: unknown): GivenValues {
  const [first = "", ...rest] = path.split(".");
  return { [first]: rest.length === 0 ? leaf : nested(rest.join("."), leaf) };
}

function merge(below: GivenValues, above: GivenValues): GivenValues {
  const all: Record<string, unknown> = { ...below };
  for (const [key, item] of Object.entries(above)) {
    const old = all[key];
    if (item === null) delete all[key];
    else all[key] = isMap(old) && isMap(item) ? merge(old, item) : item;
  }
  return all;
}

function isMap(item: unknown): item is GivenValues {
  return typeof item === "object" && item !== null && !Array.isArray(item);
}

function at(given: GivenValues, path: string): unknown {
  return path.split(".").reduce<unknown>((found, key) => (isMap(found) ? found[key] : undefined), given);
}

/** Refuses names that nobody reads: a slip of the pen would go unnoticed. */
function checkNames(given: GivenValues, prefix: string): void {
  for (const [key, item] of Object.entries(given)) {
    const path = `${prefix}${key}`;
    if (VALUE_TABLE.some((spec) => spec.path === path)) continue;
    if (!VALUE_TABLE.some((spec) => spec.path.startsWith(`${path}.`))) {
      throw installError("INSTALL_VALUE", `there is no value ${path}`);
    }
    if (!isMap(item)) throw installError("INSTALL_VALUE", `${path} is not one value: it has several below it`);
    checkNames(item, `${path}.`);
  }
}

function checked(spec: ValueSpec, found: unknown): unknown {
  const { path, range, oneOf, pattern } = spec;
  const kind = kindOf(spec.default);
  const refuse = (what: string): Error =>
    installError("INSTALL_VALUE", `${path} ${what}, not ${JSON.stringify(found)}`);
  if (found === undefined || kindOf(found) !== kind) throw refuse(`is a ${kind}`);
  if (oneOf !== undefined && !oneOf.some((one) => one === found)) throw refuse(`is one of ${oneOf.join(", ")}`);
  if (range !== undefined && !(Number.isInteger(found) && Number(found) >= range[0] && Number(found) <= range[1])) {
    throw refuse(`is a whole number from ${range[0]} to ${range[1]}`);
  }
  const texts = Array.isArray(found) ? found : [found];
  if (pattern !== undefined && !texts.every((text) => new RegExp(`^(${pattern})$`).test(String(text)))) {
    throw refuse(`matches ${pattern}`);
  }
  return found;
}

function kindOf(item: unknown): string {
  if (Array.isArray(item)) return "list";
  return typeof item === "object" ? "map" : typeof item;
}
