import { findIp, type IpAddress } from "#base/ip";

/** As many nameservers as the C library takes. */
const MAX_NAMESERVERS = 3;

/**
 * The nameservers of a resolv.conf(5), in order. Search domains do not count: the client's resolver has applied its own already. Lines
 * that mean nothing, and addresses with a zone, are left out.
 */
export function parseNameservers(text: string): readonly IpAddress[] {
  const servers = text.split("\n").flatMap((line) => {
    const [, address = ""] = /^nameserver\s+(\S+)/.exec(line) ?? [];
    const ip = findIp(address);
    return ip === undefined ? [] : [ip];
  });
  return [...new Set(servers)].slice(0, MAX_NAMESERVERS);
}
