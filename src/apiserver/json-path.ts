import { isRecord } from "./object.ts";

type Step =
  | { readonly kind: "field"; readonly name: string }
  | { readonly kind: "index"; readonly index: number }
  | { readonly kind: "all" }
  | { readonly kind: "filter"; readonly path: readonly Step[]; readonly value: string };

const STEP =
  /^(?:\.?\[\?\(@((?:\.[A-Za-z0-9_-]+)+)\s*==\s*(?:"([^"]*)"|'([^']*)')\)\]|\.?\[(\d+)\]|\.?\[\*\]|\.?\['([^']*)'\]|\.?\["([^"]*)"\]|\.((?:\\.|[^.[\\])+))/;
const MAX_STEPS = 64;

/**
 * Reads a JSON path as printer columns use them: `.a.b`, `.a[0]`, `.a[*].b`, `.a['b.c']`, `.a[?(@.type=="x")].b`.
 * Undefined when it is none of these.
 */
export function parseJsonPath(text: string): readonly Step[] | undefined {
  const steps: Step[] = [];
  let rest = text;
  while (rest !== "") {
    const match = STEP.exec(rest);
    if (match === null || steps.length >= MAX_STEPS) return undefined;
    steps.push(readStep(match));
    rest = rest.slice(match[0].length);
  }
  return steps;
}

function readStep(match: RegExpExecArray): Step {
  const [whole, filter, double, single, index, quoted, doubleQuoted, name] = match;
  if (filter !== undefined) {
    const path = filter
      .split(".")
      .slice(1)
      .map((field): Step => ({ kind: "field", name: field }));
    return { kind: "filter", path, value: double ?? single ?? "" };
  }
  if (index !== undefined) return { kind: "index", index: Number(index) };
  const field = quoted ?? doubleQuoted ?? name?.replaceAll(/\\(.)/g, "$1");
  return field === undefined || whole.endsWith("[*]") ? { kind: "all" } : { kind: "field", name: field };
}

/** The values at a path, in order. */
export function findByPath(value: unknown, path: readonly Step[]): readonly unknown[] {
  let found: unknown[] = [value];
  for (const step of path) found = found.flatMap((one) => take(one, step));
  return found;
}

function take(value: unknown, step: Step): readonly unknown[] {
  if (step.kind === "field") return isRecord(value) && Object.hasOwn(value, step.name) ? [value[step.name]] : [];
  if (step.kind === "all" && isRecord(value)) return Object.values(value);
  if (!Array.isArray(value)) return [];
  if (step.kind === "index") return value.slice(step.index, step.index + 1);
  if (step.kind === "all") return value;
  return value.filter((item) => String(findByPath(item, step.path)[0]) === step.value);
}
