import { networkInterfaces } from "node:os";
import { findIp, isV6, type IpAddress } from "#base/ip";
import { inNetns, runNft, type Netns } from "#linux";

/** Where the kubelet's probes come from, as an enrolled pod sees it (`ambient.md` §4.3). */
export const PROBE_SOURCES = { v4: "169.254.7.127", v6: "fd16:9254:7127:1337:ffff:ffff:ffff:ffff" } as const;

/** The nft table on the node. It is Veil's alone. */
const PROBES_TABLE = "inet veil_probes";

/** An address and port of a pod at which its kubelet asks whether it is well. */
export interface ProbeTarget {
  readonly ip: IpAddress;
  readonly port: number;
}

/**
 * The transaction after which exactly these targets see their probes' own source. Idempotent; without targets nothing is left.
 * Only connections of the node's root are meant, begun on the node itself: what is forwarded (another pod, a NodePort, another node)
 * never gets that source, and what comes with it from elsewhere is dropped.
 */
export function probesScript(targets: readonly ProbeTarget[]): string {
  const clean = `add table ${PROBES_TABLE}\ndelete table ${PROBES_TABLE}\n`;
  if (targets.length === 0) return clean;
  const elements = (v6: boolean): string => {
    const texts = targets.filter(({ ip }) => isV6(ip) === v6).map(({ ip, port }) => `${ip} . ${port}`);
    return texts.length === 0 ? "" : `elements = { ${[...new Set(texts)].toSorted().join(", ")} }`;
  };
  return `${clean}table ${PROBES_TABLE} {
  set v4 { type ipv4_addr . inet_service; ${elements(false)} }
  set v6 { type ipv6_addr . inet_service; ${elements(true)} }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    ip saddr ${PROBE_SOURCES.v4} counter drop
    ip6 saddr ${PROBE_SOURCES.v6} counter drop
  }
  chain postrouting {
    type nat hook postrouting priority 99; policy accept;
    meta skuid 0 ip daddr . tcp dport @v4 counter snat ip to ${PROBE_SOURCES.v4}
    meta skuid 0 ip6 daddr . tcp dport @v6 counter snat ip6 to ${PROBE_SOURCES.v6}
  }
}
`;
}

/** Where the kubelet asks a pod: each of its addresses but link-local ones, and the ports of its probes. */
export function probeTargets(netns: Netns, ports: readonly number[]): ProbeTarget[] {
  if (ports.length === 0) return [];
  const interfaces = inNetns(netns, () => Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []));
  const ips = interfaces
    .filter(({ internal, address }) => !internal && !address.startsWith("fe80:"))
    .flatMap(({ address }) => findIp(address) ?? []);
  return ips.flatMap((ip) => ports.map((port) => ({ ip, port })));
}

/**
 * Keeps the kubelet's probes of enrolled pods apart from everything else that reaches them in clear. A strict pod refuses what proves no
 * identity, and a kubelet has none; its address is no proof, as what comes through a NodePort has that, too. So the node gives the
 * probes' connections a source of their own, which the pod's rules let past the proxy (`redirection.ts`).
 */
export class Probes {
  readonly #targets = new Map<string, readonly ProbeTarget[]>();
  readonly #run: (script: string) => Promise<unknown>;
  /** What the kernel has; undefined while that is not known. */
  #written: string | undefined;
  /** A write that has not begun yet, and takes what is wanted when it does. */
  #next: Promise<void> | undefined;
  #last: Promise<void> = Promise.resolve();

  /** `run` gives a script to nft, on the node. */
  constructor(run: (script: string) => Promise<unknown> = runNft) {
    this.#run = run;
  }

  /** A pod's targets, before the others are known: nothing is written. */
  declare(uid: string, targets: readonly ProbeTarget[]): void {
    if (targets.length === 0) this.#targets.delete(uid);
    else this.#targets.set(uid, targets);
  }

  /** Resolves when the node gives the probes of a pod their source, and those of no earlier one. Rejects with `LINUX_COMMAND`. */
  async allow(uid: string, targets: readonly ProbeTarget[]): Promise<void> {
    this.declare(uid, targets);
    await this.write();
  }

  /** Resolves when the node treats the pod's connections as all others. Rejects with `LINUX_COMMAND`. */
  async forbid(uid: string): Promise<void> {
    await this.allow(uid, []);
  }

  /** Resolves when the node has what is declared now. Rejects with `LINUX_COMMAND`. */
  async write(): Promise<void> {
    this.#next ??= this.#last
      .catch(() => undefined) // whoever asked for that one was told
      .then(async () => {
        this.#next = undefined;
        const script = probesScript([...this.#targets.values()].flat());
        if (script === this.#written) return;
        this.#written = undefined;
        await this.#run(script);
        this.#written = script;
      });
    this.#last = this.#next;
    await this.#next;
  }
}
