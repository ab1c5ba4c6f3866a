/**
 * The seam between the protocol that rotates keys and the devices that have them. Each node has two devices, slots; generation
 * *e* of the cluster sends on slot *e mod 2* (docs/adr/0090-two-slots-of-wireguard.md).
 */

/** One of a node's two devices. */
export type Slot = 0 | 1;

/** Both. */
export const SLOTS = [0, 1] as const;

/** UDP port of each slot, unless it is set otherwise; that of slot 0 is the one that Cilium uses. */
export const SLOT_PORTS: Readonly<Record<Slot, number>> = { 0: 51871, 1: 51872 };

/** The slot on which a generation sends; whole numbers from 0 on. */
export function slotOf(generation: number): Slot {
  return generation % 2 === 0 ? 0 : 1;
}

/** Another node as one slot's device knows it. */
export interface SlotPeer {
  readonly node: string;
  /** 32 bytes in base64, 44 characters. */
  readonly publicKey: string;
  /** Its address in the underlay, without port. */
  readonly endpoint: string;
  /** UDP port of its slot. */
  readonly port: number;
  /** The node's own addresses (/32, /128) and its pods' ranges, as CIDRs. */
  readonly allowedIps: readonly string[];
  /** This side starts handshakes: keepalive of 25 s, else 0. One side of each pair does. */
  readonly initiator: boolean;
}

/** What a device knows of one peer. */
export interface PeerStatus {
  /** Milliseconds since the epoch; 0: never. */
  readonly lastHandshakeMs: number;
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

/** What a device says of itself. */
export interface SlotStatus {
  /** Undefined while it has no key. */
  readonly publicKey: string | undefined;
  /** By the peer's public key. */
  readonly peers: ReadonlyMap<string, PeerStatus>;
}

/** What an echo is to be like. */
export interface ProbeEcho {
  /** For its answer. */
  readonly deadlineMs: number;
  /** As long as a packet through the tunnel can be. Default: as short as it can be. */
  readonly full?: boolean;
}

/** A node's two devices. Methods reject with a `CodedError` when a device is gone or refuses; calls for one slot are made one after the other. */
export interface Tunnels {
  /** Gives the slot a new key and exactly these peers, in one transaction. Resolves to the public key. */
  rekey(slot: Slot, peers: readonly SlotPeer[]): Promise<string>;
  /** Adds or replaces the entry of a node, in one transaction; `replacing`: the public key that it had in that slot. */
  install(slot: Slot, peer: SlotPeer, replacing?: string): Promise<void>;
  /** Takes a peer out of the slot. One that is not there is no failure. */
  remove(slot: Slot, publicKey: string): Promise<void>;
  status(slot: Slot): Promise<SlotStatus>;
  /** Sends one echo to the node's address out of that slot: true when its answer came back on that slot within the deadline. */
  probe(slot: Slot, peer: SlotPeer, echo: ProbeEcho): Promise<boolean>;
  /** Packets to the node's pods leave through this slot from now on; undefined: through none. */
  route(peer: SlotPeer, slot: Slot | undefined): Promise<void>;
  /** Calls `listener` when a slot's device was lost and is there again without key and peers. The returned function ends that. */
  onLost(listener: (slot: Slot) => void): () => void;
}
