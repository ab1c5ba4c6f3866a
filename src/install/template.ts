/** Values by path, checked. */
export type Values = ReadonlyMap<string, unknown>;

/**
 * Objects with places for values. One description serves both ways of installing: {@link resolveTree} puts the values in, and the
 * chart's templates are written from the same tree (tools/helm-template.ts).
 */
export type Tree =
  | string
  | number
  | boolean
  | ValueAt
  | TextOf
  | When
  | readonly Tree[]
  | { readonly [key: string]: Tree };

/** As a fallback: the version of what is installed. */
export const OWN_VERSION = "OWN-VERSION";

/** What another value says: a text by each of its own, and one for all others. */
export interface Choice {
  readonly by: string;
  readonly of: Readonly<Record<string, string>>;
  readonly otherwise: string;
}

export type Fallback = ValueAt | Choice | string;

/** A value, as it is. */
export class ValueAt {
  readonly path: string;
  /** Stands for a value that is empty. */
  readonly fallback: Fallback | undefined;

  constructor(path: string, fallback?: Fallback) {
    this.path = path;
    this.fallback = fallback;
  }
}

/** A text that values are parts of; lists are joined by commas. */
export class TextOf {
  readonly parts: readonly (string | ValueAt)[];

  constructor(parts: readonly (string | ValueAt)[]) {
    this.parts = parts;
  }
}

/** An item of a list, or a value of a map, that is there only when all conditions hold. */
export class When {
  readonly conditions: readonly Condition[];
  readonly tree: Tree;

  constructor(conditions: readonly Condition[], tree: Tree) {
    this.conditions = conditions;
    this.tree = tree;
  }
}

/** What a value has to be: `equals` something, `above` a number or what another value is, `matches` a regular expression, or, without any, not empty, not zero and not false. */
export interface Condition {
  readonly path: string;
  readonly equals?: string | boolean;
  /** A text is the path of a value that is a number. */
  readonly above?: number | string;
  /** One that JavaScript and Go read alike; it matches any part unless it is anchored. */
  readonly matches?: string;
  readonly not?: boolean;
}

/** The value of `path`, or `fallback` where that is empty. */
export function value(path: string, fallback?: Fallback): ValueAt {
  return new ValueAt(path, fallback);
}

/** A text with values in it: text`https://${value("a")}:1`. */
export function text(words: TemplateStringsArray, ...values: readonly ValueAt[]): TextOf {
  const parts = words.flatMap((word, index) => {
    const next = values[index];
    return next === undefined ? [word] : [word, next];
  });
  return new TextOf(parts.filter((part) => part !== ""));
}

/** A tree where all conditions hold, nothing elsewhere. */
export function when(conditions: Condition | readonly Condition[], tree: Tree): When {
  return new When([conditions].flat(), tree);
}

/** The tree with all values put in; undefined when its own condition does not hold. */
export function resolveTree(tree: Tree, values: Values): unknown {
  if (tree instanceof ValueAt) return valueOf(tree, values);
  if (tree instanceof TextOf) return tree.parts.map((part) => textOf(part, values)).join("");
  if (tree instanceof When) return holdAll(tree.conditions, values) ? resolveTree(tree.tree, values) : undefined;
  if (Array.isArray(tree)) {
    return tree.map((item: Tree) => resolveTree(item, values)).filter((item) => item !== undefined);
  }
  if (typeof tree !== "object") return tree;
  const entries = Object.entries(tree).map(([key, item]: [string, Tree]) => [key, resolveTree(item, values)]);
  return Object.fromEntries(entries.filter(([, item]) => item !== undefined));
}

/** True when all conditions hold. */
export function holdAll(conditions: readonly Condition[], values: Values): boolean {
  return conditions.every((condition) => holds(condition, values) !== (condition.not === true));
}

function holds({ path, equals, above, matches }: Condition, values: Values): boolean {
  const found = values.get(path);
  if (equals !== undefined) return found === equals;
  if (above !== undefined) return Number(found) > Number(typeof above === "string" ? values.get(above) : above);
  if (matches !== undefined) return new RegExp(matches).test(String(found));
  return !isEmpty(found);
}

function valueOf({ path, fallback }: ValueAt, values: Values): unknown {
  const found = values.get(path);
  if (!isEmpty(found) || fallback === undefined) return found;
  if (typeof fallback === "string") return fallback;
  if (fallback instanceof ValueAt) return valueOf(fallback, values);
  return fallback.of[String(values.get(fallback.by))] ?? fallback.otherwise;
}

function textOf(part: string | ValueAt, values: Values): string {
  if (typeof part === "string") return part;
  const found = valueOf(part, values);
  return Array.isArray(found) ? found.join(",") : String(found);
}

/** As Helm's templates see it. */
function isEmpty(found: unknown): boolean {
  if (typeof found === "object" && found !== null) return Object.keys(found).length === 0;
  return found === undefined || found === null || found === "" || found === false || found === 0;
}
