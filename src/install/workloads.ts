import { AGENTS } from "#model/leaving";
import { PLUGIN_ACCOUNT, type InstalledRole } from "./access.ts";
import { OWN_VERSION, text, value, When, when, type Tree, type ValueAt } from "./template.ts";

/**
 * The pods of each role. The proxy's have the name by which the field's tools look for a node's proxy (`istioctl ztunnel-config`:
 * the DaemonSet `ztunnel`, the label `app`); their account is Veil's own.
 */
export const INSTALLED = {
  controller: { app: "veil-controller", account: "veil-controller", readyPort: 15014 },
  agent: { app: AGENTS, account: "veil-agent", readyPort: 9965 },
  proxy: { app: "ztunnel", account: "veil-proxy", readyPort: 15021 },
} as const;

/** Folder of the node that agent and proxy share: their sockets. */
const SOCKETS = "/run/veil";
/** Where container runtimes keep the network namespaces of pods, and name them to CNI plugins. */
const POD_NAMESPACES = "/run/netns";
/** Where the node's own kernel settings are seen: a container's /proc/sys cannot be written. */
const KERNEL_SETTINGS = "/host/proc/sys/net";
/** Where the agent keeps the CNI plugin on its node. */
export const withCni = { path: "cni.enabled" };
/** Where the agent makes tunnels to the other nodes, and the controller rotates their keys. */
export const withTunnels = { path: "wireguard.mode", equals: "on" };
/** Sockets of WireGuard devices that run in user space; they outlive the agent. */
const TUNNEL_SOCKETS = "/run/wireguard";
const TUN = "/dev/net/tun";
/** The folders that the container runtimes of platforms read; as Istio's profiles of platforms have them. */
const CNI_CONF_DIR = value("cni.confDir", {
  by: "platform",
  of: {
    k3s: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    microk8s: "/var/snap/microk8s/current/args/cni-network",
  },
  otherwise: "/etc/cni/net.d",
});
const CNI_BIN_DIR = value("cni.binDir", {
  by: "platform",
  of: {
    gke: "/home/kubernetes/bin",
    k3s: "/var/lib/rancher/k3s/data/cni",
    microk8s: "/var/snap/microk8s/current/opt/cni/bin",
  },
  otherwise: "/opt/cni/bin",
});
/** Where the controller runs: as a Deployment, or in the pods of the agents. */
export const inAgents = { path: "controller.mode", equals: "agents" };
export const asDeployment = { ...inAgents, not: true };
const GRPC = 15012;
const METRICS = 15014;

const controllerName = text`veil-controller.${value("namespace")}.svc`;

function metadata(name: string): { [key: string]: Tree } {
  return { name, namespace: value("namespace"), labels: { app: name } };
}

/** The controller's service, Deployment and disruption budget, unless it runs in the agents' pods. */
export function controllerObjects(): Tree[] {
  const { app } = INSTALLED.controller;
  const several = { path: "controller.replicas", above: 1 };
  return [
    when(asDeployment, {
      apiVersion: "v1",
      kind: "Service",
      metadata: metadata(app),
      spec: {
        clusterIP: when({ path: "controller.clusterIP" }, value("controller.clusterIP")),
        ipFamilyPolicy: when({ path: "ipFamily", equals: "dual" }, "PreferDualStack"),
        selector: { app },
        ports: [
          { name: "grpc", port: GRPC, targetPort: GRPC, protocol: "TCP" },
          { name: "metrics", port: METRICS, targetPort: METRICS, protocol: "TCP" },
        ],
      },
    }),
    when(asDeployment, {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: metadata(app),
      spec: {
        replicas: value("controller.replicas"),
        selector: { matchLabels: { app } },
        strategy: { type: "RollingUpdate", rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } },
        template: { metadata: { labels: { app }, annotations: scraped(METRICS) }, spec: controllerPod() },
      },
    }),
    when([asDeployment, several], {
      apiVersion: "policy/v1",
      kind: "PodDisruptionBudget",
      metadata: metadata(app),
      spec: { maxUnavailable: 1, selector: { matchLabels: { app } } },
    }),
  ];
}

function controllerPod(): Tree {
  const { app } = INSTALLED.controller;
  return {
    ...podOf("controller"),
    priorityClassName: "system-cluster-critical",
    terminationGracePeriodSeconds: 15,
    nodeSelector: value("controller.nodeSelector"),
    tolerations: value("controller.tolerations"),
    affinity: {
      podAntiAffinity: {
        preferredDuringSchedulingIgnoredDuringExecution: [
          {
            weight: 100,
            podAffinityTerm: { labelSelector: { matchLabels: { app } }, topologyKey: "kubernetes.io/hostname" },
          },
        ],
      },
    },
    containers: [controllerContainer()],
  };
}

/** Without any right on its node, in whichever pod it runs. */
function controllerContainer(): Tree {
  return {
    ...containerOf("controller"),
    args: commandLine("controller", {
      "--pod-name": "$(POD_NAME)",
      "--replica-app": when(inAgents, INSTALLED.agent.app),
      "--namespace": value("namespace"),
      "--node-account": [
        text`${value("namespace")}/veil-agent`,
        when({ path: "proxy.enabled", not: true }, text`${value("namespace")}/ztunnel`),
      ],
      "--trust-domain": value("trustDomain"),
      "--trust-bundle": value("trustBundle"),
      "--cluster-id": value("clusterId"),
      "--network": value("network"),
      "--cluster-domain": value("clusterDomain"),
      "--root-namespace": value("rootNamespace", value("namespace")),
      "--workload-life-hours": text`${value("ca.workloadLifeHours")}`,
      "--intermediate-life-days": text`${value("ca.intermediateLifeDays")}`,
      "--root-life-days": text`${value("ca.rootLifeDays")}`,
      "--listen": listening(GRPC),
      "--metrics-listen": listening(METRICS),
      "--log-level": value("logLevel"),
      "--enforce-waypoints": when({ path: "enforceWaypoints" }, true),
      "--wireguard": when(withTunnels, "on"),
    }),
    env: [fromField("POD_NAME", "metadata.name")],
    securityContext: {
      runAsNonRoot: true,
      runAsUser: 65_532,
      runAsGroup: 65_532,
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
      seccompProfile: { type: "RuntimeDefault" },
    },
  };
}

/** The agent: it looks for pods' namespaces among the node's processes, and enters them. */
export function agentObjects(): Tree[] {
  const { app, readyPort } = INSTALLED.agent;
  const pod = {
    ...podOf("agent"),
    ...onEachNode(),
    hostNetwork: true,
    hostPID: true,
    dnsPolicy: "ClusterFirstWithHostNet",
    hostAliases: when({ path: "controller.clusterIP" }, [
      { ip: value("controller.clusterIP"), hostnames: [controllerName] },
    ]),
    terminationGracePeriodSeconds: 10,
    containers: [agentContainer(), when(inAgents, controllerContainer())],
    volumes: [
      {
        name: "token",
        projected: {
          sources: [{ serviceAccountToken: { path: "istio-token", audience: "istio-ca", expirationSeconds: 43_200 } }],
        },
      },
      folder("sockets", SOCKETS),
      folder("pod-namespaces", POD_NAMESPACES),
      when({ path: "proxy.enabled", not: true }, folder("ztunnel", "/run/ztunnel")),
      when(withCni, folder("cni-conf", CNI_CONF_DIR)),
      when(withCni, folder("cni-bin", CNI_BIN_DIR)),
      when(withTunnels, folder("tunnel-sockets", TUNNEL_SOCKETS)),
      when(withTunnels, { name: "tun", hostPath: { path: TUN } }),
    ],
  };
  return [
    daemonSet(
      "agent",
      { pod, metricsPort: readyPort, rollingUpdate: { maxSurge: 0, maxUnavailable: value("nodesAtOnce") } },
      app,
    ),
  ];
}

function agentContainer(): Tree {
  return {
    ...containerOf("agent"),
    args: commandLine("agent", {
      "--namespace": value("namespace"),
      "--controller": [
        when(asDeployment, text`https://veil-controller.${value("namespace")}.svc:15012`),
        when(inAgents, `https://127.0.0.1:${GRPC}`),
      ],
      "--controller-name": when(inAgents, controllerName),
      "--trust-domain": value("trustDomain"),
      "--trust-bundle": value("trustBundle"),
      "--cluster-id": value("clusterId"),
      // Another ztunnel looks where it always does.
      "--zds-socket": when({ path: "proxy.enabled" }, `${SOCKETS}/ztunnel.sock`),
      "--ztunnel-listen": value("agent.ztunnelListen"),
      "--cni-conf-dir": when(withCni, CNI_CONF_DIR),
      "--cni-bin-dir": when(withCni, CNI_BIN_DIR),
      "--cni-account": when(withCni, PLUGIN_ACCOUNT),
      "--cni-strict": when([withCni, { path: "cni.strict" }], true),
      "--enrol-labels": text`${value("enrolLabels")}`,
      "--unenrol-deadline": text`${value("agent.unenrolDeadlineSeconds")}`,
      "--dns-capture": text`${value("dnsCapture")}`,
      "--wireguard": when(withTunnels, "on"),
      "--wireguard-strict": when(withTunnels, value("wireguard.strict")),
      "--wireguard-double": when([withTunnels, { path: "wireguard.double" }], true),
      "--metrics-listen": listening(INSTALLED.agent.readyPort),
      "--log-level": value("logLevel"),
    }),
    // The folders: for the doctor that somebody starts in it.
    env: [
      ...nodeEnvironment(),
      when(withCni, { name: "CNI_CONF_DIR", value: CNI_CONF_DIR }),
      when(withCni, { name: "CNI_BIN_DIR", value: CNI_BIN_DIR }),
    ],
    securityContext: asRoot(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]),
    volumeMounts: [
      { name: "token", mountPath: "/var/run/secrets/tokens", readOnly: true },
      { name: "sockets", mountPath: SOCKETS },
      // Those of pods that start later, too.
      { name: "pod-namespaces", mountPath: POD_NAMESPACES, mountPropagation: "HostToContainer" },
      when({ path: "proxy.enabled", not: true }, { name: "ztunnel", mountPath: "/run/ztunnel" }),
      // What the node mounts over them later, too.
      when(withCni, { name: "cni-conf", mountPath: CNI_CONF_DIR, mountPropagation: "HostToContainer" }),
      when(withCni, { name: "cni-bin", mountPath: CNI_BIN_DIR, mountPropagation: "HostToContainer" }),
      when(withTunnels, { name: "tunnel-sockets", mountPath: TUNNEL_SOCKETS }),
      when(withTunnels, { name: "tun", mountPath: TUN }),
    ],
  };
}

/** The proxy: a namespace of its own, so that two of them may run at once while one replaces the other. It asks the API nothing. */
export function proxyObjects(): Tree[] {
  const { app } = INSTALLED.proxy;
  const pod = {
    ...podOf("proxy"),
    ...onEachNode(),
    automountServiceAccountToken: false,
    terminationGracePeriodSeconds: value("proxy.terminationGracePeriodSeconds"),
    containers: [
      {
        ...containerOf("proxy"),
        args: commandLine("proxy", {
          "--zds-socket": `${SOCKETS}/ztunnel.sock`,
          "--trust-domain": value("trustDomain"),
          "--cluster-id": value("clusterId"),
          "--cluster-domain": value("clusterDomain"),
          "--network": value("network"),
          "--cluster-ranges": when({ path: "proxy.clusterRanges" }, text`${value("proxy.clusterRanges")}`),
          "--threads": value("proxy.threads"),
          "--original-source": text`${value("proxy.originalSource")}`,
          "--dns-capture": text`${value("dnsCapture")}`,
          "--records": value("proxy.records"),
          "--log-format": value("proxy.logFormat"),
          "--log-level": value("logLevel"),
        }),
        env: [
          ...nodeEnvironment(),
          { name: "TERMINATION_GRACE_PERIOD_SECONDS", value: text`${value("proxy.terminationGracePeriodSeconds")}` },
        ],
        securityContext: asRoot(["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]),
        volumeMounts: [
          { name: "sockets", mountPath: SOCKETS },
          { name: "kernel-settings", mountPath: KERNEL_SETTINGS },
        ],
      },
    ],
    volumes: [
      folder("sockets", SOCKETS),
      { name: "kernel-settings", hostPath: { path: "/proc/sys/net", type: "Directory" } },
    ],
  };
  const rollingUpdate = { maxSurge: value("nodesAtOnce"), maxUnavailable: 0 };
  return [when({ path: "proxy.enabled" }, daemonSet("proxy", { pod, metricsPort: 15_020, rollingUpdate }, app))];
}

interface DaemonSetParts {
  readonly pod: Tree;
  readonly metricsPort: number;
  readonly rollingUpdate: Tree;
}

function daemonSet(role: InstalledRole, { pod, metricsPort, rollingUpdate }: DaemonSetParts, app: string): Tree {
  return {
    apiVersion: "apps/v1",
    kind: "DaemonSet",
    metadata: metadata(INSTALLED[role].app),
    spec: {
      selector: { matchLabels: { app } },
      updateStrategy: { type: "RollingUpdate", rollingUpdate },
      template: { metadata: { labels: { app }, annotations: scraped(metricsPort) }, spec: pod },
    },
  };
}

function podOf(role: InstalledRole): { [key: string]: Tree } {
  return {
    serviceAccountName: INSTALLED[role].account,
    imagePullSecrets: value("image.pullSecrets"),
  };
}

function onEachNode(): { [key: string]: Tree } {
  return {
    priorityClassName: "system-node-critical",
    nodeSelector: value("agent.nodeSelector"),
    tolerations: value("agent.tolerations"),
  };
}

/** Tries of its probe after which a container counts as not ready. */
const READY_TRIES = 3;
/** Of a proxy that is busy: while its node is upgraded, one that does not count as ready is taken away at once. */
const PROXY_READY_TRIES = 15;

function containerOf(role: InstalledRole): { [key: string]: Tree } {
  return {
    name: role,
    image: text`${value("image.repository")}:${value("image.tag", OWN_VERSION)}`,
    imagePullPolicy: value("image.pullPolicy"),
    resources: value(`${role}.resources`),
    readinessProbe: {
      httpGet: { path: "/healthz/ready", port: INSTALLED[role].readyPort },
      periodSeconds: 2,
      timeoutSeconds: 5,
      failureThreshold: role === "proxy" ? PROXY_READY_TRIES : READY_TRIES,
    },
  };
}

/** Root on the node, with the rights that entering pods' namespaces takes, on a root file system that cannot be written. */
function asRoot(capabilities: readonly string[]): Tree {
  return {
    runAsUser: 0,
    runAsGroup: 0,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ["ALL"], add: capabilities },
    appArmorProfile: { type: "Unconfined" },
  };
}

function nodeEnvironment(): Tree[] {
  return [
    fromField("NODE_NAME", "spec.nodeName"),
    fromField("POD_NAME", "metadata.name"),
    fromField("POD_NAMESPACE", "metadata.namespace"),
    fromField("INSTANCE_IP", "status.podIP"),
  ];
}

function fromField(name: string, fieldPath: string): Tree {
  return { name, valueFrom: { fieldRef: { fieldPath } } };
}

function folder(name: string, path: string | ValueAt): Tree {
  return { name, hostPath: { path, type: "DirectoryOrCreate" } };
}

function scraped(port: number): Tree {
  return { "prometheus.io/scrape": "true", "prometheus.io/port": String(port) };
}

/** A role with its flags. One that is `true` has no word behind it; a list is the flag several times. */
function commandLine(role: InstalledRole, flags: Readonly<Record<string, Tree>>): Tree[] {
  return [
    role,
    ...Object.entries(flags).flatMap(([flag, given]) => {
      const choices: readonly Tree[] = Array.isArray(given) ? given : [given];
      return choices.flatMap((choice) => wordsOf(flag, choice));
    }),
  ];
}

function wordsOf(flag: string, given: Tree): Tree[] {
  if (given instanceof When) return wordsOf(flag, given.tree).map((word) => when(given.conditions, word));
  return given === true ? [flag] : [flag, given];
}

/** A socket of IPv6 takes both families. */
function listening(port: number): Tree {
  const v4 = { path: "ipFamily", equals: "IPv4" };
  return [when(v4, `0.0.0.0:${port}`), when({ ...v4, not: true }, `[::]:${port}`)];
}
