import { findIp, isV6, parseCidr, type Cidr, type IpAddress } from "#base/ip";
import { messageOf } from "#base/errors";
import { keyProblem } from "./public-key.ts";
import { networkOf, Ranges } from "./ranges.ts";
import { parseRecord, type SlotKey } from "./record.ts";
import { SLOT_PORTS, type Slot } from "./slots.ts";

/** What a node's CiliumNode object claims, unread. */
export interface NodeClaim {
  readonly node: string;
  /** Its own addresses in the underlay, in the order in which they are tried as endpoint. */
  readonly addresses: readonly string[];
  readonly podCidrs: readonly string[];
  /** The annotation that other software reads too. */
  readonly publicKey: string | undefined;
  /** Veil's own annotation, with both slots. */
  readonly record: string | undefined;
}

/** A node with which a tunnel can be made. */
export interface Peer {
  readonly node: string;
  readonly endpoint: string;
  /** Canonical; the node's own addresses and its pods' ranges. */
  readonly allowedIps: readonly string[];
  readonly keys: Readonly<Record<Slot, SlotKey | undefined>>;
  /** The generation on which it sends, by its own account; 0 for a node that has one slot. */
  readonly sending: number;
  /** False: a node of other software, with one static key and nobody that answers echoes. */
  readonly hasSlots: boolean;
}

/** Why a node's claim is refused. */
export type RefusalReason =
  | "KeyInvalid"
  | "KeyZero"
  | "KeySmallOrder"
  | "KeyDuplicate"
  | "RecordInvalid"
  | "AddressMissing"
  | "AddressInvalid"
  | "AddressDuplicate"
  | "EndpointSelf"
  | "CidrInvalid"
  | "CidrTooWide"
  | "CidrOverlap";

/** A node that is refused, and why. */
export interface Refusal {
  readonly node: string;
  readonly reason: RefusalReason;
  readonly message: string;
}

/** A pods' range of one node that is wider than this covers too much of the world to be true. */
const WIDEST = { v4: 8, v6: 32 } as const;

/** The own node takes part before it has keys: nobody may claim what it has. */
const NO_KEYS = { keys: { 0: undefined, 1: undefined }, sending: 0, hasSlots: true } as const;

type Judged = { readonly peer: Peer; readonly ranges: readonly Cidr[] };
type Place = { readonly ranges: readonly Cidr[]; readonly endpoint: string; readonly allowedIps: readonly string[] };

class Refused extends Error {
  readonly reason: RefusalReason;

  constructor(reason: RefusalReason, message: string) {
    super(message);
    this.reason = reason;
  }
}

/**
 * The nodes that can be peers, kept as claims come and go. A claim that cannot be true, or that takes what another node has, is refused
 * as a whole with its reason; the others stay. Of two that claim the same, the one that was accepted first keeps it. When something
 * becomes free, those who were refused are looked at again, the first that came first.
 */
export class PeerDirectory {
  readonly #self: string;
  readonly #onChange: (node: string, peer: Peer | undefined) => void;
  readonly #claims = new Map<string, NodeClaim>();
  readonly #accepted = new Map<string, Judged>();
  readonly #refused = new Map<string, Refusal>();
  readonly #keys = new Map<string, string>();
  readonly #ranges = new Ranges();

  /** `self`: the own node's name, which is no peer but whose claims count; empty where there is none. `onChange` hears of each peer that came, changed or (undefined) went. */
  constructor(self: string, onChange: (node: string, peer: Peer | undefined) => void = () => {}) {
    this.#self = self;
    this.#onChange = onChange;
  }

  /** Accepted nodes, the own one apart. */
  get peers(): readonly Peer[] {
    return [...this.#accepted.values()].map(({ peer }) => peer).filter(({ node }) => node !== this.#self);
  }

  get refusals(): readonly Refusal[] {
    return [...this.#refused.values()];
  }

  find(node: string): Peer | undefined {
    return this.#accepted.get(node)?.peer;
  }

  /** Takes what a node claims now. A node without any key is none of ours, until it has one. */
  upsert(claim: NodeClaim): void {
    const before = this.#claims.get(claim.node);
    if (before !== undefined && sameClaim(before, claim)) return;
    this.#claims.set(claim.node, claim);
    const freed = this.#release(claim.node);
    const judged = this.#judge(claim);
    if (judged !== undefined) this.#accept(judged);
    this.#tell(claim.node, freed?.peer);
    if (freed !== undefined || before !== undefined) this.#again(claim.node);
  }

  remove(node: string): void {
    if (!this.#claims.delete(node)) return;
    const freed = this.#release(node);
    this.#tell(node, freed?.peer);
    if (freed !== undefined) this.#again(node);
  }

  /** Looks again at those who were refused: something may be free now. */
  #again(but: string): void {
    for (const { node } of this.refusals) {
      const claim = this.#claims.get(node);
      if (node === but || claim === undefined) continue;
      this.#refused.delete(node);
      const judged = this.#judge(claim);
      if (judged === undefined) continue;
      this.#accept(judged);
      this.#tell(node, undefined);
    }
  }

  #tell(node: string, before: Peer | undefined): void {
    const after = this.find(node);
    if (node === this.#self || (before === undefined && after === undefined)) return;
    this.#onChange(node, after);
  }

  #judge(claim: NodeClaim): Judged | undefined {
    try {
      return this.#check(claim);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.#refused.set(claim.node, { node: claim.node, reason: error.reason, message: error.message });
      return undefined;
    }
  }

  #check(claim: NodeClaim): Judged | undefined {
    const { node } = claim;
    const keys = keysOf(claim) ?? (node === this.#self ? NO_KEYS : undefined);
    if (keys === undefined) return undefined;
    const { ranges, endpoint, allowedIps } = placeOf(claim);
    for (const range of ranges) this.#checkFree(range, node);
    for (const slot of [0, 1] as const) {
      const holder = this.#keys.get(keys.keys[slot]?.publicKey ?? "");
      if (holder === undefined) continue;
      throw new Refused("KeyDuplicate", `its key of slot ${slot} is that of node ${holder}`);
    }
    return { peer: { node, endpoint, allowedIps, ...keys }, ranges };
  }

  #checkFree(range: Cidr, node: string): void {
    const holder = this.#ranges.findOther(range, node);
    if (holder === undefined) return;
    const said = `${range.address}/${range.length} overlaps what node ${holder} has`;
    if (range.length < (isV6(range.address) ? 128 : 32)) throw new Refused("CidrOverlap", said);
    throw new Refused(holder === this.#self ? "EndpointSelf" : "AddressDuplicate", said);
  }

  #accept(judged: Judged): void {
    const { node, keys } = judged.peer;
    this.#accepted.set(node, judged);
    for (const range of judged.ranges) this.#ranges.add(range, node);
    for (const key of [keys[0], keys[1]]) if (key !== undefined) this.#keys.set(key.publicKey, node);
  }

  #release(node: string): Judged | undefined {
    this.#refused.delete(node);
    const judged = this.#accepted.get(node);
    if (judged === undefined) return undefined;
    this.#accepted.delete(node);
    for (const range of judged.ranges) this.#ranges.remove(range, node);
    const { keys } = judged.peer;
    for (const key of [keys[0], keys[1]]) if (key !== undefined) this.#keys.delete(key.publicKey);
    return judged;
  }
}

function sameClaim(a: NodeClaim, b: NodeClaim): boolean {
  return (
    a.record === b.record &&
    a.publicKey === b.publicKey &&
    a.addresses.join() === b.addresses.join() &&
    a.podCidrs.join() === b.podCidrs.join()
  );
}

/** The keys of a claim; undefined when it has none. Throws `Refused`. */
function keysOf({ record, publicKey }: NodeClaim): Pick<Peer, "keys" | "sending" | "hasSlots"> | undefined {
  if (record === undefined) {
    if (publicKey === undefined || publicKey === "") return undefined;
    checkKey(publicKey);
    const only = { generation: 0, publicKey, port: SLOT_PORTS[0] };
    return { keys: { 0: only, 1: undefined }, sending: 0, hasSlots: false };
  }
  const read = parseRecord(record);
  if (typeof read === "string") throw new Refused("RecordInvalid", `annotation veil.dev/wireguard ${read}`);
  for (const slot of [0, 1] as const) {
    const key = read.keys[slot];
    if (key === undefined) continue;
    checkKey(key.publicKey);
    if (key.generation % 2 !== slot) {
      throw new Refused("RecordInvalid", `generation ${key.generation} does not belong into slot ${slot}`);
    }
  }
  if (read.keys[0]?.publicKey === read.keys[1]?.publicKey) {
    throw new Refused("KeyDuplicate", "both slots have one key");
  }
  return { ...read, hasSlots: true };
}

function checkKey(publicKey: string): void {
  const problem = keyProblem(publicKey);
  if (problem !== undefined) throw new Refused(problem.reason, problem.message);
}

/** Where a claim says that the node and its pods are. Throws `Refused`. */
function placeOf({ addresses, podCidrs }: NodeClaim): Place {
  const own = addresses.map(hostRange);
  const [endpoint] = own;
  if (endpoint === undefined) throw new Refused("AddressMissing", "the node has no internal address");
  const pods = podCidrs.map(podRange);
  const ranges = [...pods.toSorted((a, b) => a.length - b.length), ...own];
  const allowedIps = [...new Set([...own, ...pods].map(({ address, length }) => `${address}/${length}`))];
  return { ranges, endpoint: endpoint.address, allowedIps };
}

function hostRange(text: string): Cidr {
  const address = findIp(text);
  if (address === undefined) throw new Refused("AddressInvalid", `"${text.slice(0, 64)}" is no address`);
  if (isNobodys(address)) throw new Refused("AddressInvalid", `${address} is the address of no node`);
  return { address, length: isV6(address) ? 128 : 32 };
}

function podRange(text: string): Cidr {
  let cidr: Cidr;
  try {
    cidr = parseCidr(text);
  } catch (error) {
    throw new Refused("CidrInvalid", messageOf(error).slice(0, 128));
  }
  const widest = isV6(cidr.address) ? WIDEST.v6 : WIDEST.v4;
  if (cidr.length < widest) throw new Refused("CidrTooWide", `${text} is wider than /${widest}`);
  if (isNobodys(cidr.address)) throw new Refused("CidrInvalid", `${text} is no range of pods`);
  return networkOf(cidr);
}

/** Unspecified, loopback, link-local, multicast and broadcast: no node is there, and no pods. */
function isNobodys(ip: IpAddress): boolean {
  if (isV6(ip)) return ip === "::" || ip === "::1" || /^(fe[89ab]|ff)/.test(ip);
  const [first = 0, second = 0] = ip.split(".").map(Number);
  return first === 0 || first === 127 || first >= 224 || (first === 169 && second === 254);
}
