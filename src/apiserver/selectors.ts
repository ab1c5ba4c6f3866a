import { badRequest } from "./status.ts";
import { isRecord, type KubeObject } from "./object.ts";

/** Decides whether labels (or fields) match. */
export type Selector = (values: Readonly<Record<string, string>>) => boolean;

type Operator = "=" | "!=" | "in" | "notin" | "exists" | "absent" | ">" | "<";

interface Requirement {
  readonly key: string;
  readonly operator: Operator;
  readonly values: readonly string[];
}

const NAME = /^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;
const PREFIX = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const MAX_SELECTOR_LENGTH = 16_384;

/** Why text is no label key, or undefined when it is one. */
export function labelKeyProblem(key: string): string | undefined {
  const parts = key.split("/");
  const name = parts.at(-1) ?? "";
  const prefix = parts.length === 2 ? parts[0] : undefined;
  if (parts.length > 2) return "a qualified name must consist of an optional DNS subdomain prefix and '/', and a name";
  if (!NAME.test(name)) {
    return "name part must consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
  }
  if (prefix !== undefined && (prefix.length > 253 || !PREFIX.test(prefix))) {
    return "prefix part must be a lowercase DNS subdomain";
  }
  return undefined;
}

/** Why text is no label value, or undefined when it is one. */
export function labelValueProblem(value: string): string | undefined {
  if (value === "" || NAME.test(value)) return undefined;
  return "a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
}

/** Parses `labelSelector` as kubectl writes it. Throws a 400 that shows the part that cannot be read. */
export function parseLabelSelector(text: string): Selector {
  if (text.length > MAX_SELECTOR_LENGTH)
    throw badRequest(`labelSelector: longer than ${MAX_SELECTOR_LENGTH} characters`);
  const requirements = splitTop(text).map((part) => parseRequirement(part, text));
  return (labels) => requirements.every((requirement) => matches(requirement, labels));
}

/** Splits at commas that are not inside parentheses. */
function splitTop(text: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let part = "";
  for (const char of text) {
    if (char === "(") depth++;
    if (char === ")") depth--;
    if (char === "," && depth === 0) {
      parts.push(part);
      part = "";
    } else part += char;
  }
  if (part.trim() !== "" || parts.length > 0) parts.push(part);
  return parts.map((one) => one.trim());
}

const SET = /^(?<key>\S+)\s+(?<sign>in|notin)\s*\((?<values>[^()]*)\)$/;
const EQUALITY = /^(?<key>[^\s=!<>]+)\s*(?<sign>==|=|!=|>|<)\s*(?<value>[^\s=!<>]*)$/;
const EXISTENCE = /^(?<sign>!?)\s*(?<key>[^\s=!<>(),]+)$/;

function parseRequirement(part: string, whole: string): Requirement {
  const fail = (why: string): Error =>
    badRequest(`unable to parse requirement "${part}" in labelSelector "${whole}": ${why}`);
  const requirement = readRequirement(part);
  if (requirement === undefined)
    throw fail("expected KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (A,B) or KEY notin (A,B)");
  const problem = labelKeyProblem(requirement.key);
  if (problem !== undefined) throw fail(`key "${requirement.key}": ${problem}`);
  const numeric = requirement.operator === ">" || requirement.operator === "<";
  for (const value of requirement.values) {
    const wrong = numeric && !/^-?\d+$/.test(value) ? "an integer is needed" : labelValueProblem(value);
    if (wrong !== undefined) throw fail(`value "${value}": ${wrong}`);
  }
  return requirement;
}

function readRequirement(part: string): Requirement | undefined {
  const set = SET.exec(part)?.groups;
  if (set !== undefined)
    return requirementOf(
      set,
      (set["values"] ?? "").split(",").map((value) => value.trim()),
    );
  const equality = EQUALITY.exec(part)?.groups;
  if (equality !== undefined) return requirementOf(equality, [equality["value"] ?? ""]);
  const existence = EXISTENCE.exec(part)?.groups;
  return existence === undefined ? undefined : requirementOf(existence, []);
}

function requirementOf(groups: Readonly<Record<string, string>>, values: readonly string[]): Requirement {
  return { key: groups["key"] ?? "", operator: SIGNS[groups["sign"] ?? ""] ?? "exists", values };
}

const SIGNS: Readonly<Record<string, Operator>> = {
  "=": "=",
  "==": "=",
  "!=": "!=",
  ">": ">",
  "<": "<",
  in: "in",
  notin: "notin",
  "!": "absent",
};

function matches({ key, operator, values }: Requirement, labels: Readonly<Record<string, string>>): boolean {
  return TESTS[operator](Object.hasOwn(labels, key) ? labels[key] : undefined, values);
}

const TESTS: Readonly<Record<Operator, (value: string | undefined, values: readonly string[]) => boolean>> = {
  exists: (value) => value !== undefined,
  absent: (value) => value === undefined,
  "=": (value, values) => value !== undefined && values.includes(value),
  in: (value, values) => value !== undefined && values.includes(value),
  "!=": (value, values) => value === undefined || !values.includes(value),
  notin: (value, values) => value === undefined || !values.includes(value),
  ">": (value, values) => value !== undefined && Number(value) > Number(values[0]),
  "<": (value, values) => value !== undefined && Number(value) < Number(values[0]),
};

/** One comparison of a field selector. */
export interface FieldRequirement {
  readonly field: string;
  readonly equal: boolean;
  readonly value: string;
}

/** Parses `fieldSelector`; only `fields` may be used. Throws a 400 that names the field. */
export function parseFieldSelector(text: string, fields: readonly string[]): readonly FieldRequirement[] {
  if (text.length > MAX_SELECTOR_LENGTH)
    throw badRequest(`fieldSelector: longer than ${MAX_SELECTOR_LENGTH} characters`);
  return text
    .split(",")
    .filter((part) => part !== "")
    .map((part) => {
      const match = /^([^=!]+)(==|=|!=)(.*)$/.exec(part);
      if (match === null)
        throw badRequest(`invalid field selector "${text}": cannot read "${part}"; expected FIELD=VALUE`);
      const field = match[1] ?? "";
      if (!fields.includes(field)) throw badRequest(`field label not supported: ${field}`);
      return { field, equal: match[2] !== "!=", value: match[3] ?? "" };
    });
}

/** The value of a field as field selectors see it: text, missing as empty, booleans as `true` and `false`. */
function fieldValue(object: Readonly<KubeObject>, field: string): string {
  let at: unknown = object;
  for (const step of field.split(".")) at = isRecord(at) ? at[step] : undefined;
  if (typeof at === "string") return at;
  return typeof at === "boolean" || typeof at === "number" ? String(at) : field === "spec.unschedulable" ? "false" : "";
}

/** Decides about objects by labels and fields. */
export function objectMatcher(
  label: Selector | undefined,
  fields: readonly FieldRequirement[],
): (object: Readonly<KubeObject>) => boolean {
  return (object) =>
    (label === undefined || label(object.metadata.labels ?? {})) &&
    fields.every(({ field, equal, value }) => (fieldValue(object, field) === value) === equal);
}
