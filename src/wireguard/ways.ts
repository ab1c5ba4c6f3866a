import { readFileSync, writeFileSync, readdirSync } from "node:fs";
import { parseCidr, type Cidr, type IpAddress } from "#base/ip";
import {
  addRule,
  deleteRoute,
  deleteRule,
  findLink,
  inNetns,
  listAddresses,
  listLinks,
  listRoutes,
  listRules,
  MAIN_TABLE,
  replaceRoute,
  type Netns,
  type RoutingRule,
} from "#linux";
import { wireguardError } from "./errors.ts";
import type { Slot } from "./slots.ts";

/** Bits of a packet's mark that say what is encrypted already, and the value for it: what carries a tunnel, and what mTLS protects. */
export const ENCRYPTED_MARK = { value: 0xe00, mask: 0xf00 } as const;
/** Table of the routes to other nodes' pods, and of each slot's own way for echoes. */
export const TABLES = { pods: 201, echo: { 0: 202, 1: 203 } } as const;
/** Priorities of the rules: what is encrypted goes its plain way; echoes go by their device; what own pods send asks {@link TABLES}. */
const PRIORITIES = { encrypted: 140, echo: 141, pods: 142 } as const;
const FAMILIES = [4, 6] as const;

/** What WireGuard adds to a packet, at most: 40 bytes of IPv6, 8 of UDP, 32 of its own. */
const OVERHEAD_BYTES = 80;
/** IPv6 does not work with less. */
const MIN_MTU = 1280;

/** Between whom packets are carried on this node. */
export interface WaysOptions {
  readonly netns: Netns;
  readonly devices: Readonly<Record<Slot, string>>;
  /** Ranges of this node's own pods. */
  readonly podRanges: readonly Cidr[];
}

/** Sets the rules, and removes those of other ranges that an earlier agent has left. Idempotent. Throws `LINUX_SYSCALL`. */
export function installRules(options: WaysOptions): void {
  const { netns } = options;
  for (const family of familiesOf(netns)) {
    const wanted = rulesOf(options, family);
    for (const rule of wanted) addRule(netns, rule);
    for (const found of listRules(netns, family, Object.values(PRIORITIES))) {
      if (!wanted.some((rule) => isSame(rule, found))) deleteRule(netns, found);
    }
  }
}

/** True when rules of ours lead to one of these devices. Throws `LINUX_SYSCALL`. */
export function hasWays(netns: Netns, devices: readonly string[]): boolean {
  return listRules(netns, 4, [PRIORITIES.echo]).some(({ outInterface = "" }) => devices.includes(outInterface));
}

/** Removes all rules and the routes of our tables. Throws `LINUX_SYSCALL`. */
export function removeWays(netns: Netns): void {
  for (const family of familiesOf(netns)) {
    for (const rule of listRules(netns, family, Object.values(PRIORITIES))) deleteRule(netns, rule);
    for (const table of [TABLES.pods, TABLES.echo[0], TABLES.echo[1]]) {
      for (const route of listRoutes(netns, family, table)) deleteRoute(netns, route);
    }
  }
}

/** Gives echoes that are tied to a slot's device their way. Throws `LINUX_SYSCALL`. */
export function routeEchoes(netns: Netns, slot: Slot, link: number): void {
  for (const family of familiesOf(netns)) {
    const destination = parseCidr(family === 4 ? "0.0.0.0/0" : "::/0");
    replaceRoute(netns, { table: TABLES.echo[slot], destination, link });
  }
}

function rulesOf({ devices, podRanges }: WaysOptions, family: 4 | 6): RoutingRule[] {
  const own = podRanges.filter(({ address }) => address.includes(":") === (family === 6));
  return [
    { priority: PRIORITIES.encrypted, table: MAIN_TABLE, family, mark: ENCRYPTED_MARK },
    ...([0, 1] as const).map((slot) => ({
      priority: PRIORITIES.echo,
      table: TABLES.echo[slot],
      family,
      outInterface: devices[slot],
    })),
    ...own.map((from) => ({ priority: PRIORITIES.pods, table: TABLES.pods, family, from })),
  ];
}

function isSame(a: RoutingRule, b: RoutingRule): boolean {
  const name = ({ priority, table, from, mark, outInterface }: RoutingRule): string =>
    JSON.stringify([priority, table, from?.address, from?.length, mark?.value, outInterface]);
  return name(a) === name(b);
}

/** IPv6 only where the namespace has it. */
function familiesOf(netns: Netns): readonly (4 | 6)[] {
  return FAMILIES.filter((family) => family === 4 || readSetting(netns, "ipv6/conf/all/disable_ipv6") === "0");
}

/** MTU for the tunnels: what fits into the interface that has the node's address. Throws `WIREGUARD_UNDERLAY` when none has. */
export function tunnelMtu(netns: Netns, own: readonly IpAddress[]): number {
  const holders = listAddresses(netns).filter(({ ip }) => own.includes(ip));
  const loopback = findLink(netns, "lo")?.index;
  const mtus = listLinks(netns)
    .filter(({ index }) => index !== loopback && holders.some((holder) => holder.index === index))
    .map(({ mtu }) => mtu);
  if (mtus.length === 0) {
    throw wireguardError("WIREGUARD_UNDERLAY", `no interface has the address ${own.join(" or ")}`, {
      details: { own },
    });
  }
  return Math.max(MIN_MTU, Math.min(...mtus) - OVERHEAD_BYTES);
}

/**
 * A packet from a peer's pod may come in by either slot, whichever its answer goes out by: a strict check of the way back
 * (`rp_filter`) would drop it. What counts is the larger value of `all` and the interface's own, so that the value of `all` becomes that
 * of each other interface. Answers what could not be written.
 */
export function relaxReversePath(netns: Netns, devices: readonly string[]): readonly string[] {
  const all = readSetting(netns, "ipv4/conf/all/rp_filter") ?? "0";
  const links = all === "0" ? [] : interfacesOf(netns).filter((name) => !devices.includes(name));
  const wanted: [string, string][] = [
    ...links.flatMap((name): [string, string][] => {
      const path = `ipv4/conf/${name}/rp_filter`;
      const own = readSetting(netns, path) ?? "0";
      return Number(own) < Number(all) ? [[path, all]] : [];
    }),
    ...(all === "0" ? [] : ([["ipv4/conf/all/rp_filter", "0"]] satisfies [string, string][])),
    ...devices.map((name): [string, string] => [`ipv4/conf/${name}/rp_filter`, "0"]),
  ];
  return wanted.flatMap(([path, value]) => (writeSetting(netns, path, value) ? [] : [path]));
}

/** Where the kernel takes settings; a container's own cannot be written, its pod has the node's as well. */
const FOLDERS = ["/proc/sys/net", "/host/proc/sys/net"];

function interfacesOf(netns: Netns): string[] {
  return inNetns(netns, () => readdirSync(`${FOLDERS[0]}/ipv4/conf`)).filter((name) => name !== "all");
}

function readSetting(netns: Netns, path: string): string | undefined {
  return inNetns(netns, () => {
    try {
      return readFileSync(`${FOLDERS[0]}/${path}`, "utf8").trim();
    } catch {
      return undefined; // the kernel has no such setting
    }
  });
}

function writeSetting(netns: Netns, path: string, value: string): boolean {
  return inNetns(netns, () =>
    FOLDERS.some((folder) => {
      try {
        writeFileSync(`${folder}/${path}`, value);
        return true;
      } catch {
        return false;
      }
    }),
  );
}
