import type { Peer } from "./peers.ts";
import type { NodeRecord } from "./record.ts";
import type { Slot, SlotPeer } from "./slots.ts";

/** A key of this node. */
interface OwnKey {
  readonly generation: number;
  readonly publicKey: string;
  readonly port: number;
}

/** What the node knows of one pair: itself and a peer. By slot where there are two. */
export interface Pair {
  peer: Peer;
  /** The peer's key that the own device has (or is being given). */
  installed: [string | undefined, string | undefined];
  /** Since when the device has that key (monotonic); after a restart of the agent, since then. */
  keyMs: [number, number];
  /** The pair of keys that was proven, and the one that is being proven. */
  proven: [string | undefined, string | undefined];
  proving: [string | undefined, string | undefined];
  /** Where packets leave; undefined: nowhere yet, or not known. */
  route: Slot | undefined;
  /** Where they are being moved. */
  routing: Slot | undefined;
  /** When it was learned of (monotonic), and until when it is left alone after a failure. */
  readonly sinceMs: number;
  retryMs: number;
  failure: string | undefined;
}

/** All that a node's part of the rotation knows. Changed by `advance` only. */
export interface NodeState {
  readonly self: string;
  readonly ports: readonly [number, number];
  own: [OwnKey | undefined, OwnKey | undefined];
  /** The number of the `rekey` that is under way. */
  rekeying: [number | undefined, number | undefined];
  rekeys: number;
  /** The generation to come to, and since when (monotonic); undefined: not known yet. */
  target: number | undefined;
  targetMs: number;
  /** Every pair sends on this generation or a later one. -1: not yet on any. */
  done: number;
  /** True once all peers are known that there are. */
  isSynced: boolean;
  readonly pairs: Map<string, Pair>;
  /** Nodes whose pairs hold the report: thousands are not looked through at each event. */
  readonly behind: Set<string>;
  /** Keys of peers in the own devices that belong to no known peer yet: what an agent before has left. */
  readonly found: readonly [Set<string>, Set<string>];
  movedMs: number;
  retryMs: [number, number];
  failure: [string | undefined, string | undefined];
}

/** What can happen to a node. */
export type NodeEvent =
  /** What is in the devices and can be taken over. `done`: as it was reported last; -1 when the devices are new. */
  | {
      readonly kind: "started";
      readonly own: NodeState["own"];
      readonly found: NodeState["found"];
      readonly done: number;
    }
  | { readonly kind: "peer"; readonly node: string; readonly peer: Peer | undefined }
  | { readonly kind: "synced" }
  | { readonly kind: "target"; readonly generation: number }
  | { readonly kind: "rekeyed"; readonly action: RekeyAction; readonly publicKey: string }
  | { readonly kind: "proven"; readonly slot: Slot; readonly node: string; readonly pair: string }
  | { readonly kind: "routed"; readonly node: string; readonly slot: Slot }
  | { readonly kind: "failed"; readonly action: DeviceAction; readonly message: string }
  | { readonly kind: "lost"; readonly slot: Slot }
  | { readonly kind: "tick" };

/** A new key for a slot, which gets exactly these peers. */
export interface RekeyAction {
  readonly kind: "rekey";
  readonly slot: Slot;
  readonly generation: number;
  readonly number: number;
  readonly peers: readonly SlotPeer[];
}

/** What is to be done with the devices. Those of one slot are carried out in their order. */
export type DeviceAction =
  | RekeyAction
  | { readonly kind: "install"; readonly slot: Slot; readonly peer: SlotPeer; readonly replacing: string | undefined }
  | { readonly kind: "remove"; readonly slot: Slot; readonly publicKey: string }
  /** Goes on until it succeeds or `isProving` says no more. */
  | {
      readonly kind: "prove";
      readonly slot: Slot;
      readonly peer: SlotPeer;
      readonly pair: string;
      readonly echo: boolean;
    }
  | { readonly kind: "route"; readonly peer: SlotPeer; readonly slot: Slot | undefined };

/** What is to be done. */
export type NodeAction =
  | DeviceAction
  | { readonly kind: "publish"; readonly record: NodeRecord }
  | { readonly kind: "report"; readonly done: number }
  /** A `tick` is wanted then (monotonic). */
  | { readonly kind: "wake"; readonly atMs: number };

/** A moment in which something happened, and what is to be done about it. */
export interface Turn {
  /** Monotonic. */
  readonly nowMs: number;
  readonly actions: NodeAction[];
}
