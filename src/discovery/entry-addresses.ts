import { hash } from "node:crypto";
import { findIp, parseIp, type IpAddress } from "#base/ip";
import type { ServiceEntry } from "#kube";
import type { Problem } from "./cluster.ts";
import { Multimap } from "./multimap.ts";
import { hostsToAddress } from "./service-entry.ts";

/** What the status of a ServiceEntry is to say. */
export interface AddressVerdict {
  /** As it was read: its version guards the write. */
  readonly entry: ServiceEntry;
  /** The whole list, in the order of the hosts; empty when the entry gets none any more. */
  readonly addresses: readonly { readonly value: string; readonly host: string }[];
}

/** Addresses of each family that are given, as upstream's: all of 240.240.0.0/16 but its first and last, and 2001:2::1 to 2001:2::fffe. */
const ADDRESSES = 65_534;

interface Known {
  readonly entry: ServiceEntry;
  /** The hosts that get addresses. */
  readonly hosts: readonly string[];
  readonly given: ReadonlyMap<string, readonly IpAddress[]>;
  /** Written by its author. */
  readonly own: ReadonlySet<IpAddress>;
}

/**
 * Gives addresses to the hosts of ServiceEntries that have none, so that connections to them can be told apart: one of
 * 240.240.0.0/16 and one of 2001:2::/48 for each. Where the search for a free one begins is made of the entry's and the host's
 * names: every replica of the controller finds the same, and a host that comes back gets the address that it had.
 *
 * What is given stays, until the entry gets none any more or somebody else has the address: its author by writing it down, or
 * an older entry (two replicas may have given it at the same time). Holds one entry per object.
 * Source: istio pilot/pkg/controllers/ipallocate.
 */
export class EntryAddresses {
  readonly #entries = new Map<string, Known>();
  readonly #claims = new Multimap<IpAddress, string>();
  readonly #claimed = new Map<string, readonly IpAddress[]>();
  readonly #dirty = new Set<string>();

  /** Takes a ServiceEntry by its `namespace/name`; undefined: it is gone. */
  set(key: string, entry: ServiceEntry | undefined): void {
    const known = entry && read(entry);
    if (known === undefined) this.#entries.delete(key);
    else this.#entries.set(key, known);
    this.#claim(key, known === undefined ? [] : [...known.own, ...[...known.given.values()].flat()]);
    this.#dirty.add(key);
  }

  /**
   * What is to be written since the last time. To be asked only while all entries are known: an address is free when
   * nobody is seen to have it.
   */
  take(): { readonly verdicts: readonly AddressVerdict[]; readonly problems: readonly Problem[] } {
    const verdicts: AddressVerdict[] = [];
    const problems: Problem[] = [];
    for (const key of [...this.#dirty].toSorted((a, b) => this.#byAge(a, b))) {
      const known = this.#entries.get(key);
      if (known === undefined) continue;
      const { addresses, without } = this.#decide(key, known);
      for (const host of without) problems.push(exhausted(key, host));
      if (listed(addresses) !== listed(known.entry.status?.addresses ?? [])) {
        verdicts.push({ entry: known.entry, addresses });
      }
    }
    this.#dirty.clear();
    return { verdicts, problems };
  }

  #decide(key: string, { hosts, given, own }: Known): { addresses: AddressVerdict["addresses"]; without: string[] } {
    const taken = new Set<IpAddress>();
    const without: string[] = [];
    const addresses = hosts.flatMap((host) => {
      const before = given.get(host) ?? [];
      const stays = before.length > 0 && before.every((ip) => !taken.has(ip) && this.#keeps(ip, key));
      const now = stays ? before : this.#findFree(key, host, taken);
      if (now.length === 0) without.push(host);
      for (const ip of now) taken.add(ip);
      return now.map((value) => ({ value, host }));
    });
    this.#claim(key, [...own, ...taken]);
    return { addresses, without };
  }

  /** True when nobody has a better right to an address that was given to an entry. */
  #keeps(ip: IpAddress, key: string): boolean {
    return [...this.#claims.get(ip)].every(
      (other) => other === key || (this.#entries.get(other)?.own.has(ip) !== true && this.#byAge(key, other) < 0),
    );
  }

  #findFree(key: string, host: string, taken: ReadonlySet<IpAddress>): readonly IpAddress[] {
    const isFree = (ip: IpAddress): boolean =>
      !taken.has(ip) && [...this.#claims.get(ip)].every((other) => other === key);
    const start = Number.parseInt(hash("sha256", `${key}/${host}`, "hex").slice(0, 8), 16);
    for (let step = 0; step < ADDRESSES; step++) {
      const pair = addressPair(1 + ((start + step) % ADDRESSES));
      if (pair.every(isFree)) return pair;
    }
    return [];
  }

  /** Older first; their names decide when they were made in the same second. */
  #byAge(a: string, b: string): number {
    const [madeA, madeB] = [a, b].map((key) => this.#entries.get(key)?.entry.metadata?.creationTimestamp ?? "");
    if (madeA === madeB) return a < b ? -1 : 1;
    return (madeA ?? "") < (madeB ?? "") ? -1 : 1;
  }

  /** Sets what an entry has. Whoever has the same is looked at again. */
  #claim(key: string, addresses: readonly IpAddress[]): void {
    const before = this.#claimed.get(key) ?? [];
    for (const ip of before) this.#claims.delete(ip, key);
    for (const ip of [...before, ...addresses]) for (const other of this.#claims.get(ip)) this.#dirty.add(other);
    for (const ip of addresses) this.#claims.add(ip, key);
    if (addresses.length === 0) this.#claimed.delete(key);
    else this.#claimed.set(key, addresses);
  }
}

function read(entry: ServiceEntry): Known {
  const given = new Map<string, IpAddress[]>();
  for (const { value = "", host = "" } of entry.status?.addresses ?? []) {
    const ip = findIp(value);
    if (ip !== undefined) given.set(host, [...(given.get(host) ?? []), ip]);
  }
  const own = new Set((entry.spec?.addresses ?? []).flatMap((text) => findIp(text) ?? []));
  return { entry, hosts: hostsToAddress(entry), given, own };
}

function addressPair(number: number): readonly IpAddress[] {
  return [`240.240.${number >> 8}.${number & 0xff}`, `2001:2::${number.toString(16)}`].map((text) => parseIp(text));
}

function listed(addresses: readonly { readonly value?: string; readonly host?: string }[]): string {
  return JSON.stringify(addresses.map(({ value, host }) => `${host} ${value}`).toSorted());
}

function exhausted(key: string, host: string): Problem {
  const message = `no address is left for "${host}": ${ADDRESSES} hosts of ServiceEntries have one`;
  return { object: `ServiceEntry ${key}`, field: "status.addresses", message };
}
