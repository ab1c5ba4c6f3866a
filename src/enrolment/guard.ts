import { listLinks, listTables, runNft, type Netns } from "#linux";

/** The nft table in a pod's namespace. It is Veil's alone. */
export const GUARD_TABLE = "netdev veil_guard";

const LOOPBACK = 1;
/** Where proxies speak mTLS with each other. */
const PORT = 15_008;

/**
 * The transaction that lets nothing but the proxy send to or from port 15008 through a pod's interfaces, also not past the rules of a
 * socket's own layer (AF_PACKET): what leaves the pod with that port is mTLS. Resets without data, with which the kernel refuses what
 * comes when no proxy listens, pass. A pod that may set marks (`CAP_NET_RAW`, `CAP_NET_ADMIN`) can pass for its proxy, as it can towards
 * redirection. Idempotent.
 */
export function guardScript(interfaces: readonly string[]): string {
  const devices = interfaces.map((name) => `"${name}"`).join(", ");
  const rules = [
    "meta mark & 0xfff == 0x539 accept",
    `tcp flags & rst == rst ip length 40 accept`,
    `tcp flags & rst == rst ip6 length 20 accept`,
    `tcp dport ${PORT} counter drop`,
    `tcp sport ${PORT} counter drop`,
  ];
  return `add table ${GUARD_TABLE}
delete table ${GUARD_TABLE}
add table ${GUARD_TABLE}
add chain ${GUARD_TABLE} leaving { type filter hook egress devices = { ${devices} } priority 0; policy accept; }
${rules.map((rule) => `add rule ${GUARD_TABLE} leaving ${rule}\n`).join("")}`;
}

/** Guards a pod's port 15008. Idempotent. Throws `LINUX_COMMAND`, `LINUX_NETNS_GONE`. */
export async function guardPort(netns: Netns): Promise<void> {
  const interfaces = listLinks(netns).filter(({ index }) => index !== LOOPBACK);
  if (interfaces.length === 0) return; // nothing leaves it
  await runNft(guardScript(interfaces.map(({ name }) => name)), { netns });
}

/** Ends that. What is not there counts as done. Throws `LINUX_COMMAND`, `LINUX_NETNS_GONE`. */
export async function unguardPort(netns: Netns): Promise<void> {
  if (listTables(netns).includes(GUARD_TABLE)) await runNft(`delete table ${GUARD_TABLE}\n`, { netns });
}
