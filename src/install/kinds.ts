import type { CustomResourceDefinition } from "#kube";

const text = { type: "string" } as const;
const texts = { type: "array", items: text } as const;
const labels = { type: "object", additionalProperties: text } as const;
const selector = { type: "object", properties: { matchLabels: labels } } as const;
const target = {
  type: "object",
  required: ["kind", "name"],
  properties: { group: text, kind: text, name: text, namespace: text },
} as const;

function object(properties: Record<string, object>, required: readonly string[] = []): object {
  return { type: "object", properties, ...(required.length > 0 && { required }) };
}

function list(items: object): object {
  return { type: "array", items };
}

function textFields(...names: readonly string[]): Record<string, object> {
  return Object.fromEntries(
    names.flatMap((name) => [
      [name, texts],
      [`not${name[0]?.toUpperCase()}${name.slice(1)}`, texts],
    ]),
  );
}

const source = object(
  textFields("principals", "requestPrincipals", "namespaces", "serviceAccounts", "ipBlocks", "remoteIpBlocks"),
);
const operation = object(textFields("hosts", "ports", "methods", "paths"));
const condition = object({ key: text, values: texts, notValues: texts }, ["key"]);

const authorizationPolicy = object({
  selector,
  targetRef: target,
  targetRefs: list(target),
  action: { type: "string", enum: ["ALLOW", "DENY", "AUDIT", "CUSTOM"] },
  provider: object({ name: text }),
  rules: list(object({ from: list(object({ source })), to: list(object({ operation })), when: list(condition) })),
});

const mtls = object({ mode: { type: "string", enum: ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] } });
const peerAuthentication = object({
  selector,
  mtls,
  portLevelMtls: { type: "object", additionalProperties: mtls },
});

/**
 * The kinds in which users write policies, for an API that nobody has installed them in: names, versions and fields are
 * Istio's (`security.istio.io`), so that manifests written for it apply as they are.
 */
export const POLICY_KINDS: readonly CustomResourceDefinition[] = [
  definition(
    "security.istio.io",
    { kind: "AuthorizationPolicy", plural: "authorizationpolicies" },
    authorizationPolicy,
  ),
  definition("security.istio.io", { kind: "PeerAuthentication", plural: "peerauthentications" }, peerAuthentication),
];

const number = { type: "integer" } as const;
const workload = object({
  address: text,
  ports: { type: "object", additionalProperties: number },
  labels,
  network: text,
  locality: text,
  weight: number,
  serviceAccount: text,
});
const port = object({ number, name: text, protocol: text, targetPort: number }, ["number", "name"]);
const service = object(
  {
    hosts: texts,
    addresses: texts,
    ports: list(port),
    location: { type: "string", enum: ["MESH_EXTERNAL", "MESH_INTERNAL"] },
    resolution: { type: "string", enum: ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] },
    endpoints: list(workload),
    workloadSelector: object({ labels }),
    exportTo: texts,
    subjectAltNames: texts,
  },
  ["hosts"],
);

/** The kinds in which users name services and workloads that are no Kubernetes objects (`networking.istio.io`). */
export const NETWORKING_KINDS: readonly CustomResourceDefinition[] = [
  definition("networking.istio.io", { kind: "ServiceEntry", plural: "serviceentries" }, service),
  definition("networking.istio.io", { kind: "WorkloadEntry", plural: "workloadentries" }, workload),
];

const nodeName = text;
const refusals = list(object({ node: nodeName, reason: text, message: text }));

/**
 * The kinds of the tunnels between nodes. CiliumNode is Cilium's (`cilium.io`), with the fields that Veil reads and writes: where Cilium
 * is installed, its own definition stays.
 */
export const WIREGUARD_KINDS: readonly CustomResourceDefinition[] = [
  ofCluster(
    { group: "cilium.io", version: "v2", kind: "CiliumNode" },
    {
      spec: object({
        addresses: list(object({ type: text, ip: text })),
        ipam: object({ podCIDRs: texts }),
      }),
    },
  ),
  ofCluster(
    { group: "veil.dev", version: "v1alpha1", kind: "WireGuardNode" },
    {
      status: object({
        done: number,
        observedGeneration: number,
        backend: text,
        version: text,
        pairs: number,
        proven: number,
        oneSlot: texts,
        problems: refusals,
      }),
    },
    [column("Done", ".status.done"), column("Pairs", ".status.pairs"), column("Proven", ".status.proven")],
  ),
  ofCluster(
    { group: "veil.dev", version: "v1alpha1", kind: "WireGuardRotation" },
    {
      spec: object({ interval: { type: "string", pattern: "^(auto|[1-9][0-9]{0,6}[smh])$" } }),
      status: object({
        generation: number,
        phase: text,
        nodes: number,
        intervalSeconds: number,
        since: text,
        waitingFor: list(object({ node: nodeName, reason: text })),
        refused: refusals,
      }),
    },
    [column("Generation", ".status.generation"), { name: "Phase", type: "string", jsonPath: ".status.phase" }],
  ),
];

function column(name: string, jsonPath: string): { name: string; type: string; jsonPath: string } {
  return { name, type: "integer", jsonPath };
}

/** A kind of the cluster with one version; what it has besides the given fields is kept as it is. */
function ofCluster(
  { group, version, kind }: { readonly group: string; readonly version: string; readonly kind: string },
  properties: Readonly<Record<string, object>>,
  additionalPrinterColumns: { name: string; type: string; jsonPath: string }[] = [],
): CustomResourceDefinition {
  const plural = `${kind.toLowerCase()}s`;
  const open = Object.entries(properties).map(([name, schema]) => [
    name,
    { ...schema, "x-kubernetes-preserve-unknown-fields": true },
  ]);
  return {
    metadata: { name: `${plural}.${group}` },
    spec: {
      group,
      scope: "Cluster",
      names: { kind, plural, singular: kind.toLowerCase(), listKind: `${kind}List` },
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          schema: { openAPIV3Schema: { type: "object", properties: Object.fromEntries(open) } },
          subresources: { status: {} },
          ...(additionalPrinterColumns.length > 0 && { additionalPrinterColumns }),
        },
      ],
    },
  };
}

function definition(
  group: string,
  { kind, plural }: { readonly kind: string; readonly plural: string },
  spec: object,
): CustomResourceDefinition {
  const status = { type: "object", "x-kubernetes-preserve-unknown-fields": true };
  const version = (name: string) => ({
    name,
    served: true,
    storage: name === "v1",
    schema: { openAPIV3Schema: { type: "object", properties: { spec, status } } },
    subresources: { status: {} },
  });
  return {
    metadata: { name: `${plural}.${group}` },
    spec: {
      group,
      scope: "Namespaced",
      names: { kind, plural, singular: kind.toLowerCase(), listKind: `${kind}List` },
      versions: [version("v1"), version("v1beta1")],
    },
  };
}
