import { resources, type KubeObject, type PodTemplateSpec, type ResourceRef } from "#kube";
import { NETWORKING_KINDS, POLICY_KINDS } from "./istio-kinds.ts";
import { POD_NETNS_FOLDER, POD_RANGE, SERVICE_RANGE } from "./layout.ts";

/** Where Veil is installed. */
export const VEIL_NAMESPACE = "veil-system";

/**
 * The roles that are pods, and where each says that it is ready. The proxy's pods have the name by which the field's tools
 * look for a node's proxy (`istioctl ztunnel-config`: the DaemonSet `ztunnel`, the label `app`); their account is Veil's own.
 */
export const VEIL_ROLES = {
  controller: { app: "veil-controller", account: "veil-controller", readyPort: 15014 },
  agent: { app: "veil-agent", account: "veil-agent", readyPort: 9965 },
  proxy: { app: "ztunnel", account: "veil-proxy", readyPort: 15021 },
} as const;

export type VeilRole = keyof typeof VEIL_ROLES;

export const READY_PATH = "/healthz/ready";

/** What the manifests depend on. */
export interface InstallValues {
  /** Start script of Veil; pods run on the machine's own file system, so it is the same everywhere. */
  readonly program: string;
  /** For Node's cache of compiled code: without it every role compiles its sources again. */
  readonly compileCache: string;
}

/** One object and where it is served. */
export interface Manifest {
  readonly ref: ResourceRef;
  readonly object: KubeObject;
}

function manifest<T extends KubeObject>(ref: ResourceRef<T>, object: T): Manifest {
  return { ref, object };
}

interface Rule {
  apiGroups: string[];
  resources: string[];
  verbs: string[];
}

const READ = ["get", "list", "watch"];
const RBAC = "rbac.authorization.k8s.io";

const RULES: Readonly<Record<VeilRole, Rule[]>> = {
  controller: [
    { apiGroups: [""], resources: ["pods", "services", "namespaces", "nodes", "serviceaccounts"], verbs: READ },
    { apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: READ },
    { apiGroups: ["gateway.networking.k8s.io"], resources: ["gateways", "gatewayclasses"], verbs: READ },
    { apiGroups: ["networking.istio.io"], resources: ["serviceentries", "workloadentries"], verbs: READ },
    { apiGroups: ["networking.istio.io"], resources: ["serviceentries/status"], verbs: ["patch"] },
    { apiGroups: ["security.istio.io"], resources: ["authorizationpolicies", "peerauthentications"], verbs: READ },
    { apiGroups: ["security.istio.io"], resources: ["authorizationpolicies/status"], verbs: ["patch"] },
    { apiGroups: [""], resources: ["configmaps"], verbs: [...READ, "create", "update", "patch"] },
    { apiGroups: ["", "events.k8s.io"], resources: ["events"], verbs: ["create", "patch"] },
    { apiGroups: ["authentication.k8s.io"], resources: ["tokenreviews"], verbs: ["create"] },
    { apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: [...READ, "create", "update", "patch"] },
  ],
  agent: [
    { apiGroups: [""], resources: ["pods", "namespaces", "nodes"], verbs: READ },
    { apiGroups: [""], resources: ["pods"], verbs: ["patch"] },
    { apiGroups: ["", "events.k8s.io"], resources: ["events"], verbs: ["create", "patch"] },
  ],
  proxy: [],
};

/** Only in Veil's own namespace: the authority's keys, and the roots by which agents know the controller. */
const INSIDE_RULES: Readonly<Record<VeilRole, Rule[]>> = {
  controller: [{ apiGroups: [""], resources: ["secrets"], verbs: [...READ, "create", "update", "patch"] }],
  agent: [{ apiGroups: [""], resources: ["configmaps"], verbs: READ }],
  proxy: [],
};

/** All objects of an installation, in the order in which they have to be made. */
export function veilManifests(values: InstallValues): Manifest[] {
  const roles: readonly VeilRole[] = ["controller", "agent", "proxy"];
  return [
    manifest(resources.namespaces, { metadata: { name: VEIL_NAMESPACE } }),
    ...[...POLICY_KINDS, ...NETWORKING_KINDS].map((kind) => manifest(resources.customResourceDefinitions, kind)),
    ...roles.flatMap(accountOf),
    ...roles.flatMap(accessInside),
    controllerService(),
    controllerDeployment(values),
    daemonSet("agent", values),
    daemonSet("proxy", values),
  ];
}

function subjectsOf(role: VeilRole): { kind: string; name: string; namespace: string }[] {
  return [{ kind: "ServiceAccount", name: VEIL_ROLES[role].account, namespace: VEIL_NAMESPACE }];
}

function accountOf(role: VeilRole): Manifest[] {
  const name = VEIL_ROLES[role].account;
  // Every node's agent has this account: the API lets each write only what is its own node's.
  const annotations: Record<string, string> = role === "agent" ? { "veil.dev/node-bound": "true" } : {};
  const account = manifest(resources.serviceAccounts, { metadata: { name, namespace: VEIL_NAMESPACE, annotations } });
  const rules = RULES[role];
  if (rules.length === 0) return [account];
  return [
    account,
    manifest(resources.clusterRoles, { metadata: { name }, rules }),
    manifest(resources.clusterRoleBindings, {
      metadata: { name },
      roleRef: { apiGroup: RBAC, kind: "ClusterRole", name },
      subjects: subjectsOf(role),
    }),
  ];
}

function accessInside(role: VeilRole): Manifest[] {
  const rules = INSIDE_RULES[role];
  const { account: name } = VEIL_ROLES[role];
  const metadata = { name, namespace: VEIL_NAMESPACE };
  if (rules.length === 0) return [];
  return [
    manifest(resources.roles, { metadata, rules }),
    manifest(resources.roleBindings, {
      metadata,
      roleRef: { apiGroup: RBAC, kind: "Role", name },
      subjects: subjectsOf(role),
    }),
  ];
}

function controllerService(): Manifest {
  const { app } = VEIL_ROLES.controller;
  return manifest(resources.services, {
    metadata: { name: app, namespace: VEIL_NAMESPACE, labels: { app } },
    spec: {
      selector: { app },
      ports: [
        { name: "grpc", port: 15012, targetPort: 15012, protocol: "TCP" },
        { name: "metrics", port: 15014, targetPort: 15014, protocol: "TCP" },
      ],
    },
  });
}

function controllerDeployment(values: InstallValues): Manifest {
  const { app } = VEIL_ROLES.controller;
  return manifest(resources.deployments, {
    metadata: { name: app, namespace: VEIL_NAMESPACE, labels: { app } },
    spec: {
      replicas: 1,
      selector: { matchLabels: { app } },
      template: podTemplate("controller", values),
    },
  });
}

function daemonSet(role: VeilRole, values: InstallValues): Manifest {
  const { app } = VEIL_ROLES[role];
  return manifest(resources.daemonSets, {
    metadata: { name: app, namespace: VEIL_NAMESPACE, labels: { app } },
    spec: { selector: { matchLabels: { app } }, template: podTemplate(role, values) },
  });
}

function argumentsOf(role: VeilRole): string[] {
  const flags: Readonly<Record<VeilRole, string[]>> = {
    controller: [],
    agent: ["--pod-netns-dir", POD_NETNS_FOLDER],
    proxy: ["--cluster-ranges", `${POD_RANGE},${SERVICE_RANGE}`],
  };
  return [role, ...flags[role]];
}

/** Folders of the node that a role shares with the other one: sockets, and where pods' namespaces are. */
const FOLDERS: Readonly<Record<VeilRole, readonly { name: string; path: string }[]>> = {
  controller: [],
  agent: [
    { name: "veil", path: "/run/veil" },
    { name: "ztunnel", path: "/run/ztunnel" },
    { name: "pod-netns", path: POD_NETNS_FOLDER },
  ],
  proxy: [
    { name: "veil", path: "/run/veil" },
    { name: "ztunnel", path: "/run/ztunnel" },
  ],
};

function podTemplate(role: VeilRole, values: InstallValues): PodTemplateSpec {
  const { app, account, readyPort } = VEIL_ROLES[role];
  const folders = FOLDERS[role];
  const fromField = (name: string, fieldPath: string) => ({ name, valueFrom: { fieldRef: { fieldPath } } });
  return {
    metadata: { labels: { app } },
    spec: {
      serviceAccountName: account,
      hostNetwork: role !== "controller",
      dnsPolicy: role === "controller" ? "ClusterFirst" : "ClusterFirstWithHostNet",
      terminationGracePeriodSeconds: 10,
      containers: [
        {
          name: role,
          image: "veil",
          command: [values.program, ...argumentsOf(role)],
          env: [
            fromField("NODE_NAME", "spec.nodeName"),
            fromField("POD_NAME", "metadata.name"),
            fromField("POD_NAMESPACE", "metadata.namespace"),
            fromField("INSTANCE_IP", "status.podIP"),
            { name: "NODE_COMPILE_CACHE", value: values.compileCache },
            { name: "VEIL_NO_INSTALL", value: "1" },
          ],
          readinessProbe: { httpGet: { path: READY_PATH, port: readyPort }, periodSeconds: 1, failureThreshold: 3 },
          volumeMounts: [
            { name: "istio-token", mountPath: "/var/run/secrets/tokens", readOnly: true },
            ...folders.map(({ name, path }) => ({ name, mountPath: path, mountPropagation: "HostToContainer" })),
          ],
        },
      ],
      volumes: [
        {
          name: "istio-token",
          projected: {
            sources: [
              { serviceAccountToken: { path: "istio-token", audience: "istio-ca", expirationSeconds: 43_200 } },
            ],
          },
        },
        ...folders.map(({ name, path }) => ({ name, hostPath: { path, type: "Directory" } })),
      ],
    },
  };
}
