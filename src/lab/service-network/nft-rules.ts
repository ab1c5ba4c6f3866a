import type { VirtualPort } from "./endpoints.ts";

/** The table in the node's network namespace that everything of the service proxy is in. */
export const TABLE = "veil-lab-services";
const CHAIN_PREFIX = "svc-";

/** What the rules depend on besides services. */
export interface RuleFrame {
  readonly serviceCidr: string;
  /** Address of the cluster's DNS: it is the node's own. */
  readonly dns: string;
  readonly nodeAddress: string;
}

/** The chain of one virtual port. */
export function chainName({ ip, protocol, port }: VirtualPort): string {
  return `${CHAIN_PREFIX}${ip.replaceAll(".", "-")}-${protocol}-${port}`;
}

/**
 * One transaction that brings the table to `ports`, from whatever state it is in. Base chains are never removed:
 * removing them would cut translated connections. `existing`: names of the chains that are there now.
 *
 *     to a service's address ─▶ map `ports` ─▶ chain of the port ─▶ dnat to a random ready endpoint
 *                                                              (no endpoint: no translation, and then refused)
 */
export function serviceRules(ports: readonly VirtualPort[], frame: RuleFrame, existing: readonly string[]): string {
  const alive = ports.filter(({ endpoints }) => endpoints.length > 0);
  const wanted = new Set(alive.map(chainName));
  const stale = existing.filter((chain) => chain.startsWith(CHAIN_PREFIX) && !wanted.has(chain));
  const own = [...new Set(alive.flatMap(({ endpoints }) => endpoints.map(({ ip }) => ip)))];
  return [
    `add table ip ${TABLE}`,
    ...frameLines(frame),
    `flush map ip ${TABLE} ports`,
    `flush set ip ${TABLE} endpoints`,
    ...alive.flatMap(chainLines),
    ...stale.flatMap((chain) => [`flush chain ip ${TABLE} ${chain}`, `delete chain ip ${TABLE} ${chain}`]),
    ...own.map((ip) => `add element ip ${TABLE} endpoints { ${ip} . ${ip} }`),
    "",
  ].join("\n");
}

function frameLines({ serviceCidr, dns, nodeAddress }: RuleFrame): string[] {
  const add = (rest: string): string => `add ${rest}`;
  const chain = (name: string, type: string, rules: readonly string[]): string[] => [
    add(`chain ip ${TABLE} ${name} { ${type} ; policy accept ; }`),
    `flush chain ip ${TABLE} ${name}`,
    ...rules.map((rule) => add(`rule ip ${TABLE} ${name} ${rule}`)),
  ];
  const translate = [`ip daddr . meta l4proto . th dport vmap @ports`];
  const refuse = [
    `ip daddr ${serviceCidr} ip daddr != ${dns} meta l4proto tcp reject with tcp reset`,
    `ip daddr ${serviceCidr} ip daddr != ${dns} reject with icmp type port-unreachable`,
  ];
  return [
    add(`map ip ${TABLE} ports { type ipv4_addr . inet_proto . inet_service : verdict ; }`),
    add(`set ip ${TABLE} endpoints { type ipv4_addr . ipv4_addr ; }`),
    ...chain("prerouting", "type nat hook prerouting priority dstnat", translate),
    ...chain("output", "type nat hook output priority -100", translate),
    // A pod that reaches itself through a service would not know its own packets: only they get another source.
    ...chain("postrouting", "type nat hook postrouting priority srcnat", [
      `ct status dnat ip saddr . ip daddr @endpoints snat to ${nodeAddress}`,
    ]),
    ...chain("forward", "type filter hook forward priority filter", refuse),
    ...chain("refuse-own", "type filter hook output priority filter", refuse),
  ];
}

function chainLines(port: VirtualPort): string[] {
  const chain = chainName(port);
  const choices = port.endpoints.map(({ ip, port }, index) => `${index} : ${ip} . ${port}`).join(", ");
  const target = `numgen random mod ${port.endpoints.length} map { ${choices} }`;
  return [
    `add chain ip ${TABLE} ${chain}`,
    `flush chain ip ${TABLE} ${chain}`,
    `add rule ip ${TABLE} ${chain} meta l4proto ${port.protocol} dnat ip to ${target}`,
    `add element ip ${TABLE} ports { ${port.ip} . ${port.protocol} . ${port.port} : goto ${chain} }`,
  ];
}

/** Names of the chains in the answer of `nft -j list chains`. Of a text that is no such answer: none. */
export function parseChains(text: string): string[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return [];
  }
  const list = member(value, "nftables");
  if (!Array.isArray(list)) return [];
  return list.flatMap((item): string[] => {
    const chain = member(item, "chain");
    const name = member(chain, "name");
    return member(chain, "table") === TABLE && typeof name === "string" ? [name] : [];
  });
}

function member(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? Reflect.get(value, name) : undefined;
}
