import { OWN_VERSION, TextOf, ValueAt, VALUE_TABLE, When, type Choice, type Condition, type Tree } from "#install";

/**
 * One object as a template of Helm's. Only the lines of conditions are more than YAML: values stand as JSON, which is YAML, so that
 * nothing that a user writes can change the structure.
 */
export function helmTemplate(tree: Tree): string {
  if (tree instanceof When)
    return [`{{- if ${allOf(tree.conditions)} }}`, helmTemplate(tree.tree), "{{- end }}"].join("\n");
  return ["---", ...blockOf(tree, "")].join("\n");
}

/** Fails while the chart is rendered when all conditions hold. */
export function helmRefusal(conditions: readonly Condition[], reason: string): string {
  return `{{- if ${allOf(conditions)} }}\n{{- fail ${JSON.stringify(reason)} }}\n{{- end }}`;
}

/** Lines of a map or a list; everything else is one line, which {@link inline} makes. */
function blockOf(tree: Tree, indent: string): string[] {
  if (Array.isArray(tree)) return tree.flatMap((item: Tree) => itemOf(item, indent));
  return Object.entries(tree).flatMap(([key, item]: [string, Tree]) => entryOf(keyOf(key), item, indent));
}

function itemOf(item: Tree, indent: string): string[] {
  if (item instanceof When) return guarded(item, indent, (then) => itemOf(then, indent));
  if (!hasBlock(item)) return [`${indent}- ${inline(item)}`];
  const [first = "", ...rest] = blockOf(item, `${indent}  `);
  // A condition cannot stand behind the dash.
  if (first.includes("{{- ")) throw new Error(`the first entry of an item has a condition: ${first}`);
  return [`${indent}- ${first.trimStart()}`, ...rest];
}

function entryOf(key: string, item: Tree, indent: string): string[] {
  if (item instanceof When) return guarded(item, indent, (then) => entryOf(key, then, indent));
  if (!hasBlock(item)) return [`${indent}${key}: ${inline(item)}`];
  return [`${indent}${key}:`, ...blockOf(item, `${indent}  `)];
}

function guarded(item: When, indent: string, lines: (then: Tree) => string[]): string[] {
  return [`${indent}{{- if ${allOf(item.conditions)} }}`, ...lines(item.tree), `${indent}{{- end }}`];
}

function hasBlock(tree: Tree): boolean {
  if (tree instanceof ValueAt || tree instanceof TextOf || tree instanceof When || typeof tree !== "object")
    return false;
  return Object.keys(tree).length > 0;
}

function inline(tree: Tree): string {
  if (tree instanceof ValueAt) return `{{ ${expression(tree)} | toJson }}`;
  if (tree instanceof TextOf) {
    const format = tree.parts.map((part) => (typeof part === "string" ? part.replaceAll("%", "%%") : "%s")).join("");
    const values = tree.parts.filter((part) => typeof part !== "string").map((part) => `(${asText(part)})`);
    return `{{ printf ${JSON.stringify(format)} ${values.join(" ")} | toJson }}`;
  }
  const json = JSON.stringify(tree);
  if (json.includes("{{")) throw new Error(`cannot stand in a template: ${json}`);
  return json;
}

function keyOf(key: string): string {
  return /^[A-Za-z][\w./-]*$/.test(key) ? key : JSON.stringify(key);
}

function expression({ path, fallback }: ValueAt): string {
  if (fallback === undefined) return `.Values.${path}`;
  if (fallback instanceof ValueAt) return `(.Values.${path} | default ${expression(fallback)})`;
  if (typeof fallback !== "string") return `(.Values.${path} | default ${choiceOf(fallback)})`;
  return `(.Values.${path} | default ${fallback === OWN_VERSION ? ".Chart.AppVersion" : JSON.stringify(fallback)})`;
}

function choiceOf({ by, of, otherwise }: Choice): string {
  const words = Object.entries(of)
    .flat()
    .map((word) => JSON.stringify(word));
  return `(get (dict ${words.join(" ")}) .Values.${by} | default ${JSON.stringify(otherwise)})`;
}

/** Helm reads all numbers as floating ones, and would write a large one as 1e+06. */
function asText(at: ValueAt): string {
  const sample = VALUE_TABLE.find(({ path }) => path === at.path)?.default;
  if (typeof sample === "number") return `int64 ${expression(at)} | toString`;
  return Array.isArray(sample) ? `join "," ${expression(at)}` : `${expression(at)} | toString`;
}

function allOf(conditions: readonly Condition[]): string {
  const each = conditions.map((condition) =>
    condition.not === true ? `not (${testOf(condition)})` : testOf(condition),
  );
  return each.length === 1 ? (each[0] ?? "") : `and ${each.map((test) => `(${test})`).join(" ")}`;
}

function testOf({ path, equals, above, matches }: Condition): string {
  const found = `.Values.${path}`;
  if (equals !== undefined) return `eq ${found} ${JSON.stringify(equals)}`;
  if (above !== undefined) {
    return `gt (int64 ${found}) ${typeof above === "string" ? `(int64 .Values.${above})` : above}`;
  }
  return matches === undefined ? found : `regexMatch ${JSON.stringify(matches)} ${found}`;
}
