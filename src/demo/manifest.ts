/**
 * The demo's cast: two services in two namespaces that call each other across the nodes, and a visitor that stays outside the mesh.
 */
export interface Cast {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  /** For clients: the service that they call. */
  readonly calls?: { readonly namespace: string; readonly name: string };
}

/** Namespaces that get the label. */
export const ENROLLED = ["shop", "bank"] as const;
/** The label that encrypts. */
export const LABEL = "io.cilium/mtls-enabled=true";
/** Port of both services. */
const PORT = 8080;

export const CAST: readonly Cast[] = [
  { namespace: "shop", name: "cart", node: "node1" },
  { namespace: "bank", name: "ledger", node: "node2" },
  { namespace: "shop", name: "customer", node: "node1", calls: { namespace: "bank", name: "ledger" } },
  { namespace: "bank", name: "auditor", node: "node2", calls: { namespace: "shop", name: "cart" } },
  { namespace: "visitors", name: "guest", node: "node2", calls: { namespace: "shop", name: "cart" } },
];

/** What a server answers, and what a client asks for: readable words that a capture can find. */
const answerOf = (name: string): string => `the ${name} says: one blue bicycle`;
const questionOf = (name: string): string => `the ${name} asks for the order`;

/** The words that travel between two members of the cast. */
export function wordsBetween(client: Cast): string[] {
  return client.calls === undefined ? [] : [questionOf(client.name), answerOf(client.calls.name)];
}

/** The Kubernetes objects of the cast; `program` is the start script that pods run. */
export function manifest(program: string): object[] {
  const namespaces = [...new Set(CAST.map(({ namespace }) => namespace))];
  return [
    ...namespaces.map((name) => ({ apiVersion: "v1", kind: "Namespace", metadata: { name } })),
    ...CAST.flatMap((member) => [
      serviceAccount(member),
      pod(member, program),
      ...(member.calls ? [] : [service(member)]),
    ]),
  ];
}

function serviceAccount({ namespace, name }: Cast): object {
  return { apiVersion: "v1", kind: "ServiceAccount", metadata: { namespace, name } };
}

function service({ namespace, name }: Cast): object {
  const spec = { selector: { app: name }, ports: [{ port: PORT, targetPort: PORT }] };
  return { apiVersion: "v1", kind: "Service", metadata: { namespace, name }, spec };
}

function pod({ namespace, name, node, calls }: Cast, program: string): object {
  const server = ["http-echo", "--port", String(PORT), "--words", answerOf(name)];
  const client = [
    "client",
    "--interval",
    "100",
    "--words",
    questionOf(name),
    `${calls?.name}.${calls?.namespace}:${PORT}`,
  ];
  const probe = calls ? {} : { readinessProbe: { tcpSocket: { port: PORT }, periodSeconds: 1 } };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name, labels: { app: name } },
    spec: {
      nodeName: node,
      serviceAccountName: name,
      terminationGracePeriodSeconds: 1,
      containers: [
        { name: "main", image: "veil", command: [program, "program", ...(calls ? client : server)], ...probe },
      ],
    },
  };
}
