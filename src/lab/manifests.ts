import {
  CLUSTER_RULES,
  INSIDE_RULES,
  INSTALLED,
  NETWORKING_KINDS,
  POLICY_KINDS,
  WIREGUARD_KINDS,
  WIREGUARD_RULES,
  type AccessRule,
} from "#install";
import { resources, type KubeObject, type PodTemplateSpec, type ResourceRef } from "#kube";
import { POD_NETNS_FOLDER, POD_RANGE, SERVICE_RANGE } from "./layout.ts";

/** Where Veil is installed. */
export const VEIL_NAMESPACE = "veil-system";

/** The roles that are pods, and where each says that it is ready. */
export const VEIL_ROLES = INSTALLED;

export type VeilRole = keyof typeof VEIL_ROLES;

export const READY_PATH = "/healthz/ready";

/** What the manifests depend on. */
export interface InstallValues {
  /** Start script of Veil; pods run on the machine's own file system, so it is the same everywhere. */
  readonly program: string;
  /** For Node's cache of compiled code: without it every role compiles its sources again. */
  readonly compileCache: string;
  /** `wireguard-go` for tunnels between the nodes; undefined: none are made. */
  readonly wireguard?: string | undefined;
}

/** One object and where it is served. */
export interface Manifest {
  readonly ref: ResourceRef;
  readonly object: KubeObject;
}

function manifest<T extends KubeObject>(ref: ResourceRef<T>, object: T): Manifest {
  return { ref, object };
}

const RBAC = "rbac.authorization.k8s.io";

/** All objects of an installation, in the order in which they have to be made. */
export function veilManifests(values: InstallValues): Manifest[] {
  const roles: readonly VeilRole[] = ["controller", "agent", "proxy"];
  return [
    manifest(resources.namespaces, { metadata: { name: VEIL_NAMESPACE } }),
    ...[...POLICY_KINDS, ...NETWORKING_KINDS, ...WIREGUARD_KINDS].map((kind) =>
      manifest(resources.customResourceDefinitions, kind),
    ),
    ...roles.flatMap((role) => accountOf(role, values)),
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

function accountOf(role: VeilRole, { wireguard }: InstallValues): Manifest[] {
  const name = VEIL_ROLES[role].account;
  // Every node's agent has this account: the API lets each write only what is its own node's.
  const annotations: Record<string, string> = role === "agent" ? { "veil.dev/node-bound": "true" } : {};
  const account = manifest(resources.serviceAccounts, { metadata: { name, namespace: VEIL_NAMESPACE, annotations } });
  const rules = asRules([...CLUSTER_RULES[role], ...(wireguard === undefined ? [] : WIREGUARD_RULES[role])]);
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

/** The client's types are mutable. */
function asRules(rules: readonly AccessRule[]) {
  return rules.map(({ apiGroups, resources, resourceNames, verbs }) => ({
    apiGroups: [...apiGroups],
    resources: [...resources],
    ...(resourceNames !== undefined && { resourceNames: [...resourceNames] }),
    verbs: [...verbs],
  }));
}

function accessInside(role: VeilRole): Manifest[] {
  const rules = asRules(INSIDE_RULES[role]);
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

/** Labs have the same tunnels on any kernel. */
const TUNNELS = ["--wireguard", "on", "--wireguard-backend", "userspace", "--wireguard-program"];

function argumentsOf(role: VeilRole, { wireguard }: InstallValues): string[] {
  const tunnels = wireguard === undefined ? [] : [...TUNNELS, wireguard];
  const flags: Readonly<Record<VeilRole, string[]>> = {
    controller: wireguard === undefined ? [] : ["--wireguard", "on"],
    agent: ["--pod-netns-dir", POD_NETNS_FOLDER, ...tunnels],
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
    { name: "wireguard", path: "/run/wireguard" },
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
      // What runs a tunnel's device outlives the agent that has started it.
      ...(role === "agent" && values.wireguard !== undefined && { hostPID: true }),
      dnsPolicy: role === "controller" ? "ClusterFirst" : "ClusterFirstWithHostNet",
      terminationGracePeriodSeconds: 10,
      containers: [
        {
          name: role,
          image: "veil",
          command: [values.program, ...argumentsOf(role, values)],
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
