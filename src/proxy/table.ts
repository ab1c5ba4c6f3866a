import { cidrContains, isV6, type IpAddress } from "#base/ip";
import { addressName, type Address, type NetworkAddress, type Service, type Workload } from "#model/workload";

/** A change of what the control plane says. */
export interface AddressChange {
  readonly upserts: readonly Address[];
  /** Names: a workload's uid, or `namespace/hostname`. */
  readonly removes: readonly string[];
  /** True for what came before the first snapshot was complete: its age is unknown and it counts as old. */
  readonly old: boolean;
}

/** Beyond this many workloads and services further ones are refused. */
const MAX_ADDRESSES = 500_000;

/**
 * What the mesh is, as far as this node knows: workloads by uid and address, services by virtual address and hostname,
 * endpoints by service. Main thread and data threads each keep one, fed by the same changes in the same order.
 *
 * A workload names the services it belongs to; the index of endpoints is keyed by those names, so that an endpoint may
 * come before its service (it is staged: known, and not used until the service is there).
 */
export class WorkloadTable {
  readonly #workloads = new Map<string, Workload>();
  readonly #services = new Map<string, Service>();
  /** `network/ip` to uids; more than one while an address is re-used. */
  readonly #byIp = new Map<string, Map<string, Workload>>();
  /** `network/ip` to service names. */
  readonly #byVip = new Map<string, Map<string, Service>>();
  readonly #byHostname = new Map<string, Map<string, Service>>();
  /** `namespace/hostname` to workloads that have a hostname: few. */
  readonly #namedWorkloads = new Map<string, Map<string, Workload>>();
  /** Services with a prefix instead of an address: few, looked at one by one. */
  readonly #prefixes = new Map<string, Service>();
  /** `namespace/hostname` to endpoints by uid. */
  readonly #endpoints = new Map<string, Map<string, Workload>>();
  /** When a workload became HBONE, by `monotonic`; -Infinity for what counts as old. */
  readonly #enrolledSince = new Map<string, number>();

  /** How many resources it holds. */
  get size(): number {
    return this.#workloads.size + this.#services.size;
  }

  /** Applies one change, removals first. Returns the names that were refused because the table is full. */
  apply(change: AddressChange, monotonicMs: number): readonly string[] {
    for (const name of change.removes) this.#remove(name);
    const refused: string[] = [];
    for (const address of change.upserts) {
      const name = addressName(address);
      const known = this.#workloads.has(name) || this.#services.has(name);
      if (!known && this.size >= MAX_ADDRESSES) refused.push(name);
      else if (address.kind === "workload") this.#putWorkload(address, change.old ? -Infinity : monotonicMs);
      else this.#putService(name, address);
    }
    return refused;
  }

  /** By uid. */
  findWorkload(uid: string): Workload | undefined {
    return this.#workloads.get(uid);
  }

  /** By `namespace/hostname`. */
  findService(name: string): Service | undefined {
    return this.#services.get(name);
  }

  /**
   * The workload that has this address. While two have it (an address that is re-used), a pod wins over anything else,
   * and an enrolled one over one that is not. Workloads on the host's network are never found by address.
   */
  findWorkloadByIp(network: string, ip: IpAddress): Workload | undefined {
    let best: Workload | undefined;
    for (const workload of this.#byIp.get(`${network}/${ip}`)?.values() ?? []) {
      if (best === undefined || rank(workload) > rank(best)) best = workload;
    }
    return best;
  }

  /**
   * The service that a client in `namespace` reaches by this virtual address: exact addresses before prefixes; among
   * several the client's own namespace, then the longer prefix, then the canonical one.
   */
  findServiceByVip(network: string, ip: IpAddress, namespace: string): Service | undefined {
    const exact = bestService([...(this.#byVip.get(`${network}/${ip}`)?.values() ?? [])], namespace);
    if (exact !== undefined || this.#prefixes.size === 0) return exact;
    const matching = [...this.#prefixes.values()].filter((service) => prefixLength(service, network, ip) >= 0);
    const longest = (service: Service): number => prefixLength(service, network, ip);
    return bestService(matching, namespace, longest);
  }

  /** The service that a client in `namespace` reaches by this hostname. */
  findServiceByHostname(hostname: string, namespace: string): Service | undefined {
    return bestService([...(this.#byHostname.get(hostname)?.values() ?? [])], namespace);
  }

  /** A workload of this hostname; of several any. */
  findWorkloadByHostname(namespace: string, hostname: string): Workload | undefined {
    return this.#namedWorkloads.get(`${namespace}/${hostname}`)?.values().next().value;
  }

  /** All endpoints of a service, healthy or not. */
  endpoints(service: Service): Iterable<Workload> {
    return this.#endpoints.get(addressName(service))?.values() ?? [];
  }

  /** When a workload became enrolled, on the monotonic clock; undefined while it is not. */
  enrolledSinceMs(uid: string): number | undefined {
    return this.#enrolledSince.get(uid);
  }

  /** Everything, for a dump. What is walked may change meanwhile. */
  all(): {
    workloads: Iterable<Workload>;
    services: Iterable<Service>;
    /** Endpoints that came before their services, by the services' names. */
    staged: readonly (readonly [service: string, endpoints: Iterable<Workload>])[];
  } {
    const staged = [...this.#endpoints].filter(([name]) => !this.#services.has(name));
    return {
      workloads: this.#workloads.values(),
      services: this.#services.values(),
      staged: staged.map(([name, endpoints]) => [name, endpoints.values()]),
    };
  }

  #putWorkload(workload: Workload, sinceMs: number): void {
    const before = this.#workloads.get(workload.uid);
    if (before !== undefined) this.#unlinkWorkload(before);
    this.#workloads.set(workload.uid, workload);
    for (const key of ipKeys(workload)) link(this.#byIp, key, workload);
    for (const service of Object.keys(workload.services)) link(this.#endpoints, service, workload);
    if (workload.hostname !== "") link(this.#namedWorkloads, nameOf(workload), workload);
    if (workload.tunnelProtocol !== "hbone") this.#enrolledSince.delete(workload.uid);
    else if (!this.#enrolledSince.has(workload.uid)) this.#enrolledSince.set(workload.uid, sinceMs);
  }

  #putService(name: string, service: Service): void {
    const before = this.#services.get(name);
    if (before !== undefined) this.#unlinkService(name, before);
    this.#services.set(name, service);
    link(this.#byHostname, service.hostname, service);
    for (const address of service.addresses) {
      if (address.length === undefined) link(this.#byVip, `${address.network}/${address.address}`, service);
      else this.#prefixes.set(name, service);
    }
  }

  #remove(name: string): void {
    const workload = this.#workloads.get(name);
    if (workload !== undefined) {
      this.#unlinkWorkload(workload);
      this.#workloads.delete(name);
      this.#enrolledSince.delete(name);
      return;
    }
    const service = this.#services.get(name);
    if (service === undefined) return;
    this.#unlinkService(name, service);
    this.#services.delete(name);
  }

  #unlinkWorkload(workload: Workload): void {
    for (const key of ipKeys(workload)) unlink(this.#byIp, key, workload.uid);
    for (const service of Object.keys(workload.services)) unlink(this.#endpoints, service, workload.uid);
    unlink(this.#namedWorkloads, nameOf(workload), workload.uid);
  }

  #unlinkService(name: string, service: Service): void {
    unlink(this.#byHostname, service.hostname, name);
    for (const address of service.addresses) unlink(this.#byVip, `${address.network}/${address.address}`, name);
    this.#prefixes.delete(name);
  }
}

function link<T extends Address>(index: Map<string, Map<string, T>>, key: string, value: T): void {
  const name = addressName(value);
  const entry = index.get(key);
  if (entry === undefined) index.set(key, new Map([[name, value]]));
  else entry.set(name, value);
}

function unlink(index: Map<string, Map<string, unknown>>, key: string, name: string): void {
  const entry = index.get(key);
  entry?.delete(name);
  if (entry?.size === 0) index.delete(key);
}

function ipKeys(workload: Workload): string[] {
  return workload.hostNetwork ? [] : workload.addresses.map((ip) => `${workload.network}/${ip}`);
}

function nameOf({ namespace, hostname }: Workload): string {
  return `${namespace}/${hostname}`;
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
