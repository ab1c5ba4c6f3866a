import { linuxError } from "./libc.ts";
import { askNetlink, findAttribute, NETLINK, NLM_F } from "./netlink.ts";
import type { Netns } from "./netns.ts";

const CTNETLINK_DELETE = (1 << 8) | 2;
const NFT_GET_TABLE = (10 << 8) | 1;
const NFTA_TABLE_NAME = 1;
/** `struct nfgenmsg`: all families, no filter. */
const ANY_FAMILY = new Uint8Array(4);
/** `NFPROTO_*`, by the names that nft has for them. */
const FAMILIES: Readonly<Record<number, string>> = {
  1: "inet",
  2: "ip",
  3: "arp",
  5: "netdev",
  7: "bridge",
  10: "ip6",
};

/**
 * Forgets every connection that the kernel tracks in a namespace (what `conntrack -F` does). Connections that no address
 * translation applies to go on. Throws `LINUX_SYSCALL` when the kernel refuses.
 */
export function flushConntrack(netns: Netns): void {
  const request = { type: CTNETLINK_DELETE, flags: NLM_F.ack, body: ANY_FAMILY };
  const { errno } = askNetlink(netns, NETLINK.netfilter, request);
  if (errno !== 0) throw linuxError("LINUX_SYSCALL", `cannot flush tracked connections: errno ${errno}`);
}

/** The nft tables of a namespace, as `nft list tables` names them: `inet veil`. Throws `LINUX_SYSCALL` when the kernel refuses. */
export function listTables(netns: Netns): readonly string[] {
  const request = { type: NFT_GET_TABLE, flags: NLM_F.dump, body: ANY_FAMILY };
  const { errno, parts } = askNetlink(netns, NETLINK.netfilter, request);
  if (errno !== 0) throw linuxError("LINUX_SYSCALL", `cannot list nft's tables: errno ${errno}`);
  return parts.map((part) => {
    const name = findAttribute(part.subarray(ANY_FAMILY.length), NFTA_TABLE_NAME);
    return `${FAMILIES[part[0] ?? 0] ?? "unknown"} ${name?.toString("utf8").replace(/\0$/, "") ?? ""}`;
  });
}
