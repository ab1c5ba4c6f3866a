import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { stringify } from "yaml";
import {
  CONTRADICTIONS,
  installationTrees,
  installedKinds,
  nested,
  VALUE_TABLE,
  type Tree,
  type ValueSpec,
} from "#install";
import { helmRefusal, helmTemplate } from "./helm-template.ts";

const root = resolve(import.meta.dirname, "..");
const MADE = "Made by `npm run pages` from src/install: change it there.";

/** The files of the chart that are made from the same description as `veil manifests`. */
export function renderChart(): { path: string; text: string }[] {
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  const files: Record<string, string> = {
    "Chart.yaml": chartFile(version),
    "values.yaml": valuesFile(),
    "values.schema.json": `${JSON.stringify(schema(), undefined, 2)}\n`,
    "templates/contradictions.yaml": contradictions(),
    "crds/kinds.yaml": `# ${MADE}\n${installedKinds()
      .map((kind) => `---\n${stringify(kind, { aliasDuplicateObjects: false })}`)
      .join("")}`,
  };
  for (const [name, trees] of installationTrees()) files[`templates/${name}.yaml`] = template(name, trees);
  return Object.entries(files).map(([path, text]) => ({ path: join(root, "deploy/chart", path), text }));
}

function template(name: string, trees: readonly Tree[]): string {
  const body = trees.map(helmTemplate).join("\n");
  // Who installs into Veil's own namespace has made it; NOTES.txt says how it is labelled.
  const guarded =
    name === "namespace" ? `{{- if ne .Values.namespace .Release.Namespace }}\n${body}\n{{- end }}` : body;
  return `{{- /* ${MADE} */}}\n${guarded}\n`;
}

function contradictions(): string {
  const refusals = CONTRADICTIONS.map(({ conditions, reason }) => helmRefusal(conditions, reason));
  return `{{- /* ${MADE} */}}\n${refusals.join("\n")}\n`;
}

function chartFile(version: string): string {
  return `# ${MADE}\n${stringify({
    apiVersion: "v2",
    name: "veil",
    description: "Mutual TLS between workloads, by label: without sidecars, without restarts, and proven.",
    type: "application",
    version,
    appVersion: version,
    // ValidatingAdmissionPolicy v1, and the node's name in the tokens of pods.
    kubeVersion: ">=1.30.0-0",
  })}`;
}

/** Each value with what it is for, the groups where the table has them. */
function valuesFile(): string {
  const lines = [`# ${MADE}`];
  let group = "";
  for (const spec of VALUE_TABLE) {
    const [first = "", ...rest] = spec.path.split(".");
    const indent = rest.length === 0 ? "" : "  ";
    lines.push("");
    if (rest.length > 0 && group !== first) lines.push(`${first}:`);
    group = rest.length > 0 ? first : "";
    const choice = spec.oneOf === undefined ? "" : ` One of ${spec.oneOf.join(", ")}.`;
    lines.push(`${indent}# ${spec.about}${choice}`);
    const body = stringify(nested(rest[0] ?? first, spec.default), {
      defaultStringType: "QUOTE_DOUBLE",
      defaultKeyType: "PLAIN",
    });
    lines.push(
      ...body
        .trimEnd()
        .split("\n")
        .map((line) => `${indent}${line}`),
    );
  }
  return `${lines.join("\n")}\n`;
}

function schema(): object {
  const properties: Record<string, object> = {};
  const groups = new Map<string, Record<string, object>>();
  for (const spec of VALUE_TABLE) {
    const [first = "", second] = spec.path.split(".");
    if (second === undefined) properties[first] = property(spec);
    else {
      const group = groups.get(first) ?? {};
      group[second] = property(spec);
      groups.set(first, group);
      properties[first] = mapOf(group);
    }
  }
  return {
    $schema: "http://json-schema.org/draft-07/schema#",
    title: "Values of Veil's chart",
    description: MADE,
    ...mapOf(properties),
  };
}

/** Nothing more and nothing less: `helm upgrade --reuse-values` puts an older chart's values in place of this one's, where new ones are missing. */
function mapOf(properties: Readonly<Record<string, object>>): object {
  return { type: "object", additionalProperties: false, properties, required: Object.keys(properties) };
}

function property({ about, default: preset, oneOf, pattern, range }: ValueSpec): object {
  const whole = pattern === undefined ? {} : { pattern: `^(${pattern})$` };
  const shape = Array.isArray(preset)
    ? { type: "array", ...(pattern !== undefined && { items: { type: "string", ...whole } }) }
    : typeof preset === "number"
      ? { type: "integer" }
      : { type: typeof preset, ...whole };
  return {
    description: about,
    default: preset,
    ...shape,
    ...(oneOf !== undefined && { enum: oneOf }),
    ...(range !== undefined && { minimum: range[0], maximum: range[1] }),
  };
}
