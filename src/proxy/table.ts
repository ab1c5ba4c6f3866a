import { cidrContains, isV6, type IpAddress } from "#base/ip";
import { AddressStore } from "./address-store.ts";
import { packAddresses, viewPacket } from "./packed-addresses.ts";
import { addressName, type Address, type NetworkAddress, type Service, type Workload } from "#model/workload";

/** A change of what the control plane says. */
export interface AddressChange {
  readonly upserts: readonly Address[];
  /** Names: a workload's uid, or `namespace/hostname`. */
  readonly removes: readonly string[];
  /** True for what came before the first snapshot was complete: its age is unknown and it counts as old. */
  readonly old: boolean;
}

/** The same, as it goes to the data threads: addresses in memory that all threads share. */
export interface PackedChange extends Omit<AddressChange, "upserts"> {
  readonly packet: SharedArrayBuffer | undefined;
}

const MAX_ADDRESSES = 500_000;

/**
 * What the mesh is, as far as this node knows: workloads by uid and address, services by virtual address and hostname,
 * endpoints by service. Main thread and data threads each keep one, fed by the same changes in the same order; the
 * addresses themselves are there once (docs/adr/0042-addresses-as-bytes.md).
 *
 * A workload names the services it belongs to; the index of endpoints is keyed by those names, so that an endpoint may
 * come before its service (it is staged: known, and not used until the service is there).
 */
export class WorkloadTable {
  readonly #store = new AddressStore();
  readonly #most: number;

  /** `most`: beyond so many workloads and services further ones are refused. */
  constructor(most = MAX_ADDRESSES) {
    this.#most = most;
  }

  /** How many resources it holds. */
  get size(): number {
    return this.#store.size;
  }

  /** Packs a change for all tables, without what does not fit any more: the names of `refused`. */
  pack({ upserts, removes, old }: AddressChange): {
    readonly change: PackedChange;
    readonly refused: readonly string[];
  } {
    const room = this.#most - this.size + removes.length;
    const names = upserts.length <= room ? [] : upserts.map(addressName).filter((name) => !this.#store.has(name));
    const refused = new Set(names.slice(Math.max(0, room)));
    const kept = refused.size === 0 ? upserts : upserts.filter((address) => !refused.has(addressName(address)));
    const packet = kept.length === 0 ? undefined : packAddresses(kept);
    return { change: { packet, removes, old }, refused: [...refused] };
  }

  /** Applies one change, removals first. */
  apply(change: AddressChange | PackedChange, monotonicMs: number): void {
    const { packet, removes, old } = "upserts" in change ? this.pack(change).change : change;
    for (const name of removes) this.#store.remove(name);
    if (packet !== undefined) this.#store.put(viewPacket(packet), old ? -Infinity : monotonicMs);
  }

  /** Addresses whose packing wastes memory; they are to be packed and applied again. At most `most`, often none. */
  wasteful(most: number): readonly Address[] {
    return this.#store.sparse(most);
  }

  /** By uid. */
  findWorkload(uid: string): Workload | undefined {
    const [found] = this.#store.find("name", uid);
    return found?.kind === "workload" ? found : undefined;
  }

  /** By `namespace/hostname`. */
  findService(name: string): Service | undefined {
    const [found] = this.#store.find("name", name);
    return found?.kind === "service" ? found : undefined;
  }

  /**
   * The workload that has this address. While two have it (an address that is re-used), a pod wins over anything else,
   * and an enrolled one over one that is not. Workloads on the host's network are never found by address.
   */
  findWorkloadByIp(network: string, ip: IpAddress): Workload | undefined {
    let best: Workload | undefined;
    for (const workload of workloadsOf(this.#store.find("ip", `${network}/${ip}`))) {
      if (best === undefined || rank(workload) > rank(best)) best = workload;
    }
    return best;
  }

  /** True for the address of a node on whose network workloads are. */
  isHostAddress(network: string, ip: IpAddress): boolean {
    return this.#store.find("hostIp", `${network}/${ip}`).length > 0;
  }

  /**
   * The service that a client in `namespace` reaches by this virtual address: exact addresses before prefixes; among
   * several the client's own namespace, then the longer prefix, then the canonical one.
   */
  findServiceByVip(network: string, ip: IpAddress, namespace: string): Service | undefined {
    const exact = bestService(servicesOf(this.#store.find("vip", `${network}/${ip}`)), namespace);
    if (exact !== undefined) return exact;
    const matching = this.#store.prefixes().filter((service) => prefixLength(service, network, ip) >= 0);
    const longest = (service: Service): number => prefixLength(service, network, ip);
    return bestService(matching, namespace, longest);
  }

  /** The service that a client in `namespace` reaches by this hostname. */
  findServiceByHostname(hostname: string, namespace: string): Service | undefined {
    return bestService(servicesOf(this.#store.find("serviceHost", hostname)), namespace);
  }

  /** A workload of this hostname; of several any. */
  findWorkloadByHostname(namespace: string, hostname: string): Workload | undefined {
    return workloadsOf(this.#store.find("workloadHost", `${namespace}/${hostname}`))[0];
  }

  /** All services of a hostname, whoever may see them. */
  servicesByHostname(hostname: string): Iterable<Service> {
    return servicesOf(this.#store.find("serviceHost", hostname));
  }

  /** All endpoints of a service, healthy or not. */
  endpoints(service: Service): Iterable<Workload> {
    return this.#store.endpoints(addressName(service));
  }

  /** The same, decoded one by one and not kept: for who looks at all services. */
  walkEndpoints(service: Service): Iterable<Workload> {
    return this.#store.walkEndpoints(addressName(service));
  }

  /** When a workload became enrolled, on the monotonic clock; undefined while it is not. */
  enrolledSinceMs(uid: string): number | undefined {
    return this.#store.enrolledSinceMs(uid);
  }

  /** Everything, for a dump. What is walked may change meanwhile. */
  all(): {
    workloads: Iterable<Workload>;
    services: Iterable<Service>;
    /** Endpoints that came before their services, by the services' names. */
    staged: readonly (readonly [service: string, endpoints: Iterable<Workload>])[];
  } {
    const store = this.#store;
    const staged = [...store.served()].filter((name) => this.findService(name) === undefined);
    return {
      workloads: store.all("workload"),
      services: store.all("service"),
      staged: staged.map((name) => [name, store.walkEndpoints(name)]),
    };
  }
}

function workloadsOf(addresses: readonly Address[]): readonly Workload[] {
  return addresses.filter((address) => address.kind === "workload");
}

function servicesOf(addresses: readonly Address[]): readonly Service[] {
  return addresses.filter((address) => address.kind === "service");
}

function rank(workload: Workload): number {
  return (workload.uid.includes("//Pod/") ? 2 : 0) + (workload.tunnelProtocol === "hbone" ? 1 : 0);
}

function bestService(
  services: readonly Service[],
  namespace: string,
  length: (service: Service) => number = () => 0,
): Service | undefined {
  const score = (service: Service): readonly number[] => [
    service.namespace === namespace ? 1 : 0,
    length(service),
    service.canonical ? 1 : 0,
  ];
  let best: Service | undefined;
  for (const service of services) {
    if (service.visibility === "namespace" && service.namespace !== namespace) continue;
    if (best === undefined || isGreater(score(service), score(best))) best = service;
  }
  return best;
}

function isGreater(a: readonly number[], b: readonly number[]): boolean {
  for (const [i, left] of a.entries()) {
    const right = b[i] ?? 0;
    if (left !== right) return left > right;
  }
  return false;
}

/** The longest prefix of the service that holds `ip`, or -1. */
function prefixLength(service: Service, network: string, ip: IpAddress): number {
  const holds = ({ network: own, address, length }: NetworkAddress): number =>
    length !== undefined && own === network && isV6(address) === isV6(ip) && cidrContains({ address, length }, ip)
      ? length
      : -1;
  return Math.max(-1, ...service.addresses.map(holds));
}
