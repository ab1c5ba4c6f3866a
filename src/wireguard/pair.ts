import { slotOf, SLOTS, type Slot, type SlotPeer } from "./slots.ts";
import type { NodeState, Pair, Turn } from "./node-state.ts";
import type { Peer } from "./peers.ts";

/** Whether this proof is still wanted. */
export function isProving(
  state: NodeState,
  node: string,
  proof: { readonly slot: Slot; readonly pair: string },
): boolean {
  return state.pairs.get(node)?.proving[proof.slot] === proof.pair;
}

/** The peer as a slot's device is to have it; undefined when it has no key there. */
export function slotPeer(state: NodeState, peer: Peer, slot: Slot): SlotPeer | undefined {
  const key = peer.keys[slot];
  if (key === undefined) return undefined;
  const { node, endpoint, allowedIps, hasSlots } = peer;
  const initiator = !hasSlots || state.self < node;
  return { node, publicKey: key.publicKey, endpoint, port: key.port, allowedIps, initiator };
}

/** Steps 4 to 6 of a rotation (node.ts) for one pair. */
export function settle(state: NodeState, pair: Pair, turn: Turn): void {
  if (turn.nowMs < pair.retryMs) return;
  for (const slot of SLOTS) {
    if (state.own[slot] === undefined && state.rekeying[slot] === undefined) continue;
    install(state, { pair, slot }, turn);
    prove(state, { pair, slot }, turn);
  }
  const slot = bestSlot(state, pair);
  if (slot === undefined || pair.routing !== undefined || pair.route === slot) return;
  const peer = slotPeer(state, pair.peer, slot);
  if (peer === undefined) return;
  pair.routing = slot;
  turn.actions.push({ kind: "route", peer, slot });
}

function install(state: NodeState, { pair, slot }: { pair: Pair; slot: Slot }, turn: Turn): void {
  const peer = slotPeer(state, pair.peer, slot);
  const replacing = pair.installed[slot];
  if (replacing === peer?.publicKey) return;
  if (peer === undefined) {
    removeFrom(pair, slot, turn);
    return;
  }
  pair.installed[slot] = peer.publicKey;
  pair.keyMs[slot] = turn.nowMs;
  pair.proven[slot] = undefined;
  pair.proving[slot] = undefined;
  turn.actions.push({ kind: "install", slot, peer, replacing });
}

function prove(state: NodeState, { pair, slot }: { pair: Pair; slot: Slot }, turn: Turn): void {
  const wanted = pairOfKeys(state, pair, slot);
  if (wanted === undefined || pair.proven[slot] === wanted || pair.proving[slot] === wanted) return;
  const peer = slotPeer(state, pair.peer, slot);
  if (peer === undefined) return;
  pair.proving[slot] = wanted;
  turn.actions.push({ kind: "prove", slot, peer, pair: wanted, echo: pair.peer.hasSlots });
}

/** The two keys by which this pair may send over a slot, as one text; undefined when it may not: both must be of one generation, and not below what was reported. */
function pairOfKeys(state: NodeState, { peer, installed }: Pair, slot: Slot): string | undefined {
  const own = state.own[slot];
  const key = peer.keys[slot];
  if (own === undefined || key === undefined || state.rekeying[slot] !== undefined) return undefined;
  if (installed[slot] !== key.publicKey) return undefined;
  if (peer.hasSlots && (own.generation !== key.generation || own.generation < state.done)) return undefined;
  return `${own.publicKey} ${key.publicKey}`;
}

/** The slot of the newest generation that is proven for the pair. */
function bestSlot(state: NodeState, pair: Pair): Slot | undefined {
  let best: Slot | undefined;
  for (const slot of SLOTS) {
    const keys = pairOfKeys(state, pair, slot);
    if (keys === undefined || pair.proven[slot] !== keys) continue;
    if (best === undefined || (state.own[slot]?.generation ?? 0) > (state.own[best]?.generation ?? 0)) best = slot;
  }
  return best;
}

/** Whether packets to the peer leave on the target's generation, proven. */
export function hasMoved(state: NodeState, pair: Pair): boolean {
  const { target } = state;
  if (target === undefined) return false;
  if (!pair.peer.hasSlots) return pair.route === 0;
  const slot = slotOf(target);
  const keys = pairOfKeys(state, pair, slot);
  const isOfTarget = state.own[slot]?.generation === target && keys !== undefined && pair.proven[slot] === keys;
  return isOfTarget && pair.route === slot && pair.routing === undefined;
}

/** Takes a pair out of a slot. */
export function removeFrom(pair: Pair, slot: Slot, { actions }: Turn): void {
  const publicKey = pair.installed[slot];
  if (publicKey === undefined) return;
  pair.installed[slot] = undefined;
  pair.proven[slot] = undefined;
  pair.proving[slot] = undefined;
  actions.push({ kind: "remove", slot, publicKey });
}
