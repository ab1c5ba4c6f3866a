import { hash } from "node:crypto";
import { addressName, type Address } from "#model/workload";
import { encodeAddress } from "#proto";
import { messageOf } from "#base/errors";
import { addressAlias, type Problem } from "./cluster.ts";

/** An address in the form in which xDS carries it. */
export interface PublishedAddress {
  readonly name: string;
  readonly version: string;
  readonly aliases: readonly string[];
  readonly value: Uint8Array;
}

/** Encodes an address. Its version is a digest of its bytes, so that equal content is never sent twice. */
function publish(address: Address): PublishedAddress {
  const value = encodeAddress(address);
  return {
    name: addressName(address),
    version: hash("sha256", value, "hex").slice(0, 16),
    aliases: aliases(address),
    value,
  };
}

/** Addresses of host-network workloads are those of nodes, and name nobody. */
function aliases(address: Address): string[] {
  if (address.kind === "workload") {
    return address.hostNetwork ? [] : address.addresses.map((ip) => addressAlias(address.network, ip));
  }
  return address.addresses.map(({ network, address: ip, length }) => {
    const alias = addressAlias(network, ip);
    return length === undefined ? alias : `${alias}/${length}`;
  });
}

/** What was published, and what changes: what an object makes now replaces what it made before. */
export class Publications {
  /** Version by name, and the names by the object they come from. */
  readonly #versions = new Map<string, string>();
  readonly #names = new Map<string, ReadonlySet<string>>();
  #upserts = new Map<string, PublishedAddress>();
  #removes = new Set<string>();

  /** Publishes what `source` makes now. What cannot be computed stays as it was, and is returned as a problem. */
  settle(source: string, make: () => readonly Address[]): readonly Problem[] {
    let published: readonly PublishedAddress[];
    try {
      published = make().map(publish);
    } catch (error) {
      return [{ object: source, field: "", message: messageOf(error) }];
    }
    const names = new Set(published.map(({ name }) => name));
    for (const name of this.#names.get(source) ?? []) {
      if (names.has(name)) continue;
      this.#versions.delete(name);
      this.#removes.add(name);
    }
    for (const address of published) {
      if (this.#versions.get(address.name) === address.version) continue;
      this.#versions.set(address.name, address.version);
      this.#upserts.set(address.name, address);
    }
    if (names.size === 0) this.#names.delete(source);
    else this.#names.set(source, names);
    return [];
  }

  /** What has changed since the last time. A name that goes from one object to another is not removed. */
  take(): { readonly upserts: readonly PublishedAddress[]; readonly removes: readonly string[] } {
    const upserts = [...this.#upserts.values()];
    const removes = [...this.#removes].filter((name) => !this.#upserts.has(name));
    this.#upserts = new Map();
    this.#removes = new Set();
    return { upserts, removes };
  }
}
