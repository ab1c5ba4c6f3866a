import { RecentMap } from "#base/recent";
import type { Address, Service, Workload } from "#model/workload";
import { EndpointGroups } from "./endpoint-groups.ts";
import { HashIndex } from "./hash-index.ts";
import {
  hashKey,
  keysOf,
  PackedRecord,
  recordsOf,
  seedOf,
  servicesOf,
  type KeyKind,
  type PackedAddresses,
} from "./packed-addresses.ts";

/** Addresses that are kept decoded: those that this thread's connections use. */
const MOST_DECODED = 16_384;
/** Answers that are kept. */
const MOST_ANSWERS = 4_096;
/** A packet with fewer addresses in force than this is sparse; more sparse ones than that are packed together. */
const SPARSE_BELOW = 50;
const MOST_SPARSE = 256;
const FIRST_CAPACITY = 1024;

interface Packet {
  readonly packet: PackedAddresses;
  /** How many of its records are in force. */
  live: number;
}

interface Decoded {
  readonly address: Address;
  /** Kinds and texts. */
  readonly keys: ReadonlySet<string>;
}

/**
 * All addresses of the mesh as one thread sees them: packets that all threads share, and this thread's own index of them.
 * A workload costs about 60 bytes here beside its part of the packets; it becomes an object when a connection needs it.
 */
export class AddressStore {
  readonly #packets: (Packet | undefined)[] = [];
  readonly #freePackets: number[] = [];
  /** By number of an address: its packet, its place there, since when it is enrolled (NaN: it is not). */
  #packetOf = new Int32Array(FIRST_CAPACITY).fill(-1);
  #wordOf = new Int32Array(FIRST_CAPACITY);
  #since = new Float64Array(FIRST_CAPACITY);
  readonly #freeIds: number[] = [];
  #usedIds = 0;
  #size = 0;
  #seed = 0;
  readonly #index = new HashIndex();
  readonly #groups = new EndpointGroups();
  /** What was found, until something changes: each connection asks the same five or six times. */
  readonly #answers = new RecentMap<string, readonly Address[]>(MOST_ANSWERS);
  /** Services with a prefix instead of an address: few. */
  readonly #prefixes = new Set<number>();
  readonly #decoded = new RecentMap<number, Decoded>(MOST_DECODED);

  /** How many addresses there are. */
  get size(): number {
    return this.#size;
  }

  /** Takes all addresses of a packet. Those that become enrolled by it are so since `sinceMs`. */
  put(packet: PackedAddresses, sinceMs: number): void {
    this.#seed = seedOf(packet);
    this.#answers.clear();
    const slot = this.#freePackets.pop() ?? this.#packets.length;
    this.#packets[slot] = { packet, live: 0 };
    for (const record of recordsOf(packet)) this.#putRecord(record, slot, sinceMs);
  }

  #putRecord(record: PackedRecord, slot: number, sinceMs: number): void {
    const known = this.#idOf(record.keys[0] ?? 0, record.name);
    const id = known ?? this.#takeId();
    const before = known === undefined ? undefined : this.#record(id);
    this.#relink(id, before, record);
    const packet = this.#packets[slot];
    if (packet !== undefined) packet.live++; // before the other one is released: both may be the same
    if (known === undefined) this.#size++;
    else this.#release(id);
    this.#packetOf[id] = slot;
    this.#wordOf[id] = record.at;
    if (!record.isEnrolled) this.#since[id] = Number.NaN;
    else if (Number.isNaN(this.#since[id])) this.#since[id] = sinceMs;
    if (record.hasPrefix) this.#prefixes.add(id);
    else this.#prefixes.delete(id);
  }

  /** Forgets an address; false when it was not there. */
  remove(name: string): boolean {
    const id = this.#idOf(hashKey(this.#seed, "name", name), Buffer.from(name));
    if (id === undefined) return false;
    this.#answers.clear();
    this.#relink(id, this.#record(id), undefined);
    this.#release(id);
    this.#packetOf[id] = -1;
    this.#prefixes.delete(id);
    this.#freeIds.push(id);
    this.#size--;
    return true;
  }

  has(name: string): boolean {
    return this.#idOf(hashKey(this.#seed, "name", name), Buffer.from(name)) !== undefined;
  }

  /** What is found by this key, oldest first. */
  find(kind: KeyKind, text: string): readonly Address[] {
    const question = `${kind} ${text}`;
    const known = this.#answers.get(question);
    if (known !== undefined) return known;
    const found: Address[] = [];
    const hash = hashKey(this.#seed, kind, text);
    for (let entry = this.#index.first(hash); entry >= 0; entry = this.#index.after(entry, hash)) {
      const { address, keys } = this.#decode(this.#index.value(entry));
      if (keys.has(question)) found.push(address);
    }
    found.reverse();
    this.#answers.set(question, found);
    return found;
  }

  /** Services with prefixes. */
  prefixes(): readonly Service[] {
    return [...this.#prefixes].flatMap((id) => {
      const { address } = this.#decode(id);
      return address.kind === "service" ? [address] : [];
    });
  }

  /** The endpoints of a service, by its name. */
  endpoints(service: string): readonly Workload[] {
    return this.#groups.list(hashKey(this.#seed, "endpoints", service), service, (id) => {
      const { address } = this.#decode(id);
      return address.kind === "workload" && Object.hasOwn(address.services, service) ? address : undefined;
    });
  }

  /** Since when a workload is enrolled. */
  enrolledSinceMs(uid: string): number | undefined {
    const id = this.#idOf(hashKey(this.#seed, "name", uid), Buffer.from(uid));
    const sinceMs = id === undefined ? Number.NaN : (this.#since[id] ?? Number.NaN);
    return Number.isNaN(sinceMs) ? undefined : sinceMs;
  }

  /** All addresses of a kind, decoded one by one and not kept. The store may change meanwhile. */
  *all<Kind extends Address["kind"]>(kind: Kind): Generator<Extract<Address, { kind: Kind }>> {
    for (let id = 0; id < this.#usedIds; id++) {
      if ((this.#packetOf[id] ?? -1) < 0 || this.#record(id).isService !== (kind === "service")) continue;
      yield this.#record(id).decode() as Extract<Address, { kind: Kind }>; // looked at just above
    }
  }

  /** As {@link endpoints}, decoded one by one and not kept. The store may change meanwhile. */
  *walkEndpoints(service: string): Generator<Workload> {
    for (const id of this.#groups.members(hashKey(this.#seed, "endpoints", service))) {
      const address = (this.#packetOf[id] ?? -1) < 0 ? undefined : this.#record(id).decode();
      if (address?.kind === "workload" && Object.hasOwn(address.services, service)) yield address;
    }
  }

  /** The names of services that have endpoints. */
  *served(): Generator<string> {
    for (const [hash, ids] of this.#groups.entries()) {
      const names = new Set<string>();
      for (const id of ids) {
        for (const name of servicesOf(this.#record(id).decode())) {
          if (hashKey(this.#seed, "endpoints", name) === hash) names.add(name);
        }
        if (names.size > 0) break;
      }
      yield* names;
    }
  }

  /** Addresses to be packed together, at most `most`: none as long as few packets are sparse. */
  sparse(most: number): readonly Address[] {
    const sparse = [...this.#packets.entries()].filter(([, packet]) => (packet?.live ?? SPARSE_BELOW) < SPARSE_BELOW);
    if (sparse.length <= MOST_SPARSE) return [];
    const found: Address[] = [];
    for (const [slot, packet] of sparse) {
      if (packet === undefined || found.length + packet.live > most) break;
      for (const record of recordsOf(packet.packet)) {
        const id = this.#idOf(record.keys[0] ?? 0, record.name);
        const inForce = id !== undefined && this.#packetOf[id] === slot && this.#wordOf[id] === record.at;
        if (inForce) found.push(record.decode());
      }
    }
    return found;
  }

  #record(id: number): PackedRecord {
    const packet = this.#packets[this.#packetOf[id] ?? -1];
    if (packet === undefined) throw new Error(`address ${id} is not there`); // cannot happen
    return new PackedRecord(packet.packet, this.#wordOf[id] ?? 0);
  }

  #decode(id: number): Decoded {
    let decoded = this.#decoded.get(id);
    if (decoded === undefined) {
      const address = this.#record(id).decode();
      decoded = { address, keys: new Set(keysOf(address).map((key) => key.join(" "))) };
      this.#decoded.set(id, decoded);
    }
    return decoded;
  }

  #idOf(hash: number, name: Uint8Array): number | undefined {
    for (let entry = this.#index.first(hash); entry >= 0; entry = this.#index.after(entry, hash)) {
      const id = this.#index.value(entry);
      if (Buffer.compare(this.#record(id).name, name) === 0) return id;
    }
    return undefined;
  }

  #takeId(): number {
    const id = this.#freeIds.pop() ?? this.#usedIds++;
    if (id >= this.#packetOf.length) this.#grow();
    this.#since[id] = Number.NaN;
    return id;
  }

  #grow(): void {
    const length = this.#packetOf.length * 2;
    const [packetOf, wordOf, since] = [new Int32Array(length), new Int32Array(length), new Float64Array(length)];
    packetOf.fill(-1).set(this.#packetOf);
    wordOf.set(this.#wordOf);
    since.set(this.#since);
    [this.#packetOf, this.#wordOf, this.#since] = [packetOf, wordOf, since];
  }

  /** The record of an address is not in force any more. */
  #release(id: number): void {
    this.#decoded.delete(id);
    const slot = this.#packetOf[id] ?? -1;
    const packet = this.#packets[slot];
    if (packet === undefined) return;
    packet.live--;
    if (packet.live > 0) return;
    this.#packets[slot] = undefined;
    this.#freePackets.push(slot);
  }

  /** Changes index and groups from one record of an address to the next. Most changes leave both as they are. */
  #relink(id: number, before: PackedRecord | undefined, after: PackedRecord | undefined): void {
    this.#regroup(id, before?.services ?? NOTHING, after?.services ?? NOTHING);
    const [old, keys] = [before?.keys ?? NOTHING, after?.keys ?? NOTHING];
    if (isSame(old, keys)) return;
    for (const hash of old) this.#index.remove(hash, id);
    for (const hash of keys) this.#index.add(hash, id);
  }

  #regroup(id: number, old: Int32Array, services: Int32Array): void {
    if (isSame(old, services)) {
      for (const hash of services) this.#groups.changed(hash);
      return;
    }
    for (const hash of old) this.#groups.leave(hash, id);
    for (const hash of services) this.#groups.join(hash, id);
  }
}

const NOTHING = new Int32Array(0);

function isSame(a: Int32Array, b: Int32Array): boolean {
  return a.length === b.length && a.every((hash, i) => hash === b[i]);
}
