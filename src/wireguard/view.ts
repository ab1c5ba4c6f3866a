import { hash } from "node:crypto";
import type { CellSet } from "#base/metrics";
import type { NodeState, Pair } from "./node-state.ts";
import type { WireGuardNode } from "./objects.ts";
import { hasMoved } from "./pair.ts";
import type { Refusal } from "./peers.ts";
import { SLOTS, slotOf, type Slot, type SlotStatus } from "./slots.ts";

/** A pair that is not proven is a problem after so long. */
const PROOF_DEADLINE_MS = 10_000;
/** Problems that a report names. */
const MAX_PROBLEMS = 20;

/** One slot of one pair, for people. */
export interface SlotView {
  readonly slot: Slot;
  /** Of the peer's key, and a short text by which the key can be compared. */
  readonly generation: number;
  readonly fingerprint: string;
  /** `sending`: packets leave here; `proven`: they could; `proving`: keys are there, no handshake and echo yet; `idle`: no pair of keys of one generation. */
  readonly state: "sending" | "proven" | "proving" | "idle";
  /** Since this pair of keys is in the device, seconds. */
  readonly keyAgeSeconds: number;
  /** Since the last handshake, seconds; undefined: none. */
  readonly handshakeAgeSeconds: number | undefined;
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

/** One peer, for people. */
export interface PairView {
  readonly node: string;
  readonly endpoint: string;
  /** False: a node of other software, with one static key. */
  readonly hasSlots: boolean;
  readonly slots: readonly SlotView[];
  /** Why it is not on the newest keys; undefined: it is. */
  readonly reason: string | undefined;
}

/** A node's tunnels, for people. */
export interface NodeView {
  readonly node: string;
  readonly generation: number | undefined;
  readonly done: number;
  readonly own: readonly {
    readonly slot: Slot;
    readonly generation: number;
    readonly fingerprint: string;
    readonly port: number;
  }[];
  readonly pairs: readonly PairView[];
  readonly refused: readonly Refusal[];
}

/** The first 8 hex digits of a key's SHA-256: enough to compare by eye. */
function fingerprintOf(publicKey: string): string {
  return hash("sha256", Buffer.from(publicKey, "base64"), "hex").slice(0, 8);
}

/** Everything about a node's pairs. `nowMs` is the wall clock, `monotonicMs` the other. */
export function describeNode(
  state: NodeState,
  facts: {
    readonly devices: readonly SlotStatus[];
    readonly refusals: readonly Refusal[];
    readonly nowMs: number;
    readonly monotonicMs: number;
  },
): NodeView {
  const own = SLOTS.flatMap((slot) => {
    const key = state.own[slot];
    if (key === undefined) return [];
    return [{ slot, generation: key.generation, fingerprint: fingerprintOf(key.publicKey), port: key.port }];
  });
  const pairs = [...state.pairs.values()].map((pair) => ({
    node: pair.peer.node,
    endpoint: pair.peer.endpoint,
    hasSlots: pair.peer.hasSlots,
    slots: SLOTS.flatMap((slot) => viewOf(pair, { ...facts, slot, device: facts.devices[slot] })),
    reason: reasonOf(state, pair)?.message,
  }));
  return { node: state.self, generation: state.target, done: state.done, own, pairs, refused: facts.refusals };
}

function viewOf(
  pair: Pair,
  {
    slot,
    device,
    nowMs,
    monotonicMs,
  }: { slot: Slot; device: SlotStatus | undefined; nowMs: number; monotonicMs: number },
): SlotView[] {
  const key = pair.peer.keys[slot];
  if (key === undefined) return [];
  const { lastHandshakeMs = 0, receivedBytes = 0, sentBytes = 0 } = device?.peers.get(key.publicKey) ?? {};
  const handshakeAgeSeconds =
    lastHandshakeMs === 0 ? undefined : Math.max(0, Math.round((nowMs - lastHandshakeMs) / 1000));
  const { generation, publicKey } = key;
  const keyAgeSeconds = Math.round((monotonicMs - pair.keyMs[slot]) / 1000);
  return [
    {
      slot,
      generation,
      fingerprint: fingerprintOf(publicKey),
      state: stateOf(pair, slot),
      keyAgeSeconds,
      handshakeAgeSeconds,
      receivedBytes,
      sentBytes,
    },
  ];
}

function stateOf(pair: Pair, slot: Slot): SlotView["state"] {
  if (pair.route === slot) return "sending";
  if (pair.proven[slot] !== undefined) return "proven";
  return pair.proving[slot] === undefined ? "idle" : "proving";
}

/** What a node reports. `nowMs` is monotonic. */
export function reportOf(
  state: NodeState,
  facts: {
    readonly backend: { readonly kind: string; readonly version: string };
    readonly refusals: readonly Refusal[];
    /** Nodes at which only small packets arrive. */
    readonly narrow: ReadonlySet<string>;
    readonly nowMs: number;
  },
): Required<NonNullable<WireGuardNode["status"]>> {
  const pairs = [...state.pairs.values()];
  const devices = SLOTS.flatMap((slot) => {
    const message = state.failure[slot];
    return message === undefined ? [] : [{ node: "", reason: "DeviceFailed", message: `slot ${slot}: ${message}` }];
  });
  const late = pairs.flatMap((pair) => {
    if (facts.nowMs - Math.max(state.targetMs, pair.sinceMs) < PROOF_DEADLINE_MS) return [];
    const found = reasonOf(state, pair);
    return found === undefined ? [] : [{ node: pair.peer.node, ...found }];
  });
  const narrow = pairs.flatMap(({ peer: { node, endpoint } }) => {
    const message = `packets as large as the tunnel takes do not arrive at ${endpoint}, small ones do`;
    return facts.narrow.has(node) ? [{ node, reason: "BigPacketsLost", message }] : [];
  });
  return {
    done: state.done,
    observedGeneration: state.target ?? -1,
    backend: facts.backend.kind,
    version: facts.backend.version,
    pairs: pairs.length,
    proven: pairs.filter((pair) => hasMoved(state, pair)).length,
    oneSlot: pairs.filter(({ peer }) => !peer.hasSlots).map(({ peer }) => peer.node),
    problems: [...devices, ...facts.refusals, ...late, ...narrow].slice(0, MAX_PROBLEMS),
  };
}

/** Why a pair is not on the newest keys; undefined: it is. */
function reasonOf(state: NodeState, pair: Pair): { reason: string; message: string } | undefined {
  const { target } = state;
  if (hasMoved(state, pair)) return undefined;
  if (pair.failure !== undefined) return { reason: "DeviceFailed", message: pair.failure };
  if (target === undefined)
    return { reason: "NoGeneration", message: "the cluster's generation of keys is not known yet" };
  const { node, endpoint, keys, hasSlots } = pair.peer;
  const slot = hasSlots ? slotOf(target) : 0;
  const hasKey = (key: { readonly generation: number } | undefined): boolean =>
    key !== undefined && (!hasSlots || key.generation === target);
  if (!hasKey(state.own[slot]))
    return { reason: "NoOwnKey", message: `this node has no key of generation ${target} yet` };
  if (!hasKey(keys[slot]))
    return { reason: "PeerBehind", message: `${node} has published no key of generation ${target}` };
  const port = keys[slot]?.port ?? 0;
  return {
    reason: "NotProven",
    message: `no answer from ${endpoint} on UDP ${port}: is the port open in both directions?`,
  };
}

/** Sets what can be read from the state at any time. */
export function countNode(state: NodeState, refusals: readonly Refusal[], cells: CellSet): void {
  const pairs = [...state.pairs.values()];
  const proven = pairs.filter((pair) => hasMoved(state, pair)).length;
  const older = pairs.filter((pair) => pair.route !== undefined).length - proven;
  cells.bind("veil_wireguard_generation", {}).value = state.target ?? -1;
  cells.bind("veil_wireguard_done_generation", {}).value = state.done;
  const states = { proven, older: Math.max(0, older), none: pairs.length - proven - Math.max(0, older) };
  for (const [name, count] of Object.entries(states)) {
    cells.bind("veil_wireguard_pairs", { state: name }).value = count;
  }
  const byReason = new Map<string, number>();
  for (const { reason } of refusals) byReason.set(reason, (byReason.get(reason) ?? 0) + 1);
  for (const { name, labels } of cells.series(0, Infinity)) {
    if (name === "veil_wireguard_refused_peers") cells.bind(name, labels).value = 0;
  }
  for (const [reason, count] of byReason) cells.bind("veil_wireguard_refused_peers", { reason }).value = count;
}

/** One sample of a metric. */
export interface PeerSample {
  readonly name: string;
  readonly labels: Record<string, string>;
  readonly value: number;
}

/** What a view is as metrics (table `wireguardPeerMetrics`): only peers that there are. */
export function samplesOf(view: NodeView): PeerSample[] {
  return view.pairs.flatMap(({ node, slots }) =>
    slots.flatMap((one) => {
      const labels = { peer: node, slot: String(one.slot) };
      const values = {
        veil_wireguard_peer_generation: one.generation,
        veil_wireguard_peer_sending: one.state === "sending" ? 1 : 0,
        veil_wireguard_peer_handshake_age_seconds: one.handshakeAgeSeconds,
        veil_wireguard_peer_received_bytes_total: one.receivedBytes,
        veil_wireguard_peer_sent_bytes_total: one.sentBytes,
      };
      return Object.entries(values).flatMap(([name, value]) => (value === undefined ? [] : [{ name, labels, value }]));
    }),
  );
}
