import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { bytesToIp, parseIp, type IpAddress } from "#base/ip";
import { enrolmentError } from "./errors.ts";
import {
  addMarkRoute,
  flushConntrack,
  inNetns,
  listTables,
  removeMarkRoute,
  runCommand,
  runNft,
  type MarkRoute,
  type Netns,
} from "#linux";
import { GUARD_TABLE, unguardPort } from "./guard.ts";
import { PROBE_SOURCES, probesScript } from "./probes.ts";

/**
 * What carries a pod's TCP connections, and its DNS questions, to the proxy: one nft table and one policy route in the pod's network namespace.
 *
 *     absent ── install ──▶ capturing ── keep ──▶ kept ── remove ──▶ absent
 *                               ▲                  │
 *                               └──── install ─────┘
 *
 * `capturing`: the first packet of each new connection is redirected. `kept`: new connections go their own way, those that were
 * redirected go on. Why `kept` exists, and why only first packets match: docs/adr/0030-redirection-and-conntrack.md.
 */
export type RedirectionState = "absent" | "capturing" | "kept";

/** Ports of the proxy inside each pod. */
export const PROXY_PORTS = { outbound: 15001, inboundPlaintext: 15006, inboundHbone: 15008, dns: 15053 } as const;

/** The nft table. It is Veil's alone; other tables of the namespace are never touched. */
export const REDIRECTION_TABLE = "inet veil";

const FIRST_PACKET = "tcp flags & (fin | syn | rst | ack) == syn";
const FROM_PROXY = "meta mark & 0xfff == 0x539";
const NOT_FROM_PROXY = "meta mark & 0xfff != 0x539";

/** The chains, empty. Adding what exists already changes nothing. */
const CHAINS = `add table ${REDIRECTION_TABLE}
add chain ${REDIRECTION_TABLE} raw_prerouting { type filter hook prerouting priority -300; policy accept; }
add chain ${REDIRECTION_TABLE} raw_output { type filter hook output priority -300; policy accept; }
add chain ${REDIRECTION_TABLE} mangle_prerouting { type filter hook prerouting priority -150; policy accept; }
add chain ${REDIRECTION_TABLE} mangle_output { type route hook output priority -150; policy accept; }
add chain ${REDIRECTION_TABLE} nat_prerouting { type nat hook prerouting priority -100; policy accept; }
add chain ${REDIRECTION_TABLE} nat_output { type nat hook output priority -100; policy accept; }
flush table ${REDIRECTION_TABLE}
`;

/** Replies to connections that the proxy opened under a client's address find their way back to the proxy. */
const KEPT_RULES: readonly string[] = [
  `mangle_prerouting ${FROM_PROXY} counter ct mark set ct mark & 0xfffff000 | 0x111`,
  "mangle_output ct mark & 0xfff == 0x111 counter meta mark set ct mark",
];

const CAPTURE_INBOUND: readonly string[] = [
  `nat_prerouting meta l4proto tcp ip saddr ${PROBE_SOURCES.v4} counter accept`,
  `nat_prerouting meta l4proto tcp ip6 saddr ${PROBE_SOURCES.v6} counter accept`,
  `nat_prerouting iifname != "lo" ${FIRST_PACKET} tcp dport != ${PROXY_PORTS.inboundHbone} ${NOT_FROM_PROXY} counter redirect to :${PROXY_PORTS.inboundPlaintext}`,
];

/** What comes in from a virtual machine behind the pod is what the pod would have dialled itself. */
function captureVirtual(name: string): readonly string[] {
  return [
    `nat_prerouting iifname "${name}" ${FIRST_PACKET} counter redirect to :${PROXY_PORTS.outbound}`,
    `nat_prerouting iifname "${name}" meta l4proto tcp counter return`,
  ];
}

const LEAVE_ALONE: readonly string[] = [
  `nat_output meta l4proto tcp ip daddr ${PROBE_SOURCES.v4} counter accept`,
  `nat_output meta l4proto tcp ip6 daddr ${PROBE_SOURCES.v6} counter accept`,
  "nat_output meta l4proto tcp meta mark & 0xfff == 0x111 counter accept",
  'nat_output oifname "lo" counter accept',
];

const CAPTURE_OUTBOUND = `nat_output ${FIRST_PACKET} ${NOT_FROM_PROXY} counter redirect to :${PROXY_PORTS.outbound}`;

/**
 * The pod's questions go to the proxy. Its own, to the nameservers, are tracked in a zone of their own, so that none of them is taken for
 * a packet of a redirected flow: nor their answers, nor those to questions from before.
 */
const CAPTURE_DNS: readonly string[] = [
  `raw_output udp dport 53 ${FROM_PROXY} counter ct zone set 1`,
  `raw_prerouting udp sport 53 ${NOT_FROM_PROXY} counter ct zone set 1`,
  `nat_output udp dport 53 ${NOT_FROM_PROXY} counter redirect to :${PROXY_PORTS.dns}`,
  `nat_output tcp dport 53 ${FIRST_PACKET} ${NOT_FROM_PROXY} counter redirect to :${PROXY_PORTS.dns}`,
];

/** From now on all questions are in that zone, where nothing is redirected; answers of the proxy still find their way back in the other. */
const RELEASE_DNS: readonly string[] = [
  "raw_output udp dport 53 counter ct zone set 1",
  `raw_prerouting udp sport 53 ${NOT_FROM_PROXY} counter ct zone set 1`,
];

/** What a pod asks for beyond the default. */
export interface CaptureOptions {
  /** False in "ingress mode" (annotation `ambient.istio.io/bypass-inbound-capture`): inbound connections are left alone. */
  readonly inbound: boolean;
  /**
   * Interfaces inside the pod behind which virtual machines are (annotation `istio.io/reroute-virtual-interfaces`): what comes in
   * from them counts as outbound. Default: none. Names of interfaces only; whoever reads the annotation checks that.
   */
  readonly virtualInterfaces?: readonly string[];
  /** DNS questions go to the proxy, too (annotation `ambient.istio.io/dns-capture`, or the agent's default). */
  readonly dns: boolean;
}

/** The transaction that makes a namespace capture. Idempotent. */
export function captureScript({ inbound, dns, virtualInterfaces = [] }: CaptureOptions): string {
  return script([
    ...KEPT_RULES,
    ...virtualInterfaces.flatMap(captureVirtual),
    ...(inbound ? CAPTURE_INBOUND : []),
    ...LEAVE_ALONE,
    ...(dns ? CAPTURE_DNS : []),
    CAPTURE_OUTBOUND,
  ]);
}

/** The transaction that stops capturing and keeps what was captured. Idempotent. */
export function keepScript(): string {
  return script([...KEPT_RULES, ...RELEASE_DNS]);
}

function script(rules: readonly string[]): string {
  return CHAINS + rules.map((rule) => `add rule ${REDIRECTION_TABLE} ${rule}\n`).join("");
}

/** The transaction that leaves nothing. Idempotent. */
function removeScript(): string {
  return `add table ${REDIRECTION_TABLE}\ndelete table ${REDIRECTION_TABLE}\n`;
}

/** What the kept rules mark comes back to the proxy's sockets. */
const TO_PROXY: MarkRoute = { mark: 0x111, mask: 0xfff, priority: 32_764, table: 100 };

/** How enrolment changes and reads a pod's redirection; tests put a fake in its place. */
export interface Redirector {
  /** Makes the namespace capture. Idempotent; throws `LINUX_COMMAND` or `LINUX_NETNS_GONE`, and then nothing captures. */
  install(netns: Netns, options: CaptureOptions): Promise<void>;
  /** Stops capturing; connections that were redirected go on. Idempotent. */
  keep(netns: Netns): Promise<void>;
  /** Leaves nothing behind. Connections that are still redirected break. Idempotent. */
  remove(netns: Netns): Promise<void>;
  /** What is installed now. */
  read(netns: Netns): Promise<RedirectionState>;
  /** How many connections of the pod still go through the proxy. */
  countRedirected(netns: Netns): number;
}

/** The kernel's nft tables. */
export const nftRedirector: Redirector = {
  async install(netns, options) {
    const tables = findTables(netns);
    changeRoutes(netns, addMarkRoute);
    // What is tracked without any rule is left over from earlier, and would lead a new connection with old ports past the proxy.
    if (!tables.ours && !tables.others) flushConntrack(netns);
    await runNft(captureScript(options), { netns });
  },
  async keep(netns) {
    await runNft(keepScript(), { netns });
  },
  async remove(netns) {
    // A socket that asks for names before and after: the answer under way would collide with the entry of its redirected questions.
    if (!findTables(netns).others) flushConntrack(netns);
    await runNft(removeScript(), { netns });
    changeRoutes(netns, removeMarkRoute);
    await unguardPort(netns);
  },
  async read(netns) {
    if (!findTables(netns).ours) return "absent";
    const { stdout } = await runCommand({
      program: "nft",
      args: ["list", "table", ...REDIRECTION_TABLE.split(" ")],
      netns,
    });
    return stdout.includes(`redirect to :${PROXY_PORTS.outbound}`) ? "capturing" : "kept";
  },
  countRedirected(netns) {
    return inNetns(netns, () => {
      const sockets = ["tcp", "tcp6"].flatMap((file) => parseSockets(readIfThere(`/proc/thread-self/net/${file}`)));
      const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
      return countProxied(
        sockets,
        own.map(({ address }) => parseIp(address)),
      );
    });
  },
};

/**
 * Makes sure that this machine can do what redirection needs, by doing it in a namespace that is thrown away at once.
 * Throws `ENROLMENT_NOT_ROOT`, `ENROLMENT_KERNEL` with nft's own words, or `LINUX_COMMAND`.
 */
export async function checkRedirection({ dns }: Pick<CaptureOptions, "dns">): Promise<void> {
  if (process.getuid?.() !== 0) {
    throw enrolmentError("ENROLMENT_NOT_ROOT", "only root can change the rules in pods' network namespaces");
  }
  const input = captureScript({ inbound: true, dns }) + probesScript([{ ip: parseIp("192.0.2.1"), port: 80 }]);
  const { status, stderr } = await runCommand({ program: "unshare", args: ["--net", "nft", "-f", "-"], input });
  if (status === 0) return;
  const [words = ""] = stderr.trim().split("\n", 1);
  throw enrolmentError("ENROLMENT_KERNEL", `this machine cannot redirect connections: ${words}`, {
    details: { stderr },
  });
}

/** Whose rules a namespace has. Only where nobody else has any may what is tracked be forgotten: it may carry their translation. */
function findTables(netns: Netns): { readonly ours: boolean; readonly others: boolean } {
  const legacy = inNetns(netns, () =>
    ["ip", "ip6"].map((family) => readIfThere(`/proc/thread-self/net/${family}_tables_names`)).join(""),
  );
  const tables = listTables(netns);
  const isOurs = (table: string): boolean => table === REDIRECTION_TABLE || table === GUARD_TABLE;
  return { ours: tables.includes(REDIRECTION_TABLE), others: legacy !== "" || !tables.every(isOurs) };
}

/** Adds or removes the way back to the proxy, for the families that the namespace has. */
function changeRoutes(netns: Netns, change: typeof addMarkRoute): void {
  change(netns, 4, TO_PROXY);
  const v6 = inNetns(netns, () => readIfThere("/proc/sys/net/ipv6/conf/lo/disable_ipv6").trim() === "0");
  if (v6) change(netns, 6, TO_PROXY);
}

/** One line of `/proc/net/tcp` or `tcp6`: our end, and the state as a number. */
export interface TcpSocketLine {
  readonly ip: IpAddress;
  readonly port: number;
  readonly state: number;
}

const LISTEN = 0x0a;
const TIME_WAIT = 0x06;

/** Reads `/proc/net/tcp` or `tcp6`; lines that are none are left out. */
export function parseSockets(table: string): TcpSocketLine[] {
  return table.split("\n").flatMap((line) => {
    const match = /^\s*\d+: ((?:[0-9A-F]{8}){1,4}):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} ([0-9A-F]{2}) /.exec(line);
    const [, address = "", port = "", state = ""] = match ?? [];
    if (match === null || (address.length !== 8 && address.length !== 32)) return [];
    const words = Buffer.from(address, "hex");
    for (let at = 0; at < words.length; at += 4) words.subarray(at, at + 4).reverse(); // printed in the machine's byte order
    return [{ ip: bytesToIp(words), port: Number.parseInt(port, 16), state: Number.parseInt(state, 16) }];
  });
}

/**
 * How many connections the proxy carries inside a pod: those that it accepted from redirection, or, where more, those that it opened
 * to the pod's application under a client's address. Sessions on 15008 that carry nothing do not count.
 */
export function countProxied(sockets: readonly TcpSocketLine[], ownAddresses: readonly IpAddress[]): number {
  const own = new Set<string>([...ownAddresses, "0.0.0.0", "::"]);
  const live = sockets.filter(({ state }) => state !== LISTEN && state !== TIME_WAIT);
  const accepted = (port: number): number => live.filter((socket) => socket.port === port).length;
  const dialled = live.filter(({ ip }) => !own.has(ip) && !ip.startsWith("127.")).length;
  return (
    accepted(PROXY_PORTS.outbound) +
    accepted(PROXY_PORTS.dns) +
    Math.max(accepted(PROXY_PORTS.inboundPlaintext), dialled)
  );
}

/** The text of a file; empty when it is not there. */
function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
