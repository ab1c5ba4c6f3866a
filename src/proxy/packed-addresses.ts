import { systemRandom } from "#base/random";
import { addressName, type Address, type Service, type Workload } from "#model/workload";

/**
 * Addresses as bytes that all threads share. One packet holds up to some hundred of them and never changes:
 *
 *     packet  [seed] [count] [record]…
 *     record  [words] [flags] [keys] [services] [name bytes] [JSON bytes]  hash of each key…  hash of each service…
 *             name  JSON  (filled up to a whole word)
 *
 * in 32-bit words. Keys are what an address is found by, services what a workload is an endpoint of; both are hashed once,
 * by the main thread. The JSON is an array of the fields' values, without their names.
 */
export interface PackedAddresses {
  readonly words: Int32Array;
  readonly bytes: Uint8Array;
}

/** Ways to find an address; each kind has names of its own. */
export type KeyKind = "name" | "ip" | "hostIp" | "vip" | "serviceHost" | "workloadHost";

const FLAG = { service: 1, prefix: 2, hbone: 4 } as const;
const PACKET_HEAD = 2;
const RECORD_HEAD = 6;

/** Differs per process: nobody can choose names that all fall together. */
const seed = systemRandom.below(2 ** 31);

const WORKLOAD_FIELDS = Object.keys({
  uid: true,
  name: true,
  namespace: true,
  addresses: true,
  hostname: true,
  network: true,
  tunnelProtocol: true,
  trustDomain: true,
  serviceAccount: true,
  waypoint: true,
  networkGateway: true,
  node: true,
  canonicalName: true,
  canonicalRevision: true,
  workloadType: true,
  workloadName: true,
  nativeTunnel: true,
  services: true,
  authorizationPolicies: true,
  healthy: true,
  clusterId: true,
  locality: true,
  hostNetwork: true,
  capacity: true,
  applicationTunnel: true,
} satisfies Record<Exclude<keyof Workload, "kind">, true>);

const SERVICE_FIELDS = Object.keys({
  name: true,
  namespace: true,
  hostname: true,
  addresses: true,
  ports: true,
  subjectAltNames: true,
  waypoint: true,
  weightedWaypoints: true,
  loadBalancing: true,
  ipFamilies: true,
  canonical: true,
  visibility: true,
} satisfies Record<Exclude<keyof Service, "kind">, true>);

/** The hash of a key, as packets of `packetSeed` have it. */
export function hashKey(packetSeed: number, kind: KeyKind | "endpoints", text: string): number {
  let hash = packetSeed ^ kind.length ^ (kind.charCodeAt(0) << 8);
  for (let at = 0; at < text.length; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return hash ^ (hash >>> 13);
}

/** All keys of an address, its name first. A workload on the host's network has its node's addresses, which are kept apart. */
export function keysOf(address: Address): readonly (readonly [KeyKind, string])[] {
  const name = ["name", addressName(address)] as const;
  if (address.kind === "workload") {
    const { hostNetwork, addresses, network, namespace, hostname } = address;
    const kind = hostNetwork ? "hostIp" : "ip";
    const ips = addresses.map((ip) => [kind, `${network}/${ip}`] as const);
    return [name, ...ips, ...(hostname === "" ? [] : [["workloadHost", `${namespace}/${hostname}`] as const])];
  }
  const vips = address.addresses.flatMap(({ network, address: ip, length }) =>
    length === undefined ? [["vip", `${network}/${ip}`] as const] : [],
  );
  return [name, ...vips, ["serviceHost", address.hostname]];
}

/** Packs addresses for all threads. */
export function packAddresses(addresses: readonly Address[]): SharedArrayBuffer {
  const records = addresses.map((address) => encodeRecord(address));
  const total = records.reduce((sum, { words }) => sum + words, PACKET_HEAD);
  const memory = new SharedArrayBuffer(total * 4);
  const packet = viewPacket(memory);
  packet.words[0] = seed;
  packet.words[1] = addresses.length;
  let at = PACKET_HEAD;
  for (const { words, head, text } of records) {
    packet.words[at] = words;
    packet.words.set(head, at + 1);
    packet.bytes.set(text, (at + 1 + head.length) * 4);
    at += words;
  }
  return memory;
}

/** Both views of a packet's memory, which threads get from each other. */
export function viewPacket(memory: SharedArrayBuffer): PackedAddresses {
  return { words: new Int32Array(memory), bytes: new Uint8Array(memory) };
}

function encodeRecord(address: Address): { words: number; head: readonly number[]; text: Uint8Array } {
  const fields = address.kind === "workload" ? WORKLOAD_FIELDS : SERVICE_FIELDS;
  const name = addressName(address);
  const json = JSON.stringify(fields.map((field): unknown => Reflect.get(address, field)));
  const text = Buffer.from(name + json);
  const keys = keysOf(address).map(([kind, key]) => hashKey(seed, kind, key));
  const services = servicesOf(address).map((service) => hashKey(seed, "endpoints", service));
  const nameBytes = Buffer.byteLength(name);
  const counts = [flagsOf(address), keys.length, services.length, nameBytes, text.length - nameBytes];
  const head = [...counts, ...keys, ...services];
  return { words: 1 + head.length + Math.ceil(text.length / 4), head, text };
}

function flagsOf(address: Address): number {
  if (address.kind === "workload") return address.tunnelProtocol === "hbone" ? FLAG.hbone : 0;
  return FLAG.service | (address.addresses.some(({ length }) => length !== undefined) ? FLAG.prefix : 0);
}

/** The services that an address is an endpoint of. */
export function servicesOf(address: Address): readonly string[] {
  return address.kind === "workload" ? Object.keys(address.services) : [];
}

/** One record of a packet; cheap to make, decodes when asked. */
export class PackedRecord {
  readonly packet: PackedAddresses;
  /** Its first word. */
  readonly at: number;

  constructor(packet: PackedAddresses, at: number) {
    this.packet = packet;
    this.at = at;
  }

  get isService(): boolean {
    return (this.#word(1) & FLAG.service) !== 0;
  }

  /** It has a prefix for an address. */
  get hasPrefix(): boolean {
    return (this.#word(1) & FLAG.prefix) !== 0;
  }

  get isEnrolled(): boolean {
    return (this.#word(1) & FLAG.hbone) !== 0;
  }

  /** Hashes of its keys, its name's first. */
  get keys(): Int32Array {
    return this.packet.words.subarray(this.at + RECORD_HEAD, this.at + RECORD_HEAD + this.#word(2));
  }

  /** Hashes of the services that it is an endpoint of. */
  get services(): Int32Array {
    const start = this.at + RECORD_HEAD + this.#word(2);
    return this.packet.words.subarray(start, start + this.#word(3));
  }

  /** The bytes of its name. */
  get name(): Uint8Array {
    const start = this.#textStart();
    return this.packet.bytes.subarray(start, start + this.#word(4));
  }

  decode(): Address {
    const { buffer } = this.packet.bytes;
    const text = Buffer.from(buffer, this.#textStart() + this.#word(4), this.#word(5)).toString();
    const values = JSON.parse(text) as readonly unknown[]; // written by encodeRecord
    const isService = this.isService;
    const address: Record<string, unknown> = { kind: isService ? "service" : "workload" };
    const fields = isService ? SERVICE_FIELDS : WORKLOAD_FIELDS;
    for (let i = 0; i < fields.length; i++) address[fields[i] ?? ""] = values[i] ?? undefined;
    return address as unknown as Address; // the fields of one, by the lists above
  }

  #word(index: number): number {
    return this.packet.words[this.at + index] ?? 0;
  }

  #textStart(): number {
    return (this.at + RECORD_HEAD + this.#word(2) + this.#word(3)) * 4;
  }
}

/** The records of a packet, in order. */
export function* recordsOf(packet: PackedAddresses): Generator<PackedRecord> {
  let at = PACKET_HEAD;
  for (let count = packet.words[1] ?? 0; count > 0; count--) {
    yield new PackedRecord(packet, at);
    at += packet.words[at] ?? 0;
  }
}

/** What the hashes of a packet's keys were made with. */
export function seedOf({ words }: PackedAddresses): number {
  return words[0] ?? 0;
}
