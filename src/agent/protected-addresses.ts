import type { IpAddress } from "#base/ip";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { decodeAddress } from "#proto";
import { TYPE_ADDRESS, type CachedResource, type ResourceUpdate } from "#xds";
import type { UpdateGate } from "./controller-link.ts";

/** The kernel's set of addresses whose proxies speak mTLS. */
export interface AddressSet {
  setEnrolled(addresses: readonly IpAddress[]): Promise<void>;
  changeEnrolled(joined: readonly IpAddress[], left: readonly IpAddress[]): Promise<void>;
}

/**
 * Keeps the kernel's set of enrolled addresses ahead of this node's proxy: an address joins before the proxy may open its first mTLS
 * connection there, and leaves when the proxy has confirmed that it opens none any more; at once when it is another pod's now that is not
 * enrolled. A connection that finds its address missing is encrypted twice, never not at all.
 */
export class ProtectedAddresses implements UpdateGate {
  readonly #set: AddressSet;
  readonly #log: Log;
  /** Addresses of each enrolled workload, and the workload of each address. */
  readonly #enrolled = new Map<string, readonly IpAddress[]>();
  readonly #owners = new Map<IpAddress, string>();
  /** Of workloads that are not enrolled any more, until proxies have confirmed it. */
  readonly #leaving = new Map<string, readonly IpAddress[]>();
  #isFirst = true;

  constructor(set: AddressSet, log: Log) {
    this.#set = set;
    this.#log = log;
  }

  async before({ typeUrl, upserts, removes }: ResourceUpdate): Promise<void> {
    if (typeUrl !== TYPE_ADDRESS) return;
    const joined = new Set<IpAddress>();
    const taken = new Set<IpAddress>();
    for (const name of removes) this.#release(name);
    for (const resource of upserts) this.#take(resource, { joined, taken });
    const first = this.#isFirst;
    this.#isFirst = false;
    // What an earlier agent has left is made equal in one step.
    if (first) await this.#try(this.#set.setEnrolled([...this.#owners.keys()]));
    else await this.#change([...joined], [...taken]);
  }

  async after({ typeUrl, upserts, removes }: ResourceUpdate): Promise<void> {
    if (typeUrl !== TYPE_ADDRESS) return;
    const left: IpAddress[] = [];
    for (const name of [...removes, ...upserts.map((resource) => resource.name)]) {
      if (this.#enrolled.has(name)) continue; // again, meanwhile
      for (const ip of this.#leaving.get(name) ?? []) {
        if (this.#owners.get(ip) !== name) continue; // another's, meanwhile
        this.#owners.delete(ip);
        left.push(ip);
      }
      this.#leaving.delete(name);
    }
    await this.#change([], left);
  }

  #take(resource: CachedResource, change: { readonly joined: Set<IpAddress>; readonly taken: Set<IpAddress> }): void {
    const { name } = resource;
    const address = this.#decode(resource);
    if (address?.kind !== "workload") return;
    this.#release(name);
    if (address.tunnelProtocol === "hbone") {
      this.#enrolled.set(name, address.addresses);
      for (const ip of address.addresses) {
        if (!this.#owners.has(ip)) change.joined.add(ip);
        this.#owners.set(ip, name);
      }
      return;
    }
    for (const ip of address.addresses) {
      const owner = this.#owners.get(ip);
      if (owner === undefined || owner === name) continue;
      this.#owners.delete(ip);
      change.taken.add(ip);
    }
  }

  /** The workload is not enrolled, or not there, any more. */
  #release(name: string): void {
    const addresses = this.#enrolled.get(name);
    if (addresses === undefined) return;
    this.#enrolled.delete(name);
    this.#leaving.set(name, [...(this.#leaving.get(name) ?? []), ...addresses]);
  }

  #decode(resource: CachedResource): ReturnType<typeof decodeAddress> | undefined {
    try {
      return decodeAddress(resource.value);
    } catch {
      return undefined; // the proxy refuses it, and says why
    }
  }

  #change(joined: readonly IpAddress[], left: readonly IpAddress[]): Promise<void> {
    if (joined.length === 0 && left.length === 0) return Promise.resolve();
    return this.#try(this.#set.changeEnrolled(joined, left));
  }

  async #try(change: Promise<void>): Promise<void> {
    await change.catch((error: unknown) => {
      this.#log.error({ reason: messageOf(error) }, "addresses of enrolled pods cannot be told to the kernel");
    });
  }
}
