import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * Writes `wire.json`, the protobuf field numbers of the built-in kinds, from the struct tags of the Go modules
 * k8s.io/api and k8s.io/apimachinery (`go mod download`). Run it by hand when a field was added there:
 * `node tools/api-wire.ts GO_MODULE_CACHE VERSION`.
 */

const FILES = [
  "apimachinery@VERSION/pkg/apis/meta/v1/types.go", // first: older packages have poorer types of the same names
  "api@VERSION/core/v1/types.go",
  "api@VERSION/apps/v1/types.go",
  "api@VERSION/rbac/v1/types.go",
  "api@VERSION/authentication/v1/types.go",
  "api@VERSION/authorization/v1/types.go",
  "api@VERSION/coordination/v1/types.go",
  "api@VERSION/discovery/v1/types.go",
  "api@VERSION/autoscaling/v1/types.go",
  "api@VERSION/policy/v1/types.go",
];

const ROOTS = [
  "Pod Namespace Service ConfigMap Secret ServiceAccount Node Event Binding Deployment DaemonSet ReplicaSet Lease",
  "EndpointSlice Role RoleBinding ClusterRole ClusterRoleBinding TokenReview TokenRequest SelfSubjectReview Scale Eviction",
  "SubjectAccessReview SelfSubjectAccessReview LocalSubjectAccessReview SelfSubjectRulesReview DeleteOptions",
]
  .join(" ")
  .split(" ");

const SCALARS: Readonly<Record<string, string>> = {
  string: "s",
  bool: "b",
  int: "i",
  int32: "i",
  int64: "i",
  "metav1.Time": "t",
  Time: "t",
  "metav1.MicroTime": "u",
  MicroTime: "u",
  "resource.Quantity": "q",
  "intstr.IntOrString": "o",
  "[]byte": "y",
  "types.UID": "s",
  FieldsV1: "j",
};

/** What the Go sources say: structs with their fields, and names for other types. */
interface GoTypes {
  readonly structs: Map<string, { json: string; number: number; type: string }[]>;
  readonly aliases: Map<string, string>;
}

/** Reads structs with protobuf tags, and simple named types, out of Go source text. */
function readGoTypes(text: string, into: GoTypes): void {
  for (const match of text.matchAll(/^type (\w+) ((?:\[\]|map\[[\w.]+\])?[\w.]+)$/gm)) {
    if (match[2] !== "struct") into.aliases.set(match[1] ?? "", match[2] ?? "");
  }
  for (const match of text.matchAll(/^type (\w+) struct \{\n([\s\S]*?)^\}/gm)) {
    const fields = [
      ...(match[2] ?? "").matchAll(/^\s+(?:\w+\s+)?([\w.*[\]]+)\s+`json:"([^"]*)"[^`]*\sprotobuf:"([^"]*)"/gm),
    ];
    const read = fields.flatMap(([, type = "", json = "", tag = ""]) => {
      const number = Number(tag.split(",")[1]);
      return Number.isInteger(number) ? [{ json: json.split(",")[0] ?? "", number, type }] : [];
    });
    if (read.length > 0 && !into.structs.has(match[1] ?? "")) into.structs.set(match[1] ?? "", read);
  }
}

/** The notation of one Go type: `*T` optional, `[]T` list, `{}T` map, a letter for scalars, a name for messages. */
function wireNotation(goType: string, types: GoTypes, found: (message: string) => void): string {
  const type = goType.replace(/^(metav1|v1|rbacv1|corev1)\./, (prefix) =>
    SCALARS[goType] === undefined ? "" : prefix,
  );
  const scalar = SCALARS[type];
  if (scalar !== undefined) return scalar;
  if (type.startsWith("*")) return `*${wireNotation(type.slice(1), types, found)}`;
  if (type.startsWith("[]")) return `[]${wireNotation(type.slice(2), types, found)}`;
  if (type.startsWith("map[")) return `{}${wireNotation(type.slice(type.indexOf("]") + 1), types, found)}`;
  const alias = types.aliases.get(type);
  if (alias?.startsWith("[]") && alias !== "[]byte") return `$${wireNotation(alias, types, found)}`; // a message with one list
  if (alias !== undefined) return wireNotation(alias, types, found);
  if (!types.structs.has(type)) throw new Error(`no Go type ${goType}`);
  found(type);
  return type;
}

function generate(modules: string, version: string): void {
  const types: GoTypes = { structs: new Map(), aliases: new Map() };
  for (const file of FILES) readGoTypes(readFileSync(join(modules, file.replace("VERSION", version)), "utf8"), types);
  const out: Record<string, string> = {};
  const queue = [...ROOTS];
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    if (out[name] !== undefined) continue;
    const fields = types.structs.get(name) ?? [];
    out[name] = fields
      .map(
        ({ json, number, type }) => `${number}=${json}:${wireNotation(type, types, (message) => queue.push(message))}`,
      )
      .join(" ");
  }
  const sorted = Object.fromEntries(Object.entries(out).toSorted(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(new URL("../src/apiserver/schema/wire.json", import.meta.url), `${JSON.stringify(sorted, null, 2)}\n`);
}

const [, script = "", modules, version] = process.argv;
if (script.endsWith("api-wire.ts") && modules !== undefined && version !== undefined) generate(modules, version);
