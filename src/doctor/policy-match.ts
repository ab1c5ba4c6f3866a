import { cidrContains, findIp, parseCidr, type Cidr } from "#base/ip";
import { selectsLabels, type Pod } from "#kube";
import type { NetworkPolicy, PolicyPeer, PolicyPort } from "./kinds.ts";
import type { Labels } from "./pods.ts";

/** A pod as NetworkPolicies see it. */
export interface PolicyPod {
  readonly namespace: string;
  readonly labels: Labels;
  readonly namespaceLabels: Labels;
  readonly ips: readonly string[];
  /** Its named TCP ports. */
  readonly ports: ReadonlyMap<string, number>;
}

export type Direction = "ingress" | "egress";

/** A rule of a policy, in one shape for both directions. */
export interface PolicyRule {
  readonly policy: NetworkPolicy;
  /** Undefined: everybody. */
  readonly peers: readonly PolicyPeer[] | undefined;
  /** Undefined: all ports. */
  readonly ports: readonly PolicyPort[] | undefined;
}

/** What of a pod policies look at. */
export function policyPod(pod: Pod, namespaceLabels: Labels): PolicyPod {
  const { namespace = "", labels = {} } = pod.metadata ?? {};
  return {
    namespace,
    labels,
    namespaceLabels: { "kubernetes.io/metadata.name": namespace, ...namespaceLabels },
    ips: pod.status?.podIPs?.map(({ ip }) => ip) ?? [],
    ports: namedPorts(pod),
  };
}

function namedPorts({ spec }: Pod): ReadonlyMap<string, number> {
  const containers = [...(spec?.containers ?? []), ...(spec?.initContainers ?? [])];
  const named = containers
    .flatMap(({ ports = [] }) => ports)
    .flatMap(({ name, containerPort, protocol = "TCP" }) =>
      name === undefined || protocol !== "TCP" ? [] : [[name, containerPort] as const],
    );
  return new Map(named);
}

/** The rules that say who is let through to or from a pod; undefined when no policy selects it, and everybody is. */
export function rulesFor(
  pod: PolicyPod,
  policies: readonly NetworkPolicy[],
  direction: Direction,
): readonly PolicyRule[] | undefined {
  const selecting = policies.filter(
    (policy) =>
      policy.metadata?.namespace === pod.namespace &&
      isAbout(policy, direction) &&
      selectsLabels(policy.spec?.podSelector ?? {}, pod.labels),
  );
  if (selecting.length === 0) return undefined;
  return selecting.flatMap((policy) => rulesOf(policy, direction));
}

/** Without policyTypes a policy is about what comes in, and about what goes out if it has rules for that. */
function isAbout({ spec }: NetworkPolicy, direction: Direction): boolean {
  const { policyTypes, egress } = spec ?? {};
  if (policyTypes !== undefined && policyTypes.length > 0) {
    return policyTypes.includes(direction === "ingress" ? "Ingress" : "Egress");
  }
  return direction === "ingress" || (egress !== undefined && egress.length > 0);
}

/** An empty list of peers or ports is as none: all of them. */
function rulesOf(policy: NetworkPolicy, direction: Direction): PolicyRule[] {
  const { ingress = [], egress = [] } = policy.spec ?? {};
  const rules =
    direction === "ingress"
      ? ingress.map(({ from, ports }) => ({ peers: from, ports }))
      : egress.map(({ to, ports }) => ({ peers: to, ports }));
  return rules.map(({ peers, ports }) => ({ policy, peers: filled(peers), ports: filled(ports) }));
}

function filled<T>(list: readonly T[] | undefined): readonly T[] | undefined {
  return list === undefined || list.length === 0 ? undefined : list;
}

/** Whether a rule of a policy lets a peer through, whatever the port. */
export function admits({ policy, peers }: PolicyRule, peer: PolicyPod): boolean {
  return peers === undefined || peers.some((one) => isPeer(one, peer, policy.metadata?.namespace ?? ""));
}

/** A podSelector without a namespaceSelector is about the policy's own namespace. */
function isPeer({ ipBlock, podSelector, namespaceSelector }: PolicyPeer, pod: PolicyPod, namespace: string): boolean {
  if (ipBlock !== undefined) {
    const within = (text: string): boolean => pod.ips.some((ip) => contains(text, ip));
    return within(ipBlock.cidr) && !(ipBlock.except ?? []).some(within);
  }
  const inNamespace =
    namespaceSelector === undefined
      ? pod.namespace === namespace
      : selectsLabels(namespaceSelector, pod.namespaceLabels);
  return inNamespace && (podSelector === undefined || selectsLabels(podSelector, pod.labels));
}

function contains(text: string, ip: string): boolean {
  const cidr = readCidr(text);
  const address = findIp(ip);
  return cidr !== undefined && address !== undefined && cidrContains(cidr, address);
}

function readCidr(text: string): Cidr | undefined {
  try {
    return parseCidr(text);
  } catch {
    return undefined; // the API has let it in; what nobody can read contains nothing
  }
}

/** Whether a rule's ports hold a TCP port of the pod that is connected to, whose ports its names mean. */
export function coversPort({ ports }: PolicyRule, port: number, server: PolicyPod): boolean {
  if (ports === undefined) return true;
  return ports.some(({ protocol = "TCP", port: from, endPort }) => {
    if (protocol !== "TCP") return false;
    if (from === undefined) return true;
    const first = typeof from === "string" ? (server.ports.get(from) ?? -1) : from;
    return first <= port && port <= (endPort ?? first) && first >= 0;
  });
}

/** Whether a rule lets any TCP through to that pod. */
export function coversTcp({ ports }: PolicyRule, server: PolicyPod): boolean {
  if (ports === undefined) return true;
  return ports.some(
    ({ protocol = "TCP", port }) => protocol === "TCP" && (typeof port !== "string" || server.ports.has(port)),
  );
}
