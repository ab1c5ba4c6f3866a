import { isV6, type Cidr, type IpAddress } from "#base/ip";
import { runCommand, runNft, type Netns } from "#linux";
import { ENCRYPTED_MARK } from "./ways.ts";

/** What becomes of packets between pods of different nodes that would leave in clear. `audit`: they are counted and pass. */
export type StrictMode = "off" | "audit" | "on";

/** Why packets would have left in clear: no tunnel to a node that is known, or a pod of a node that is not. */
export const CLEAR_REASONS = ["no_tunnel", "unknown_node"] as const;

/** One of them. */
export type ClearReason = (typeof CLEAR_REASONS)[number];

/** An enrolled pod of this node: its addresses, and the node's end of its link, so that nobody inherits them with an address. */
export interface LocalPod {
  /** Index of the interface. */
  readonly link: number;
  readonly addresses: readonly IpAddress[];
}

/** What the rules are made of. */
export interface FirewallOptions {
  readonly netns: Netns;
  /** Names of the tunnels' devices. */
  readonly devices: readonly string[];
  readonly strict: StrictMode;
  /** Whether mTLS goes through the tunnels, too, and is encrypted twice. What has begun outside of them stays there. Default: no. */
  readonly double?: boolean;
  /** Ranges of all pods of the cluster, where they are known: a packet to a node that nobody has told of is in clear, too. */
  readonly clusterRanges: readonly Cidr[];
}

/** The nft table in the node's namespace. It is Veil's alone. */
const TABLE = "inet veil_wireguard";
const FIRST_PACKET = "tcp flags & (fin | syn | rst | ack) == syn";
/** Bit of a tracked connection's mark: mTLS protects it, from its first packet to its last. */
const PROTECTED = 0x0800_0000;
const MARK_PROTECTED = `meta mark set meta mark & ${hex(~ENCRYPTED_MARK.mask >>> 0)} | ${hex(ENCRYPTED_MARK.value)}`;
const HBONE = "tcp dport 15008";
/** Elements in one transaction; more are given in several. */
const MAX_ELEMENTS = 5_000;
const FAMILIES = [
  { word: "ip", suffix: "4", type: "ipv4_addr", v6: false },
  { word: "ip6", suffix: "6", type: "ipv6_addr", v6: true },
] as const;

/**
 * The transaction that sets table, sets and rules; elements of sets stay. A connection to port 15008 is decided on by its first packet:
 *
 * - one that an enrolled pod's proxy opens to a pod that is enrolled, too, is mTLS, and goes outside of the tunnel, with its answers;
 * - one that comes to an enrolled pod outside of the tunnel is answered there;
 * - anything else between pods goes the tunnel's way. That nothing but its proxy sends to or from 15008 is seen to inside of each
 *   enrolled pod.
 */
export function firewallScript({ devices, strict, double = false }: Omit<FirewallOptions, "netns">): string {
  const tunnels = `{ ${devices.map((name) => `"${name}"`).join(", ")} }`;
  return `add table ${TABLE}
${FAMILIES.map(({ word, suffix, type }) =>
  [
    `add set ${TABLE} local${suffix} { typeof iif . ${word} saddr; }`,
    `add set ${TABLE} answering${suffix} { typeof oif . ${word} daddr; }`,
    `add set ${TABLE} enrolled${suffix} { type ${type}; }`,
    ...["own", "known", "cluster"].map((name) => `add set ${TABLE} ${name}${suffix} { type ${type}; flags interval; }`),
  ].join("\n"),
).join("\n")}
${CLEAR_REASONS.map((reason) => `add counter ${TABLE} ${reason}`).join("\n")}
add chain ${TABLE} classify { type filter hook prerouting priority mangle; policy accept; }
add chain ${TABLE} answer { type filter hook forward priority mangle; policy accept; }
add chain ${TABLE} leave { type filter hook postrouting priority 99; policy accept; }
flush chain ${TABLE} classify
flush chain ${TABLE} answer
flush chain ${TABLE} leave
add rule ${TABLE} classify ct mark & ${hex(PROTECTED)} != 0 ${MARK_PROTECTED} accept
${double ? "" : outsideRules(tunnels)}
${strict === "off" ? "" : strictRules(tunnels, strict)}`;
}

function outsideRules(tunnels: string): string {
  return FAMILIES.map(
    ({ word, suffix }) =>
      `add rule ${TABLE} classify ${HBONE} ${FIRST_PACKET} iif . ${word} saddr @local${suffix} ${word} daddr @enrolled${suffix} ct mark set ct mark | ${hex(PROTECTED)} ${MARK_PROTECTED}
add rule ${TABLE} answer iifname != ${tunnels} ${HBONE} ${FIRST_PACKET} oif . ${word} daddr @answering${suffix} ct mark set ct mark | ${hex(PROTECTED)}`,
  ).join("\n");
}

function strictRules(tunnels: string, strict: "audit" | "on"): string {
  const verdict = strict === "on" ? "drop" : "accept";
  const encrypted = `meta mark & ${hex(ENCRYPTED_MARK.mask)} == ${hex(ENCRYPTED_MARK.value)}`;
  const perFamily = FAMILIES.flatMap(({ word, suffix }) => [
    `${word} daddr @own${suffix} accept`,
    `${word} saddr @own${suffix} ${word} daddr @known${suffix} counter name no_tunnel ${verdict}`,
    `${word} saddr @own${suffix} ${word} daddr @cluster${suffix} counter name unknown_node ${verdict}`,
  ]);
  return [`oifname ${tunnels} accept`, `${encrypted} accept`, ...perFamily]
    .map((rule) => `add rule ${TABLE} leave ${rule}\n`)
    .join("");
}

/**
 * Rules in the node's namespace that tell apart what goes through the tunnels and what mTLS protects already, and what strict mode does
 * with the rest. Rules and sets outlive the agent; sets that say who is enrolled are made equal to what it finds when it comes back.
 */
export class Firewall {
  readonly #options: FirewallOptions;
  /** One change after the other: nft's transactions would fail beside each other. */
  #queue: Promise<unknown> = Promise.resolve();
  #ranges = "";

  constructor(options: FirewallOptions) {
    this.#options = options;
  }

  /** Sets the rules. Idempotent. Throws `LINUX_COMMAND`. */
  async open(): Promise<void> {
    const cluster = replaceScript("cluster", this.#options.clusterRanges.map(formatRange));
    await this.#run(firewallScript(this.#options) + cluster);
  }

  /** Ranges of this node's own pods, and of those of all other nodes that are known. Nothing is done when they are as before. */
  setRanges({ own, known }: { readonly own: readonly Cidr[]; readonly known: readonly Cidr[] }): Promise<void> {
    const [mine, others] = [own, known].map((ranges) => [...new Set(ranges.map(formatRange))].toSorted(compare));
    const script = replaceScript("own", mine ?? []) + replaceScript("known", others ?? []);
    if (script === this.#ranges) return Promise.resolve();
    this.#ranges = script;
    return this.#run(script);
  }

  /** Pods anywhere whose proxies speak mTLS: before the first connection to one that joins, after the last to one that leaves. */
  async changeEnrolled(joined: readonly IpAddress[], left: readonly IpAddress[]): Promise<void> {
    const elements = [
      ...left.flatMap(
        (ip) =>
          [
            ["add", ip],
            ["delete", ip],
          ] as const,
      ), // deleting what is not there would fail
      ...joined.map((ip) => ["add", ip] as const),
    ];
    for (let at = 0; at < elements.length; at += MAX_ELEMENTS) {
      const lines = elements
        .slice(at, at + MAX_ELEMENTS)
        .map(([verb, ip]) => `${verb} element ${TABLE} enrolled${isV6(ip) ? "6" : "4"} { ${ip} }\n`);
      await this.#run(lines.join(""));
    }
  }

  /** Exactly these, in one step. */
  setEnrolled(addresses: readonly IpAddress[]): Promise<void> {
    return this.#run(replaceScript("enrolled", addresses));
  }

  /** A pod of this node is enrolled from now on, or (`left`) not any more. */
  changeLocal(pod: LocalPod, left = false): Promise<void> {
    return this.#run(localLines(pod, left ? ["add", "delete"] : ["add"]));
  }

  /** Exactly these pods of the node are enrolled. */
  setLocal(pods: readonly LocalPod[]): Promise<void> {
    const sets = FAMILIES.flatMap(({ suffix }) => [`local${suffix}`, `answering${suffix}`]);
    const flush = sets.map((set) => `flush set ${TABLE} ${set}\n`).join("");
    return this.#run(flush + pods.map((pod) => localLines(pod, ["add"])).join(""));
  }

  /** Packets that would have left in clear, by reason, since the table was made. Throws `LINUX_COMMAND`. */
  async countClear(): Promise<ReadonlyMap<ClearReason, number>> {
    const args = ["-j", "list", "counters", "table", ...TABLE.split(" ")];
    const { stdout } = await runCommand({ program: "nft", args, netns: this.#options.netns });
    return parseCounters(stdout);
  }

  /** Takes everything away. */
  remove(): Promise<void> {
    return this.#run(`add table ${TABLE}\ndelete table ${TABLE}\n`);
  }

  #run(script: string): Promise<void> {
    const { netns } = this.#options;
    const done = this.#queue.then(() => (script === "" ? undefined : runNft(script, { netns })));
    this.#queue = done.catch(() => undefined); // its owner hears of it
    return done.then(() => undefined);
  }
}

/** Reads what `nft -j list counters` prints: packets by reason. What it does not tell is 0. */
export function parseCounters(text: string): ReadonlyMap<ClearReason, number> {
  const packets = new Map<string, number>();
  for (const [, name = "", count = ""] of text.matchAll(/"name": ?"(\w+)"[^}]*?"packets": ?(\d{1,15})/g)) {
    packets.set(name, Number(count));
  }
  return new Map(CLEAR_REASONS.map((reason) => [reason, packets.get(reason) ?? 0]));
}

function localLines({ link, addresses }: LocalPod, verbs: readonly ("add" | "delete")[]): string {
  const lines = addresses.flatMap((ip) =>
    ["local", "answering"].flatMap((set) =>
      verbs.map((verb) => `${verb} element ${TABLE} ${set}${isV6(ip) ? "6" : "4"} { ${link} . ${ip} }\n`),
    ),
  );
  return lines.join("");
}

function replaceScript(set: string, ranges: readonly string[]): string {
  return FAMILIES.map(({ suffix, v6 }) => {
    const own = ranges.filter((range) => range.includes(":") === v6);
    const add = own.length === 0 ? "" : `add element ${TABLE} ${set}${suffix} { ${own.join(", ")} }\n`;
    return `flush set ${TABLE} ${set}${suffix}\n${add}`;
  }).join("");
}

function formatRange({ address, length }: Cidr): string {
  return `${address}/${length}`;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : 1;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
