import { isV6, type IpAddress } from "#base/ip";
import type { Random } from "#base/random";
import type { Service, Workload } from "#model/workload";
import { TYPE_AAAA, type AddressAnswer } from "./message.ts";
import { aliases, wildcards, type Alias, type SearchScope } from "./names.ts";

/** What is looked up: services by hostname, and what stands behind them. The proxy's table is one. */
export interface NameTable {
  servicesByHostname(hostname: string): Iterable<Service>;
  endpoints(service: Service): Iterable<Workload>;
}

/** Who asks, and how the answers are to be. */
export interface Resolver {
  readonly table: NameTable;
  readonly scope: SearchScope;
  /** The network whose addresses the client reaches. */
  readonly network: string;
  /** Among services of other namespaces that are not canonical, those of this namespace come first; empty: none does. */
  readonly preferredNamespace: string;
  /** False: there are no AAAA records. */
  readonly ipv6: boolean;
  readonly random: Random;
}

/**
 * What becomes of a question about addresses.
 *
 * - `answer`: it is ours; no addresses means that the name exists and has none of that family (NOERROR, never NXDOMAIN).
 * - `forward`: nobody here has the name.
 */
export type Resolution =
  | ({ readonly kind: "answer"; readonly service: Service } & AddressAnswer)
  | { readonly kind: "forward" };

const FORWARD: Resolution = { kind: "forward" };

/**
 * Decides what becomes of a question (zt src/dns/server.rs). The readings of the name are gone through from the literal one on, each with
 * its wildcards; the first that a service has decides. A service counts when the client's namespace may see it and when it has a virtual
 * address, or is one of the cluster's own (headless): a ServiceEntry without address is resolved by whoever knows the outside.
 */
export function resolve(name: string, type: number, resolver: Resolver): Resolution {
  for (const alias of aliases(name, resolver.scope)) {
    for (const hostname of wildcards(alias.name)) {
      const service = findService(hostname, resolver);
      if (service !== undefined)
        return answerFor(service, type, { alias, isWildcard: hostname !== alias.name, resolver });
    }
  }
  return FORWARD;
}

function findService(hostname: string, { table, scope, preferredNamespace }: Resolver): Service | undefined {
  let best: Service | undefined;
  let bestRank = -1;
  for (const service of table.servicesByHostname(hostname)) {
    const isOwn = service.namespace === scope.namespace;
    if (service.visibility === "namespace" && !isOwn) continue;
    if (virtualIps(service).length === 0 && !service.hostname.endsWith(`.svc.${scope.clusterDomain}`)) continue;
    const rank = isOwn ? 3 : service.canonical ? 2 : service.namespace === preferredNamespace ? 1 : 0;
    if (rank > bestRank) [best, bestRank] = [service, rank];
  }
  return best;
}

function answerFor(
  service: Service,
  type: number,
  how: { readonly alias: Alias; readonly isWildcard: boolean; readonly resolver: Resolver },
): Resolution {
  const { alias, isWildcard, resolver } = how;
  const v6 = type === TYPE_AAAA;
  const addresses = hasFamily(service, v6, resolver)
    ? shuffle(addressesOf(service, v6, resolver), resolver.random)
    : [];
  return { kind: "answer", service, addresses, strippedTo: isWildcard ? undefined : alias.strippedTo };
}

/** A headless service of one family may have endpoints of both: only its own family is told. */
function hasFamily({ ipFamilies }: Service, v6: boolean, { ipv6 }: Resolver): boolean {
  if (v6) return ipv6 && ipFamilies !== "ipv4";
  return ipFamilies !== "ipv6";
}

function addressesOf(service: Service, v6: boolean, { table, network }: Resolver): IpAddress[] {
  const virtual = virtualIps(service);
  if (virtual.length === 0) return endpointAddresses(service, v6, table);
  return virtual.flatMap(({ address, network: own }) => (own === network && isV6(address) === v6 ? [address] : []));
}

/** A prefix is where a service is reached, but no address that could be told. */
function virtualIps({ addresses }: Service): Service["addresses"] {
  return addresses.filter(({ length }) => length === undefined);
}

/** One address of each endpoint that may be used. */
function endpointAddresses(service: Service, v6: boolean, table: NameTable): IpAddress[] {
  const found = new Set<IpAddress>();
  for (const { addresses, healthy } of table.endpoints(service)) {
    if (!healthy && !service.loadBalancing.allowUnhealthy) continue;
    const address = addresses.find((ip) => isV6(ip) === v6);
    if (address !== undefined) found.add(address);
  }
  return [...found];
}

/** Fisher and Yates: the first address is anybody's, so that clients that take it spread. */
function shuffle(addresses: IpAddress[], random: Random): readonly IpAddress[] {
  for (let last = addresses.length - 1; last > 0; last--) {
    const other = random.below(last + 1);
    const [a, b] = [addresses[last], addresses[other]];
    if (a !== undefined && b !== undefined) [addresses[last], addresses[other]] = [b, a];
  }
  return addresses;
}
