import { DEFAULT_TRUST_BUNDLE } from "#model/authority-objects";
import { ENROL_LABELS } from "#model/enrol-labels";
import type { Condition } from "./template.ts";

/** One value: what it is for, and what it may be. */
export interface ValueSpec {
  /** With dots, as `controller.replicas`. */
  readonly path: string;
  readonly about: string;
  readonly default: string | number | boolean | readonly unknown[] | Readonly<Record<string, unknown>>;
  readonly oneOf?: readonly string[];
  /** A regular expression that a text, or each text of a list, matches as a whole. */
  readonly pattern?: string;
  /** Of a number. */
  readonly range?: readonly [least: number, most: number];
}

const DNS_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
const DNS_NAME = `${DNS_LABEL}([.]${DNS_LABEL})*`;
const ANY_TAINT = [{ operator: "Exists" }];
const LEVELS = ["error", "warn", "info", "debug", "trace"];

/** Everything that can be set of an installation, in the order of values.yaml. What is not here, Veil cannot do yet. */
export const VALUE_TABLE: readonly ValueSpec[] = [
  {
    path: "namespace",
    default: "veil-system",
    pattern: DNS_LABEL,
    about: "Where Veil lives. Its own: nothing else belongs in it, as its pods may do much on their nodes.",
  },
  {
    path: "platform",
    default: "generic",
    oneOf: ["generic", "azure", "calico", "cilium", "gke", "k3s", "microk8s"],
    about:
      "What the cluster runs on, for what is in another place there. generic, azure, calico, cilium: Kubernetes' usual folders. k3s, microk8s: their folders. gke: its folder of plugins, and the quota without which critical pods run in kube-system alone. What else each needs is in docs/platforms.md.",
  },
  {
    path: "image.repository",
    default: "docker.io/local/veil",
    pattern: "[^\\s:@]+(:[0-9]+/[^\\s:@]+)?",
    about: "The image of all roles (deploy/Dockerfile).",
  },
  { path: "image.tag", default: "", pattern: "[\\w.-]{0,128}", about: "Its tag. Empty: the chart's own version." },
  {
    path: "image.pullPolicy",
    default: "IfNotPresent",
    oneOf: ["Always", "IfNotPresent", "Never"],
    about: "When a node fetches the image.",
  },
  {
    path: "image.pullSecrets",
    default: [],
    about: "Secrets in Veil's namespace with the registry's credentials, as `- name: registry`.",
  },
  {
    path: "trustDomain",
    default: "cluster.local",
    pattern: "[a-z0-9._-]{1,255}",
    about: "Trust domain of all identities: spiffe://TRUST-DOMAIN/ns/…/sa/…. A change needs a new authority.",
  },
  {
    path: "trustBundle",
    default: DEFAULT_TRUST_BUNDLE,
    pattern: DNS_NAME,
    about:
      "Name of the ConfigMap with the roots, which the controller keeps in each namespace for who mounts it there. One that is somebody else's, such as Istio's, is left alone: Veil's own parts use veil-ca-root-cert in Veil's namespace.",
  },
  {
    path: "clusterId",
    default: "Kubernetes",
    pattern: "[\\w.-]+",
    about: "Name of this cluster, the first part of workloads' names.",
  },
  {
    path: "network",
    default: "",
    pattern: "[\\w.-]*",
    about: "Network that the pods' addresses belong to, where there are several.",
  },
  { path: "clusterDomain", default: "cluster.local", pattern: DNS_NAME, about: "Domain of the names of services." },
  {
    path: "rootNamespace",
    default: "",
    pattern: `(${DNS_LABEL})?`,
    about: "Policies in this namespace are about the whole mesh. Empty: Veil's own namespace. It must exist.",
  },
  {
    path: "mode",
    default: "permissive",
    oneOf: ["permissive", "strict"],
    about:
      "permissive: plain connections from pods that are not enrolled are let in, and recorded as such. strict: enrolled pods refuse them (a PeerAuthentication for the whole mesh in the root namespace).",
  },
  {
    path: "enforceWaypoints",
    default: false,
    about: "Workloads behind a waypoint let in nobody but it and whom policies allow.",
  },
  {
    path: "enrolLabels",
    default: ENROL_LABELS,
    pattern: "istio[.]io/dataplane-mode|io[.]cilium/mtls-enabled",
    about:
      "Labels of pods and namespaces by which agents enrol. Where Istio's ambient mode or Cilium's mutual TLS runs, leave out theirs. A CNI plugin whose agent is away holds pods with either.",
  },
  {
    path: "dnsCapture",
    default: true,
    about:
      "Whether the DNS questions of enrolled pods are answered on their node; a pod may say otherwise by its annotation ambient.istio.io/dns-capture.",
  },
  {
    path: "ipFamily",
    default: "IPv4",
    oneOf: ["IPv4", "IPv6", "dual"],
    about: "Address families on which controller and agent listen.",
  },
  { path: "logLevel", default: "info", oneOf: LEVELS, about: "How much all roles log." },
  {
    path: "ca.workloadLifeHours",
    default: 24,
    range: [1, 168],
    about: "Life of workloads' certificates; they are renewed at half of it.",
  },
  {
    path: "ca.intermediateLifeDays",
    default: 90,
    range: [15, 3650],
    about: "Life of the intermediate that signs them; it is renewed at half of it. Counts when the next one is made.",
  },
  {
    path: "ca.rootLifeDays",
    default: 365,
    range: [30, 7300],
    about: "Life of the root. Counts when one is made: with the first installation.",
  },
  {
    path: "controller.mode",
    default: "deployment",
    oneOf: ["deployment", "agents"],
    about:
      "Where the controller runs. deployment: replicas of its own. agents: beside the agent on every node, for small clusters: no control plane to run, each node is served by its own, one writes; every node's agent may then read the authority's keys.",
  },
  {
    path: "controller.replicas",
    default: 2,
    range: [1, 20],
    about:
      "Replicas of the controller, as a deployment. All serve the nodes; one, elected by a Lease, also writes. With more than one, a PodDisruptionBudget lets one go at a time.",
  },
  {
    path: "controller.clusterIP",
    default: "",
    pattern: "[0-9a-fA-F.:]*",
    about:
      "A fixed address of the controller's service, by which agents find it without the cluster's DNS. Empty: the cluster chooses, and agents ask the DNS.",
  },
  {
    path: "controller.resources",
    default: { requests: { cpu: "100m", memory: "256Mi" } },
    about: "Requests and limits of a replica.",
  },
  {
    path: "controller.nodeSelector",
    default: { "kubernetes.io/os": "linux" },
    about: "Labels of the nodes on which it may run, as a deployment.",
  },
  { path: "controller.tolerations", default: [], about: "Taints that it tolerates, as a deployment." },
  {
    path: "nodesAtOnce",
    default: "1%",
    pattern: "([1-9][0-9]?|100)%",
    about:
      "Share of the nodes, rounded up, on which an upgrade replaces agent or proxy at a time. A node takes some 10 seconds.",
  },
  {
    path: "agent.unenrolDeadlineSeconds",
    default: 3600,
    range: [0, 9_999_999],
    about: "How long connections may go on after a pod's label went.",
  },
  {
    path: "agent.ztunnelListen",
    default: "none",
    pattern: "none|[^\\s:]+:[0-9]{1,5}",
    about:
      "host:port on each node at which the agent serves another ztunnel (gRPC over TLS), for proxy.enabled=false. none: nowhere.",
  },
  {
    path: "agent.resources",
    default: { requests: { cpu: "50m", memory: "128Mi" } },
    about: "Requests and limits on each node.",
  },
  {
    path: "agent.nodeSelector",
    default: { "kubernetes.io/os": "linux" },
    about: "Labels of the nodes whose pods can be enrolled; the proxy runs on the same.",
  },
  { path: "agent.tolerations", default: ANY_TAINT, about: "Taints that agent and proxy tolerate." },
  {
    path: "wireguard.mode",
    default: "off",
    oneOf: ["off", "on"],
    about:
      "Whether what mutual TLS does not carry (UDP, ICMP, pods that are not enrolled) goes from node to node through WireGuard. Needs UDP ports 51871 and 51872 between all nodes.",
  },
  {
    path: "wireguard.strict",
    default: "off",
    oneOf: ["off", "audit", "on"],
    about:
      "What would leave a node in clear for another node's pods is dropped and counted (on), counted (audit), or let go (off).",
  },
  {
    path: "wireguard.double",
    default: false,
    about:
      "Whether what mutual TLS protects goes through WireGuard, too, and is encrypted twice: for auditors who ask for it, at the price of both. Connections that live keep their way.",
  },
  {
    path: "wireguard.interval",
    default: "auto",
    pattern: "auto|[1-9][0-9]{0,6}[smh]",
    about:
      "Between two new keys of every node, as 120s, 10m or 6h. auto: 120 s up to some 1,000 nodes, more for larger clusters.",
  },
  {
    path: "cni.enabled",
    default: true,
    about:
      "Whether each agent keeps Veil's plugin in the node's CNI configuration: a pod's first process then starts only when the pod is enrolled. false: pods are enrolled within moments of their start.",
  },
  {
    path: "cni.confDir",
    default: "",
    pattern: "(/[^\\s:]+)?",
    about: "The node's folder of CNI configurations. Empty: the platform's, usually /etc/cni/net.d.",
  },
  {
    path: "cni.binDir",
    default: "",
    pattern: "(/[^\\s:]+)?",
    about: "The node's folder of CNI plugins. Empty: the platform's, usually /opt/cni/bin.",
  },
  {
    path: "cni.strict",
    default: false,
    about: "While a node's agent is away no pod at all starts there, not only none that is enrolled.",
  },
  {
    path: "proxy.enabled",
    default: true,
    about: "Whether Veil's own proxy carries the connections. false: another ztunnel does.",
  },
  {
    path: "proxy.threads",
    default: "0",
    pattern: "[0-9]{1,4}|[0-9]{1,2}%|100%",
    about: "Data threads: a number, a share of the processors (50%), or 0 for all.",
  },
  {
    path: "proxy.clusterRanges",
    default: [],
    pattern: "[0-9a-fA-F.:]+/[0-9]{1,3}",
    about:
      "The cluster's own addresses (pods and services), as 10.244.0.0/16. Connections to unknown addresses in them are held until it is known who has them. Empty: the private ranges.",
  },
  { path: "proxy.originalSource", default: true, about: "Whether applications see their clients' addresses." },
  {
    path: "proxy.records",
    default: "counted",
    oneOf: ["counted", "required"],
    about: "While nobody reads the access log: drop and count records, or refuse new connections.",
  },
  { path: "proxy.logFormat", default: "plain", oneOf: ["plain", "json"], about: "How access records are written." },
  {
    path: "proxy.terminationGracePeriodSeconds",
    default: 30,
    range: [2, 86_400],
    about: "How long a proxy that is replaced may take; its connections may go on until 5 s before that.",
  },
  {
    path: "proxy.resources",
    default: { requests: { cpu: "200m", memory: "512Mi" } },
    about: "Requests and limits on each node. Without a memory limit it takes what it needs.",
  },
];

/** Values that contradict each other, and why. */
export const CONTRADICTIONS: readonly { readonly conditions: readonly Condition[]; readonly reason: string }[] = [
  {
    conditions: [
      { path: "proxy.enabled", not: true },
      { path: "agent.ztunnelListen", equals: "none" },
    ],
    reason:
      "proxy.enabled is false and agent.ztunnelListen is none: nobody would carry the connections of enrolled pods",
  },
  {
    conditions: [{ path: "cni.enabled", not: true }, { path: "cni.strict" }],
    reason: "cni.strict is true and cni.enabled is false: nothing would hold pods back",
  },
  {
    conditions: [
      { path: "wireguard.mode", equals: "off" },
      { path: "wireguard.strict", equals: "on" },
    ],
    reason: "wireguard.mode is off and wireguard.strict is on: there is nothing for packets to go through",
  },
  {
    conditions: [{ path: "enrolLabels", not: true }],
    reason: "enrolLabels is empty: nothing could be enrolled",
  },
  {
    conditions: [{ path: "ca.intermediateLifeDays", above: "ca.rootLifeDays" }],
    reason: "ca.intermediateLifeDays is more than ca.rootLifeDays: nothing outlives what signed it",
  },
  {
    conditions: [{ path: "controller.mode", equals: "agents" }, { path: "controller.clusterIP" }],
    reason: "controller.mode is agents and controller.clusterIP is set: agents ask the controller of their own node",
  },
  {
    conditions: [
      { path: "controller.mode", equals: "agents" },
      { path: "agent.ztunnelListen", matches: ":15012$" },
    ],
    reason:
      "controller.mode is agents and agent.ztunnelListen has port 15012: the node's controller listens there, choose another",
  },
  {
    conditions: [
      { path: "ipFamily", equals: "IPv4" },
      { path: "controller.clusterIP", matches: ":" },
    ],
    reason: "ipFamily is IPv4 and controller.clusterIP is an address of IPv6",
  },
  {
    conditions: [
      { path: "ipFamily", equals: "IPv6" },
      { path: "controller.clusterIP", matches: "[.]" },
    ],
    reason: "ipFamily is IPv6 and controller.clusterIP is an address of IPv4",
  },
  {
    conditions: [{ path: "ipFamily", equals: "dual" }, { path: "controller.clusterIP" }],
    reason:
      "ipFamily is dual and controller.clusterIP is one address: a dual service has one of each family, leave it to the cluster",
  },
];
