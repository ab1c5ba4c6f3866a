import { bytesToIp, ipToBytes, isV6, type Cidr } from "#base/ip";
import { linuxError } from "./libc.ts";
import { askNetlink, encodeAttribute, encodeNumber, findAttribute, NETLINK, NLM_F } from "./netlink.ts";
import type { Netns } from "./netns.ts";

/** A route to a prefix through an interface, in a table of its own. */
export interface Route {
  readonly table: number;
  readonly destination: Cidr;
  /** Of the interface. */
  readonly link: number;
}

/** A rule that sends packets to a table. What is not given is not asked for. */
export interface RoutingRule {
  /** A lower one is asked first; it names the rule: there is at most one of each priority and source. */
  readonly priority: number;
  readonly table: number;
  readonly family: 4 | 6;
  readonly from?: Cidr;
  readonly mark?: { readonly value: number; readonly mask: number };
  /** Name of the interface that a socket is bound to. */
  readonly outInterface?: string;
}

/** The kernel's own table of routes to everywhere. */
export const MAIN_TABLE = 254;

const RTM = { newRoute: 24, delRoute: 25, getRoute: 26, newRule: 32, delRule: 33, getRule: 34 } as const;
const RTA = { destination: 1, outInterface: 4, table: 15 } as const;
const FRA = { source: 2, priority: 6, mark: 10, table: 15, mask: 16, outInterface: 17 } as const;
const HEADER_BYTES = 12;
const FR_ACT_TO_TABLE = 1;
const RTPROT_STATIC = 4;
const RT_SCOPE_LINK = 253;
const RTN_UNICAST = 1;
const CREATE_OR_REPLACE = 0x500;
const AF = { 4: 2, 6: 10 } as const;
const [ENOENT, ESRCH, EEXIST] = [2, 3, 17] as const;

/** Sets the one route of a table to a prefix, in one step: no packet meets a gap. Throws `LINUX_SYSCALL`. */
export function replaceRoute(netns: Netns, route: Route): void {
  change(netns, { type: RTM.newRoute, flags: CREATE_OR_REPLACE, body: routeBody(route) }, []);
}

/** Removes a route; what is gone already counts as done. Throws `LINUX_SYSCALL`. */
export function deleteRoute(netns: Netns, route: Route): void {
  change(netns, { type: RTM.delRoute, flags: 0, body: routeBody(route) }, [ENOENT, ESRCH]);
}

/** The routes of a table that lead through interfaces. Throws `LINUX_SYSCALL`. */
export function listRoutes(netns: Netns, family: 4 | 6, table: number): readonly Route[] {
  const body = Buffer.alloc(HEADER_BYTES);
  body[0] = AF[family];
  return ask(netns, RTM.getRoute, body).flatMap((message) => {
    const attributes = message.subarray(HEADER_BYTES);
    const [own, link] = [findAttribute(attributes, RTA.table), findAttribute(attributes, RTA.outInterface)];
    if (own?.readUInt32LE(0) !== table || link === undefined) return [];
    return [
      {
        table,
        link: link.readUInt32LE(0),
        destination: prefix(family, message[1] ?? 0, findAttribute(attributes, RTA.destination)),
      },
    ];
  });
}

/** Adds a rule; one that is there already counts as done. Throws `LINUX_SYSCALL`. */
export function addRule(netns: Netns, rule: RoutingRule): void {
  change(netns, { type: RTM.newRule, flags: NLM_F.createExclusive, body: ruleBody(rule) }, [EEXIST]);
}

/** Removes a rule; what is gone already counts as done. Throws `LINUX_SYSCALL`. */
export function deleteRule(netns: Netns, rule: RoutingRule): void {
  change(netns, { type: RTM.delRule, flags: 0, body: ruleBody(rule) }, [ENOENT, ESRCH]);
}

/** The rules of a family with one of these priorities. Throws `LINUX_SYSCALL`. */
export function listRules(netns: Netns, family: 4 | 6, priorities: readonly number[]): readonly RoutingRule[] {
  const body = Buffer.alloc(HEADER_BYTES);
  body[0] = AF[family];
  return ask(netns, RTM.getRule, body).flatMap((message) => {
    const attributes = message.subarray(HEADER_BYTES);
    const number = (type: number): number => findAttribute(attributes, type)?.readUInt32LE(0) ?? 0;
    const priority = number(FRA.priority);
    if (!priorities.includes(priority)) return [];
    const source = findAttribute(attributes, FRA.source);
    const outInterface = findAttribute(attributes, FRA.outInterface)?.toString("latin1").replace(/\0.*$/, "");
    const hasMark = findAttribute(attributes, FRA.mark) !== undefined;
    return [
      {
        priority,
        family,
        table: number(FRA.table),
        ...(source !== undefined && { from: prefix(family, message[2] ?? 0, source) }),
        ...(hasMark && { mark: { value: number(FRA.mark), mask: number(FRA.mask) } }),
        ...(outInterface !== undefined && { outInterface }),
      },
    ];
  });
}

function prefix(family: 4 | 6, length: number, bytes: Buffer | undefined): Cidr {
  return { address: bytesToIp(bytes ?? new Uint8Array(family === 4 ? 4 : 16)), length };
}

function ask(netns: Netns, type: number, body: Buffer): readonly Buffer[] {
  const { errno, parts } = askNetlink(netns, NETLINK.route, { type, flags: NLM_F.dump, body });
  if (errno !== 0) throw linuxError("LINUX_SYSCALL", `routes or rules cannot be listed: errno ${errno}`);
  return parts.filter((part) => part.length >= HEADER_BYTES);
}

function change(
  netns: Netns,
  request: { readonly type: number; readonly flags: number; readonly body: Buffer },
  done: readonly number[],
): void {
  const { errno } = askNetlink(netns, NETLINK.route, { ...request, flags: request.flags | NLM_F.ack });
  if (errno === 0 || done.includes(errno)) return;
  throw linuxError("LINUX_SYSCALL", `a route or rule was refused: errno ${errno}`, {
    details: { errno, type: request.type },
  });
}

/** `struct rtmsg` and attributes. */
function routeBody({ table, destination, link }: Route): Buffer {
  const family = isV6(destination.address) ? 6 : 4;
  const header = Buffer.alloc(HEADER_BYTES);
  header.set([AF[family], destination.length, 0, 0, 0, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST]);
  return Buffer.concat([
    header,
    encodeAttribute(RTA.destination, ipToBytes(destination.address)),
    encodeNumber(RTA.outInterface, link),
    encodeNumber(RTA.table, table),
  ]);
}

/** `struct fib_rule_hdr` and attributes. */
function ruleBody({ family, priority, table, from, mark, outInterface }: RoutingRule): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.set([AF[family], 0, from?.length ?? 0, 0, 0, 0, 0, FR_ACT_TO_TABLE]);
  return Buffer.concat([
    header,
    encodeNumber(FRA.priority, priority),
    encodeNumber(FRA.table, table),
    ...(from === undefined ? [] : [encodeAttribute(FRA.source, ipToBytes(from.address))]),
    ...(mark === undefined ? [] : [encodeNumber(FRA.mark, mark.value), encodeNumber(FRA.mask, mark.mask)]),
    ...(outInterface === undefined ? [] : [encodeAttribute(FRA.outInterface, Buffer.from(`${outInterface}\0`))]),
  ]);
}
