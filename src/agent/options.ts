import type { Clock } from "#base/clock";
import type { Cidr } from "#base/ip";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { InstallerOptions, PluginEntry } from "#cni";
import type { EnrolmentTimes, NetnsFinder } from "#enrolment";
import type { KubeClient } from "#kube";
import type { StrictMode } from "#wireguard";

type CniPlaces = Pick<InstallerOptions, "confDir" | "binDir" | "plugin">;

/** How the CNI plugin is kept on the node. */
interface CniInstall extends Omit<PluginEntry, "socket" | "namespace">, CniPlaces {
  /** Service account in Veil's namespace with whose token the plugin asks the API; undefined: the agent's own credentials. */
  readonly account: string | undefined;
}

/** How this node's part of WireGuard is done. */
export interface WireguardAgentOptions {
  /** `wireguard-go`, for where the kernel cannot. */
  readonly program: string;
  /** Whether it runs the devices even where the kernel can. */
  readonly userspace: boolean;
  /** What becomes of packets between pods that would leave the node in clear. */
  readonly strict: StrictMode;
  /** Whether mTLS goes through the tunnels, too. */
  readonly double: boolean;
  /** Ranges of all pods of the cluster; empty: those of the nodes that are known. */
  readonly clusterRanges: readonly Cidr[];
}

/** What an agent is made of. */
export interface AgentOptions {
  readonly client: KubeClient;
  /** Where Veil is installed. */
  readonly namespace: string;
  readonly node: string;
  /** This agent as the controller's logs name it. */
  readonly instance: { readonly ip: string; readonly pod: string; readonly version: string };
  /** `https://host:port`. */
  readonly controller: string;
  /** Labels by which pods are enrolled, of `ENROL_LABELS`. */
  readonly enrolLabels: readonly string[];
  /** ConfigMap in Veil's namespace with the roots that its certificate is checked with. */
  readonly trustBundle: string;
  /** The name in its certificate. Default: the host of its address. */
  readonly controllerName?: string | undefined;
  readonly tokenFile: string;
  readonly trustDomain: string;
  readonly clusterId: string;
  readonly sockets: { readonly agent: string; readonly zds: string; readonly cni: string };
  /** Where the CNI plugin is kept in place; undefined: somebody else does that, or nobody. */
  readonly cniInstall: CniInstall | undefined;
  readonly finder: NetnsFinder;
  readonly status: { readonly host: string; readonly port: number };
  /** TLS port for another ztunnel, and where its root is written; undefined: none. */
  readonly ztunnel: { readonly host: string; readonly port: number; readonly rootFile: string } | undefined;
  readonly times?: Partial<EnrolmentTimes>;
  /** Whether DNS questions are captured of pods that do not say. */
  readonly dnsCapture: boolean;
  /** Tunnels between the nodes; undefined: none, and those of an earlier agent are removed. */
  readonly wireguard: WireguardAgentOptions | undefined;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}
