/**
 * A node's part of the rotation, as decisions: events go in, actions come out, and nothing is waited for
 * (docs/adr/0090-two-slots-of-wireguard.md). In the order of a rotation from generation e to e+1:
 *
 *  1. target: the barrier says e+1, as every node has reported that it is done with e
 *  2. rekey: a new key into the slot of e+1, over which nobody sends; 3. publish it
 *  4. install: each peer's new key, as it is learned
 *  5. prove: each pair, when both sides' keys are of e+1: a handshake, and an echo that went out of that slot
 *  6. route: a proven pair moves; the other direction decides for itself
 *  7. report done = e+1 when all pairs have moved and what was under way has drained. From then on nothing is sent below e+1.
 *
 * Whatever fails or is forgotten at any step: the pair goes on where it is, and the step is tried again.
 */
import { hasMoved, removeFrom, settle, slotPeer } from "./pair.ts";
import type { DeviceAction, NodeAction, NodeEvent, NodeState, Pair, RekeyAction, Turn } from "./node-state.ts";
import type { Peer } from "./peers.ts";
import type { NodeRecord } from "./record.ts";
import { slotOf, SLOTS, type Slot } from "./slots.ts";

/** Between the last packet that may have been sent over a slot and its next key. */
export const DRAIN_MS = 100;
/** After a device has refused something, until it is tried again. */
const RETRY_MS = 1_000;

/** A node before it has started. */
export function newNode(self: string, ports: readonly [number, number]): NodeState {
  return {
    self,
    ports,
    own: [undefined, undefined],
    rekeying: [undefined, undefined],
    rekeys: 0,
    target: undefined,
    targetMs: 0,
    done: -1,
    isSynced: false,
    pairs: new Map(),
    behind: new Set(),
    found: [new Set(), new Set()],
    movedMs: -DRAIN_MS,
    retryMs: [0, 0],
    failure: [undefined, undefined],
  };
}

/** Takes an event into the state; returns what is to be done now. `nowMs` is monotonic. */
export function advance(state: NodeState, event: NodeEvent, nowMs: number): NodeAction[] {
  const actions: NodeAction[] = [];
  const touched = take(state, event, { nowMs, actions });
  const pairs = touched === undefined ? [...state.pairs.values()] : [state.pairs.get(touched)];
  for (const slot of SLOTS) rekeyWhenFree(state, slot, { nowMs, actions });
  for (const pair of pairs) if (pair !== undefined) settleAndCount(state, pair, { nowMs, actions });
  finish(state, nowMs, actions);
  return actions;
}

function settleAndCount(state: NodeState, pair: Pair, turn: Turn): void {
  settle(state, pair, turn);
  const { node, hasSlots } = pair.peer;
  if (hasSlots && !hasMoved(state, pair)) state.behind.add(node);
  else state.behind.delete(node);
}

/** Changes the state. Returns the node whose pair alone can have something to do now; undefined: all of them. */
function take(state: NodeState, event: NodeEvent, turn: Turn): string | undefined {
  if (event.kind === "failed") return takeFailure(state, event, turn);
  if (event.kind === "peer") takePeer(state, event, turn);
  else if (event.kind === "proven") takeProof(state, event);
  else if (event.kind === "routed") takeRoute(state, event, turn);
  else {
    takeOwn(state, event, turn);
    return undefined;
  }
  return event.node;
}

/** What is about the node itself, and so about all of its pairs. */
function takeOwn(
  state: NodeState,
  event: Exclude<NodeEvent, { kind: "failed" | "peer" | "proven" | "routed" }>,
  turn: Turn,
): void {
  if (event.kind === "started") takeStart(state, event, turn);
  else if (event.kind === "rekeyed") takeKey(state, event, turn);
  else if (event.kind === "lost") lose(state, event.slot);
  else if (event.kind === "synced") {
    state.isSynced = true;
    for (const slot of SLOTS) forgetFound(state, slot, turn);
  } else if (event.kind === "target" && event.generation > (state.target ?? -1)) {
    state.target = event.generation;
    state.targetMs = turn.nowMs;
  }
}

function takeStart(state: NodeState, event: NodeEvent & { kind: "started" }, { actions }: Turn): void {
  state.own = [...event.own];
  state.done = event.done;
  for (const slot of SLOTS) for (const key of event.found[slot]) state.found[slot].add(key);
  actions.push({ kind: "report", done: state.done });
}

function takeKey(state: NodeState, event: { action: RekeyAction; publicKey: string }, { actions }: Turn): void {
  const { slot, generation, number } = event.action;
  if (state.rekeying[slot] !== number) return; // the device was lost meanwhile
  state.own[slot] = { generation, publicKey: event.publicKey, port: state.ports[slot] };
  state.rekeying[slot] = undefined;
  state.failure[slot] = undefined;
  actions.push({ kind: "publish", record: recordOf(state) });
}

/** What the node publishes. */
function recordOf({ own, done, target }: NodeState): NodeRecord {
  return { keys: { 0: own[0], 1: own[1] }, sending: done < 0 ? (target ?? 0) : done };
}

function takePeer(state: NodeState, { node, peer }: { node: string; peer: Peer | undefined }, turn: Turn): void {
  const pair = state.pairs.get(node);
  if (peer === undefined) {
    if (pair === undefined) return;
    state.pairs.delete(node);
    state.behind.delete(node);
    const any = slotPeer(state, pair.peer, 0) ?? slotPeer(state, pair.peer, 1);
    if (any !== undefined) turn.actions.push({ kind: "route", peer: any, slot: undefined });
    for (const slot of SLOTS) removeFrom(pair, slot, turn);
    return;
  }
  if (pair === undefined) {
    state.pairs.set(node, newPair(state, peer, turn));
    return;
  }
  const old = pair.peer;
  pair.peer = peer;
  for (const slot of SLOTS) updatePlace(state, { pair, old, slot }, turn);
  moveRanges(state, pair, { old, turn });
}

function newPair(state: NodeState, peer: Peer, { nowMs, actions }: Turn): Pair {
  const pair: Pair = {
    peer,
    installed: [undefined, undefined],
    keyMs: [nowMs, nowMs],
    proven: [undefined, undefined],
    proving: [undefined, undefined],
    route: undefined,
    routing: undefined,
    sinceMs: nowMs,
    retryMs: 0,
    failure: undefined,
  };
  for (const slot of SLOTS) {
    const known = slotPeer(state, peer, slot);
    if (known === undefined || !state.found[slot].delete(known.publicKey)) continue;
    pair.installed[slot] = known.publicKey;
    actions.push({ kind: "install", slot, peer: known, replacing: undefined }); // its place may have changed meanwhile
  }
  return pair;
}

/** The same key at another place: the entry is changed, and keeps its session. */
function updatePlace(state: NodeState, { pair, old, slot }: { pair: Pair; old: Peer; slot: Slot }, turn: Turn): void {
  const peer = slotPeer(state, pair.peer, slot);
  const before = slotPeer(state, old, slot);
  if (peer === undefined || before?.publicKey !== peer.publicKey || pair.installed[slot] !== peer.publicKey) return;
  const isSame =
    before.endpoint === peer.endpoint && before.port === peer.port && sameTexts(before.allowedIps, peer.allowedIps);
  if (!isSame) turn.actions.push({ kind: "install", slot, peer, replacing: undefined });
}

/** Other ranges of pods: those that went lose their route, those that came get it. */
function moveRanges(state: NodeState, pair: Pair, { old, turn }: { old: Peer; turn: Turn }): void {
  const slot = pair.routing ?? pair.route;
  const peer = slot === undefined ? undefined : slotPeer(state, pair.peer, slot);
  if (slot === undefined || peer === undefined || sameTexts(old.allowedIps, pair.peer.allowedIps)) return;
  const gone = old.allowedIps.filter((range) => !pair.peer.allowedIps.includes(range));
  if (gone.length > 0) turn.actions.push({ kind: "route", peer: { ...peer, allowedIps: gone }, slot: undefined });
  pair.routing = slot;
  turn.actions.push({ kind: "route", peer, slot });
}

function sameTexts(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((text, at) => text === b[at]);
}

/** Entries that nobody claims any more are taken out. */
function forgetFound(state: NodeState, slot: Slot, { actions }: Turn): void {
  for (const publicKey of state.found[slot]) actions.push({ kind: "remove", slot, publicKey });
  state.found[slot].clear();
}

function takeProof(state: NodeState, { node, slot, pair: proven }: { node: string; slot: Slot; pair: string }): void {
  const pair = state.pairs.get(node);
  if (pair === undefined || pair.proving[slot] !== proven) return; // of keys that are no more
  pair.proving[slot] = undefined;
  pair.proven[slot] = proven;
}

function takeRoute(state: NodeState, { node, slot }: { node: string; slot: Slot }, { nowMs }: Turn): void {
  const pair = state.pairs.get(node);
  if (pair === undefined || pair.routing !== slot) return;
  pair.route = slot;
  pair.routing = undefined;
  pair.failure = undefined;
  state.movedMs = nowMs;
}

/** A device that is there again without key and peers. */
function lose(state: NodeState, slot: Slot): void {
  state.own[slot] = undefined;
  state.rekeying[slot] = undefined;
  state.found[slot].clear();
  for (const pair of state.pairs.values()) {
    pair.installed[slot] = undefined;
    pair.proven[slot] = undefined;
    pair.proving[slot] = undefined;
  }
}

function takeFailure(
  state: NodeState,
  { action, message }: { readonly action: DeviceAction; readonly message: string },
  { nowMs, actions }: Turn,
): string | undefined {
  actions.push({ kind: "wake", atMs: nowMs + RETRY_MS });
  if (action.kind === "rekey") {
    if (state.rekeying[action.slot] !== action.number) return undefined;
    lose(state, action.slot); // it may have the new key or the old one: nobody sends there, so it gets another
    state.failure[action.slot] = message;
    state.retryMs[action.slot] = nowMs + RETRY_MS;
    return undefined;
  }
  if (action.kind === "remove") return undefined;
  const pair = state.pairs.get(action.peer.node);
  if (pair === undefined) return action.peer.node;
  pair.failure = message;
  pair.retryMs = nowMs + RETRY_MS;
  if (action.kind === "route") pair.routing = undefined;
  else pair.proving[action.slot] = undefined;
  if (action.kind === "install") pair.installed[action.slot] = undefined;
  return action.peer.node;
}

/** Step 2. A slot without key gets one at once; the target's slot gets its new one when nobody is sent anything over it. */
function rekeyWhenFree(state: NodeState, slot: Slot, { nowMs, actions }: Turn): void {
  const { target, own } = state;
  if (target === undefined || !state.isSynced || state.rekeying[slot] !== undefined || nowMs < state.retryMs[slot])
    return;
  const isTargets = slotOf(target) === slot;
  if (own[slot] !== undefined) {
    if (!isTargets || own[slot].generation >= target || isInUse(state, slot)) return;
    if (isDraining(state, { nowMs, actions })) return;
  }
  const peers = [...state.pairs.values()].flatMap((pair) => {
    const peer = slotPeer(state, pair.peer, slot);
    pair.installed[slot] = peer?.publicKey;
    pair.keyMs[slot] = nowMs;
    pair.proven[slot] = undefined;
    pair.proving[slot] = undefined;
    return peer ?? [];
  });
  state.found[slot].clear();
  state.rekeys++;
  state.rekeying[slot] = state.rekeys;
  const generation = isTargets ? target : Math.max(0, target - 1);
  actions.push({ kind: "rekey", slot, generation, number: state.rekeys, peers });
}

/** Whether packets may be under way still over the slot that was left last; then a tick is asked for. */
function isDraining({ movedMs }: NodeState, { nowMs, actions }: Turn): boolean {
  if (nowMs >= movedMs + DRAIN_MS) return false;
  actions.push({ kind: "wake", atMs: movedMs + DRAIN_MS });
  return true;
}

function isInUse(state: NodeState, slot: Slot): boolean {
  for (const { route, routing } of state.pairs.values()) if (route === slot || routing === slot) return true;
  return false;
}

/** Step 7. */
function finish(state: NodeState, nowMs: number, actions: NodeAction[]): void {
  const { target, done } = state;
  if (target === undefined || done >= target || !state.isSynced) return;
  if (state.own[slotOf(target)]?.generation !== target || state.rekeying[slotOf(target)] !== undefined) return;
  if (state.behind.size > 0 || isDraining(state, { nowMs, actions })) return;
  state.done = target;
  actions.push({ kind: "report", done: target });
}
