import { parseCidr, type Cidr, type IpAddress } from "#base/ip";
import type { HboneLimits } from "#hbone";
import type { AccessFormat } from "#model/access-log";

/** Where pods' outbound connections are redirected to. */
export const OUTBOUND_PORT = 15001;
/** Where plaintext that arrives at a pod is redirected to. */
export const PLAINTEXT_PORT = 15006;
/** Where HBONE arrives, dialled directly by other proxies. */
export const INBOUND_PORT = 15008;
/** Nobody may ask the proxy to dial these: it would talk to itself. */
export const OWN_PORTS: ReadonlySet<number> = new Set([OUTBOUND_PORT, PLAINTEXT_PORT, INBOUND_PORT]);
/** The port of #dns, which is not loaded for it. */
const OWN_PORTS_AND_DNS: ReadonlySet<number> = new Set([...OWN_PORTS, 15053]);

/** Those of a proxy with this configuration: the port of the pods' DNS is one where that is captured. */
export function ownPorts({ dns }: Pick<ProxyConfig, "dns">): ReadonlySet<number> {
  return dns === undefined ? OWN_PORTS : OWN_PORTS_AND_DNS;
}
/** The mark on every packet that the proxy sends inside a pod's namespace; redirection leaves those alone. */
export const PACKET_MARK = 0x539;

/** How the DNS of pods is answered. */
interface DnsConfig {
  /** Where questions go that the mesh cannot answer. */
  readonly nameservers: readonly IpAddress[];
  /** The domain of services, for example `cluster.local`. */
  readonly clusterDomain: string;
  /** Among services of one hostname in other namespaces, those of this one come first; empty: none does. */
  readonly preferredNamespace: string;
  /** False: no IPv6 address is told. */
  readonly ipv6: boolean;
}

/** What a proxy needs to know about its place. Plain data: it crosses to the data threads as it is. */
export interface ProxyConfig {
  readonly node: string;
  readonly clusterId: string;
  readonly trustDomain: string;
  readonly network: string;
  /** Addresses inside are the cluster's own: an unknown one is asked for and never simply passed. */
  readonly clusterRanges: readonly Cidr[];
  /** Plaintext between two workloads that have both been enrolled for longer than this is refused. */
  readonly propagationBoundMs: number;
  /** How long a connection is held for an answer about its destination, or for a certificate. */
  readonly holdMs: number;
  /** A file of revocation lists; without one nobody's certificate is looked for in any, and no session is watched. */
  readonly crlFile: string | undefined;
  /** How long one TCP connect may take. */
  readonly dialMs: number;
  /** Memory of this process; undefined: what its container may use, when that is limited. */
  readonly memoryLimitBytes?: number | undefined;
  /** What is different about the sessions that pods open. */
  readonly poolLimits: Partial<Pick<HboneLimits, "streamsPerSession" | "idleMs">>;
  /** Applications see the address of their client, not of the proxy. Default: true. */
  readonly originalSource: boolean;
  /** Answers to peers say who the pod is (`baggage`), and what peers say so is taken for records. Default: true. */
  readonly baggage: boolean;
  /** True: nothing new is forwarded while nobody reads the access log. Default: false, records are dropped and counted then. */
  readonly recordsRequired: boolean;
  /** How access records are written. Default: text, as upstream does. */
  readonly accessFormat: AccessFormat;
  /** Undefined: pods' DNS questions are not answered here. */
  readonly dns: DnsConfig | undefined;
}

/** Private and shared address space: what a cluster's own ranges are made of when nobody says. */
export const DEFAULT_CLUSTER_RANGES: readonly Cidr[] = [
  "10.0.0.0/8",
  "172.16.0.0/12",
  "192.168.0.0/16",
  "100.64.0.0/10",
  "fc00::/7",
].map((text) => parseCidr(text));

/** Everything but the node's name has a default. */
export function proxyConfig(given: Partial<ProxyConfig> & { readonly node: string }): ProxyConfig {
  return {
    clusterId: "Kubernetes",
    trustDomain: "cluster.local",
    network: "",
    clusterRanges: DEFAULT_CLUSTER_RANGES,
    propagationBoundMs: 10_000,
    holdMs: 5_000,
    crlFile: undefined,
    dialMs: 10_000,
    originalSource: true,
    baggage: true,
    recordsRequired: false,
    poolLimits: {},
    accessFormat: "plain",
    dns: undefined,
    ...given,
  };
}
