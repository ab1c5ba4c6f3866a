import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

/**
 * Writes `types.json`, the field table of the built-in kinds, from the models of the development dependency
 * @kubernetes/client-node. Run it after that dependency changed: `node src/apiserver/schema/generate.ts`.
 */

const ROOTS = [
  "V1Pod V1Namespace V1Service V1ConfigMap V1Secret V1ServiceAccount V1Node CoreV1Event",
  "V1Deployment V1DaemonSet V1ReplicaSet V1Scale V1Lease V1EndpointSlice V1CustomResourceDefinition",
  "V1Role V1RoleBinding V1ClusterRole V1ClusterRoleBinding V1TokenReview AuthenticationV1TokenRequest V1SelfSubjectReview",
  "V1SubjectAccessReview V1SelfSubjectAccessReview V1LocalSubjectAccessReview V1SelfSubjectRulesReview V1Binding",
  "V1Status V1DeleteOptions",
]
  .join(" ")
  .split(" ");

/** Lists that strategic merge and server-side apply merge by key; `*` is a set of plain values. */
const MERGE_KEYS: Readonly<Record<string, string>> = {
  "ObjectMeta.finalizers": "*",
  "ObjectMeta.ownerReferences": "uid",
  "PodSpec.containers": "name",
  "PodSpec.initContainers": "name",
  "PodSpec.ephemeralContainers": "name",
  "PodSpec.volumes": "name",
  "PodSpec.imagePullSecrets": "name",
  "PodSpec.hostAliases": "ip",
  "PodSpec.schedulingGates": "name",
  "PodSpec.resourceClaims": "name",
  "PodSpec.topologySpreadConstraints": "topologyKey,whenUnsatisfiable",
  "Container.env": "name",
  "Container.ports": "containerPort,protocol",
  "Container.volumeMounts": "mountPath",
  "Container.volumeDevices": "devicePath",
  "PodStatus.conditions": "type",
  "PodStatus.podIPs": "ip",
  "ServiceSpec.ports": "port,protocol",
  "ServiceStatus.conditions": "type",
  "ServiceAccount.secrets": "name",
  "NodeSpec.podCIDRs": "*",
  "NodeStatus.conditions": "type",
  "NodeStatus.addresses": "type",
  "NamespaceStatus.conditions": "type",
  "DeploymentStatus.conditions": "type",
  "DaemonSetStatus.conditions": "type",
  "ReplicaSetStatus.conditions": "type",
  "CustomResourceDefinitionStatus.conditions": "type",
};

/** Maps and fields whose values are quantities: text or a number. */
const QUANTITIES = /^(limits|requests|capacity|allocatable|overhead|hard|used|sizeLimit|divisor|allocatedResources)$/;

interface Attribute {
  readonly name: string;
  readonly baseName: string;
  readonly type: string;
  readonly format: string;
}

const require = createRequire(import.meta.url);
const folder = require.resolve("@kubernetes/client-node").replace(/dist\/.*$/, "dist/gen/models/");
const types: Record<string, Record<string, string>> = {};

function shortName(model: string): string {
  return model
    .replace(/^V1(?=[A-Z])/, "")
    .replace(/^(Core|Events|Discovery|Authentication|Rbac|Admissionregistration)V1/, (_all, group: string) =>
      group === "Events" ? "Events" : "",
    );
}

function encodeType(attribute: Attribute, queue: string[]): string {
  const { type, format, baseName } = attribute;
  const [, array, map] = /^(?:Array<(.+)>|\{ \[key: string\]: (.+); \})$/.exec(type) ?? [];
  const item = array ?? map;
  if (item !== undefined)
    return `${array === undefined ? "{}" : "[]"}${encodeType({ ...attribute, type: item }, queue)}`;
  if (type === "string" && QUANTITIES.test(baseName)) return "quantity";
  const scalar = SCALARS[`${type} ${format}`] ?? SCALARS[type];
  if (scalar === undefined) queue.push(type);
  return scalar ?? shortName(type);
}

const SCALARS: Readonly<Record<string, string>> = {
  string: "string",
  "string byte": "bytes",
  number: "int",
  "number double": "number",
  boolean: "bool",
  Date: "time",
  V1MicroTime: "time",
  IntOrString: "intstr",
  any: "any",
  object: "any",
  V1JSONSchemaProps: "any", // custom schemas are read by a reader of their own
};

async function read(model: string, queue: string[]): Promise<void> {
  const module: Record<string, { attributeTypeMap: Attribute[] }> = await import(`${folder}${model}.js`);
  const declared = readFileSync(`${folder}${model}.d.ts`, "utf8");
  const short = shortName(model);
  const fields: Record<string, string> = {};
  for (const attribute of module[model]?.attributeTypeMap ?? []) {
    const required = declared.includes(`'${attribute.name}':`) ? "!" : "";
    const key = MERGE_KEYS[`${short}.${attribute.baseName}`] ?? MERGE_KEYS[`Container.${attribute.baseName}`];
    const merge = MERGE_KEYS[`${short}.${attribute.baseName}`] ?? (short === "EphemeralContainer" ? key : undefined);
    fields[attribute.baseName] = `${encodeType(attribute, queue)}${merge === undefined ? "" : `@${merge}`}${required}`;
  }
  types[short] = fields;
}

const queue = [...ROOTS];
const seen = new Set<string>();
while (queue.length > 0) {
  const model = queue.shift() ?? "";
  if (seen.has(model)) continue;
  seen.add(model);
  await read(model, queue);
}
const sorted = Object.fromEntries(Object.entries(types).toSorted(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync(new URL("../src/apiserver/schema/types.json", import.meta.url), `${JSON.stringify(sorted, null, 2)}\n`);
