import type { Engine, WriteOptions } from "./engine.ts";
import type { Kind } from "./kinds.ts";
import type { KubeObject } from "./object.ts";
import type { Registry } from "./registry.ts";
import { NODES_GROUP, SERVER_USER } from "./user.ts";

const RBAC = "rbac.authorization.k8s.io";
const MARK = { labels: { "kubernetes.io/bootstrapping": "rbac-defaults" } };
const READ = ["get", "list", "watch"];
const ALL = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/** The namespaces that every cluster has. */
const SYSTEM_NAMESPACES = ["default", "kube-node-lease", "kube-public", "kube-system"];

function rule(groups: string, resources: string, verbs: readonly string[]): Record<string, unknown> {
  return {
    apiGroups: groups.split(",").map((group) => (group === "core" ? "" : group)),
    resources: resources.split(","),
    verbs,
  };
}

/** Kinds that `admin`, `edit` and `view` cover in a namespace. */
const NAMESPACED = "pods,pods/log,pods/status,services,services/status,configmaps,serviceaccounts,events";

const ROLES: Readonly<Record<string, readonly Record<string, unknown>[]>> = {
  "cluster-admin": [rule("*", "*", ["*"]), { nonResourceURLs: ["*"], verbs: ["*"] }],
  admin: [
    rule("core", `${NAMESPACED},secrets,pods/exec,pods/portforward,serviceaccounts/token`, ALL),
    rule("apps,coordination.k8s.io,discovery.k8s.io", "*", ALL),
    rule(RBAC, "roles,rolebindings", ALL),
    rule("core", "namespaces", READ),
  ],
  edit: [
    rule("core", `${NAMESPACED},secrets,pods/exec,pods/portforward,serviceaccounts/token`, ALL),
    rule("apps,coordination.k8s.io,discovery.k8s.io", "*", ALL),
    rule("core", "namespaces", READ),
  ],
  view: [rule("core", `${NAMESPACED},namespaces`, READ), rule("apps,coordination.k8s.io,discovery.k8s.io", "*", READ)],
  "system:basic-user": [
    rule("authorization.k8s.io", "selfsubjectaccessreviews,selfsubjectrulesreviews", ["create"]),
    rule("authentication.k8s.io", "selfsubjectreviews", ["create"]),
  ],
  "system:discovery": [
    {
      nonResourceURLs: [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
      ],
      verbs: ["get"],
    },
  ],
  "system:service-account-issuer-discovery": [
    {
      nonResourceURLs: [
        "/.well-known/openid-configuration",
        "/.well-known/openid-configuration/",
        "/openid/v1/jwks",
        "/openid/v1/jwks/",
      ],
      verbs: ["get"],
    },
  ],
  "system:auth-delegator": [
    rule("authentication.k8s.io", "tokenreviews", ["create"]),
    rule("authorization.k8s.io", "subjectaccessreviews", ["create"]),
  ],
  "system:node-proxier": [
    rule("core", "services,nodes,namespaces", READ),
    rule("discovery.k8s.io", "endpointslices", READ),
    rule("core", "events", ["create", "patch", "update"]),
  ],
};

/** Which roles groups have from the start. */
const BINDINGS: readonly [role: string, group: string][] = [
  ["cluster-admin", "system:masters"],
  ["system:basic-user", "system:authenticated"],
  ["system:discovery", "system:authenticated"],
  ["system:service-account-issuer-discovery", "system:serviceaccounts"],
  ["system:node-proxier", NODES_GROUP],
];

/** Makes the namespaces, roles and bindings that every cluster has, as far as they are missing. Others' changes stay. */
export async function bootstrap(engine: Engine, registry: Registry): Promise<void> {
  const options: WriteOptions = {
    user: SERVER_USER,
    namespace: "",
    subresource: "",
    dryRun: false,
    fieldManager: "",
    fieldValidation: "Ignore",
  };
  const wanted: [plural: string, object: Record<string, unknown>][] = [
    ...SYSTEM_NAMESPACES.map((name): [string, Record<string, unknown>] => ["namespaces", { metadata: { name } }]),
    ...Object.entries(ROLES).map(([name, rules]): [string, Record<string, unknown>] => [
      "clusterroles",
      { metadata: { name, ...MARK }, rules },
    ]),
    ...BINDINGS.map(([role, name]): [string, Record<string, unknown>] => [
      "clusterrolebindings",
      {
        metadata: { name: role, ...MARK },
        roleRef: { apiGroup: RBAC, kind: "ClusterRole", name: role },
        subjects: [{ apiGroup: RBAC, kind: "Group", name }],
      },
    ]),
  ];
  await engine.store.write((transaction) => {
    for (const [plural, object] of wanted) {
      const kind = kindOf(registry, plural);
      const given = {
        ...object,
        apiVersion: plural === "namespaces" ? "v1" : `${RBAC}/v1`,
        kind: kind.kind,
      } as unknown as KubeObject; // written above
      const key = {
        resource: plural === "namespaces" ? plural : `${plural}.${RBAC}`,
        namespace: "",
        name: given.metadata.name,
      };
      if (transaction.get(key) === undefined) engine.createIn(transaction, { kind, given, options });
    }
  });
}

function kindOf(registry: Registry, plural: string): Kind {
  const kind = registry.find(plural === "namespaces" ? "" : RBAC, "v1", plural);
  if (kind === undefined) throw new Error(`${plural} is not served`);
  return kind;
}
