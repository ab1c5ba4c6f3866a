import { linuxError } from "./libc.ts";
import { raiseLoopback } from "./loopback.ts";
import { askNetlink, encodeNumber, NETLINK, NLM_F } from "./netlink.ts";
import type { Netns } from "./netns.ts";

/** Packets with a mark are delivered on this host, whatever their destination: a policy rule, and the one route of its table. */
export interface MarkRoute {
  readonly mark: number;
  readonly mask: number;
  /** Of the rule: a lower one is asked first. */
  readonly priority: number;
  /** At most 255. */
  readonly table: number;
}

const RTM = { newRoute: 24, delRoute: 25, newRule: 32, delRule: 33 } as const;
const FRA = { priority: 6, mark: 10, mask: 16 } as const;
const FR_ACT_TO_TABLE = 1;
const RTA_OIF = 4;
const RTPROT_BOOT = 3;
const RT_SCOPE_HOST = 254;
const RTN_LOCAL = 2;
/** The loopback interface has this number in every namespace. */
const LOOPBACK = 1;
const AF = { 4: 2, 6: 10 } as const;
const [ENOENT, ESRCH, EEXIST] = [2, 3, 17] as const;

/**
 * Adds rule and route; one that is there already counts as done. Switches the loopback on, which the route leads over: a pod's may
 * not have been yet. Throws `LINUX_SYSCALL`.
 */
export function addMarkRoute(netns: Netns, family: 4 | 6, route: MarkRoute): void {
  raiseLoopback(netns);
  const flags = NLM_F.createExclusive;
  change(netns, { type: RTM.newRule, flags, body: ruleBody(family, route) }, [EEXIST]);
  change(netns, { type: RTM.newRoute, flags, body: routeBody(family, route) }, [EEXIST]);
}

/** Removes both; what is gone already counts as done. Throws `LINUX_SYSCALL`. */
export function removeMarkRoute(netns: Netns, family: 4 | 6, route: MarkRoute): void {
  change(netns, { type: RTM.delRule, flags: 0, body: ruleBody(family, route) }, [ENOENT, ESRCH]);
  change(netns, { type: RTM.delRoute, flags: 0, body: routeBody(family, route) }, [ENOENT, ESRCH]);
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

/** `struct fib_rule_hdr` and attributes. */
function ruleBody(family: 4 | 6, { mark, mask, priority, table }: MarkRoute): Buffer {
  const header = Buffer.from([AF[family], 0, 0, 0, table, 0, 0, FR_ACT_TO_TABLE, 0, 0, 0, 0]);
  return Buffer.concat([
    header,
    encodeNumber(FRA.priority, priority),
    encodeNumber(FRA.mark, mark),
    encodeNumber(FRA.mask, mask),
  ]);
}

/** `struct rtmsg` and attributes: to everywhere, on this host. */
function routeBody(family: 4 | 6, { table }: MarkRoute): Buffer {
  const header = Buffer.from([AF[family], 0, 0, 0, table, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0]);
  return Buffer.concat([header, encodeNumber(RTA_OIF, LOOPBACK)]);
}
