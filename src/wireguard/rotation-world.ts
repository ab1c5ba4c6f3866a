import { decide } from "./barrier.ts";
import { advance, DRAIN_MS, newNode } from "./node.ts";
import type { DeviceAction, NodeEvent, NodeState } from "./node-state.ts";
import { isProving } from "./pair.ts";
import type { Peer } from "./peers.ts";
import type { NodeRecord } from "./record.ts";
import { SLOT_PORTS, SLOTS, type Slot } from "./slots.ts";

type Prove = Extract<DeviceAction, { kind: "prove" }>;
type Route = Extract<DeviceAction, { kind: "route" }>;

/** A device: its key, and what it has of the others, by name. */
interface Device {
  key: string | undefined;
  made: number;
  readonly entries: Map<string, string>;
  /** It was lost, and what it carries is excused until its pairs are proven again. */
  isLost: boolean;
}

/** A node of the simulated world. What is below `agent` outlives it. */
interface SimNode {
  agent: {
    state: NodeState;
    readonly queues: readonly [DeviceAction[], DeviceAction[]];
    readonly routes: Route[];
    readonly proofs: Prove[];
    publish: NodeRecord | undefined;
    report: number | undefined;
    wakeMs: number | undefined;
    nowMs: number;
    /** What it has been told, by node. */
    readonly told: Map<string, NodeRecord>;
    toldTarget: number;
  };
  readonly devices: readonly [Device, Device];
  readonly routes: Map<string, Slot>;
  record: NodeRecord | undefined;
  done: number;
}

/** Of these it only matters whether they are there. */
const NUMBERS = new Set(["nowMs", "movedMs", "targetMs", "sinceMs", "retryMs", "wakeMs", "keyMs", "rekeys", "number"]);

/** Something that can happen next, in any order. */
export type Choice =
  | { readonly kind: "device"; readonly node: string; readonly slot: Slot }
  | { readonly kind: "prove"; readonly node: string; readonly at: number }
  | { readonly kind: "route"; readonly node: string }
  | { readonly kind: "publish"; readonly node: string }
  | { readonly kind: "report"; readonly node: string }
  | { readonly kind: "wait" | "target" | "crash"; readonly node: string }
  | { readonly kind: "deliver"; readonly node: string; readonly of: string }
  | { readonly kind: "lose"; readonly node: string; readonly slot: Slot }
  | { readonly kind: "raise" };

/** How a world differs from the protocol, to show that the checks see it. */
export type Wrong = "impatient barrier" | undefined;

/**
 * Nodes with two devices each, the store and the barrier, in which everything that is under way may happen in any order: the real
 * decisions of {@link advance} and {@link decide} on devices that behave as WireGuard's. A pair can talk over a slot when each has the
 * other's key.
 */
export class RotationWorld {
  readonly #nodes = new Map<string, SimNode>();
  #last: number;
  readonly #wrong: Wrong;
  #generation = 1;
  /** What may not happen, and did. */
  readonly violations: string[] = [];

  /** `last`: the generation at which the barrier stops. */
  constructor(names: readonly string[], options: { readonly last: number; readonly wrong?: Wrong }) {
    this.#last = options.last;
    this.#wrong = options.wrong;
    for (const name of names) {
      const device = (): Device => ({ key: undefined, made: 0, entries: new Map(), isLost: false });
      this.#nodes.set(name, {
        agent: newAgent(name),
        devices: [device(), device()],
        routes: new Map(),
        record: undefined,
        done: -1,
      });
    }
    for (const name of names) this.#start(name);
  }

  /** Lets the barrier go on to a later generation. */
  goOnTo(last: number): void {
    this.#last = last;
  }

  /** A copy that goes its own way. */
  clone(): RotationWorld {
    const copy = new RotationWorld([], { last: this.#last, wrong: this.#wrong });
    for (const [name, node] of structuredClone(this.#nodes)) copy.#nodes.set(name, node); // at once: who was told what is a matter of identity
    copy.#generation = this.#generation;
    copy.violations.push(...this.violations);
    return copy;
  }

  /** The same text for the same world. */
  fingerprint(): string {
    return JSON.stringify([this.#generation, [...this.#nodes]], (key, value: unknown) => {
      if (NUMBERS.has(key)) return value !== undefined;
      if (key === "rekeying" && Array.isArray(value)) return value.map((one) => one !== undefined);
      if (value instanceof Map) return [...value].toSorted((a, b) => (String(a[0]) < String(b[0]) ? -1 : 1));
      return value instanceof Set ? [...value].map(String).toSorted((a, b) => (a < b ? -1 : 1)) : value;
    });
  }

  /** Everything that can happen next by itself. Empty: it has come to rest. */
  choices(): Choice[] {
    const found = [...this.#nodes.keys()].flatMap((name) => [...this.#choicesOf(name), ...this.#deliveriesTo(name)]);
    if (this.#next() > this.#generation) found.push({ kind: "raise" });
    return found;
  }

  #choicesOf(name: string): Choice[] {
    const { agent } = this.#node(name);
    const found: Choice[] = [];
    for (const slot of SLOTS) if (agent.queues[slot].length > 0) found.push({ kind: "device", node: name, slot });
    agent.proofs.forEach((proof, at) => {
      const isStale = !isProving(agent.state, proof.peer.node, proof);
      if (isStale || this.#connected(name, proof.peer.node, proof.slot)) found.push({ kind: "prove", node: name, at });
    });
    const open = {
      route: agent.routes.length > 0,
      publish: agent.publish !== undefined,
      report: agent.report !== undefined,
      wait: agent.wakeMs !== undefined,
      target: agent.toldTarget < this.#generation,
    };
    for (const kind of ["route", "publish", "report", "wait", "target"] as const) {
      if (open[kind]) found.push({ kind, node: name });
    }
    return found;
  }

  #deliveriesTo(name: string): Choice[] {
    const { told } = this.#node(name).agent;
    return [...this.#nodes].flatMap(([of, { record }]): Choice[] =>
      of !== name && record !== undefined && told.get(of) !== record ? [{ kind: "deliver", node: name, of }] : [],
    );
  }

  /** What can go wrong next. */
  mishaps(): Choice[] {
    return [...this.#nodes.keys()].flatMap((node): Choice[] => [
      { kind: "crash", node },
      { kind: "lose", node, slot: 0 },
      { kind: "lose", node, slot: 1 },
    ]);
  }

  /** Lets it happen; then looks whether every pair that could talk still can. */
  step(choice: Choice): void {
    if (choice.kind === "raise") this.#generation = this.#next();
    else this.#stepNode(this.#node(choice.node), choice);
    this.#check();
  }

  /** What is missing at rest: pairs that do not talk, nodes that are not on the last generation. */
  unfinished(): string[] {
    const slot = this.#last % 2;
    return [...this.#nodes].flatMap(([name, { done, routes }]) => [
      ...(done === this.#last ? [] : [`${name} is done with ${done}, not ${this.#last}`]),
      ...[...this.#nodes.keys()]
        .filter((to) => to !== name && routes.get(to) !== slot)
        .map((to) => `${name} does not send to ${to} on ${slot}`),
    ]);
  }

  #stepNode(node: SimNode, choice: Exclude<Choice, { kind: "raise" }>): void {
    if (choice.kind === "device") this.#stepDevice(node, choice);
    else if (choice.kind === "prove") this.#stepProof(node, choice);
    else if (choice.kind === "route") this.#stepRoute(node, choice.node);
    else if (choice.kind === "publish") stepPublish(node);
    else if (choice.kind === "report") stepReport(node);
    else if (choice.kind === "deliver") this.#deliver(choice.node, choice.of);
    else if (choice.kind === "lose") this.#lose(node, choice);
    else this.#stepAgent(node, choice);
  }

  #stepDevice({ agent }: SimNode, { node, slot }: { node: string; slot: Slot }): void {
    const action = agent.queues[slot].shift();
    if (action !== undefined) this.#act(node, action);
  }

  #stepProof({ agent, devices }: SimNode, choice: { node: string; at: number }): void {
    const [proof] = agent.proofs.splice(choice.at, 1);
    if (proof === undefined || !isProving(agent.state, proof.peer.node, proof)) return;
    devices[proof.slot].isLost &&= !this.#allConnected(choice.node, proof.slot);
    this.#take(choice.node, { kind: "proven", slot: proof.slot, node: proof.peer.node, pair: proof.pair });
  }

  #stepRoute({ agent, routes }: SimNode, name: string): void {
    const route = agent.routes.shift();
    if (route === undefined) return;
    if (route.slot === undefined) {
      routes.delete(route.peer.node);
      return;
    }
    routes.set(route.peer.node, route.slot);
    this.#take(name, { kind: "routed", node: route.peer.node, slot: route.slot });
  }

  #stepAgent(node: SimNode, { kind, node: name }: { kind: "wait" | "target" | "crash"; node: string }): void {
    const { agent } = node;
    if (kind === "wait") {
      agent.nowMs += DRAIN_MS;
      agent.wakeMs = undefined;
      this.#take(name, { kind: "tick" });
    } else if (kind === "target") {
      agent.toldTarget = this.#generation;
      this.#take(name, { kind: "target", generation: this.#generation });
    } else {
      node.agent = newAgent(name);
      this.#start(name);
    }
  }

  #lose({ agent, devices }: SimNode, { node, slot }: { node: string; slot: Slot }): void {
    Object.assign(devices[slot], { key: undefined, isLost: true });
    devices[slot].entries.clear();
    agent.queues[slot].length = 0;
    this.#take(node, { kind: "lost", slot });
  }

  /** A new agent: reads what its node has published, takes over devices whose keys those are, and all that is there. */
  #start(name: string): void {
    const node = this.#node(name);
    const own = ([0, 1] as const).map((slot) => {
      const key = node.record?.keys[slot];
      return key !== undefined && key.publicKey === node.devices[slot].key ? key : undefined;
    });
    const isAdopted = own[0] !== undefined || own[1] !== undefined;
    const found = ([0, 1] as const).map(
      (slot) => new Set(own[slot] === undefined ? [] : node.devices[slot].entries.values()),
    );
    this.#take(name, {
      kind: "started",
      own: [own[0], own[1]],
      found: [found[0] ?? new Set(), found[1] ?? new Set()],
      done: isAdopted ? node.done : -1,
    });
    node.done = isAdopted ? node.done : -1; // reported before anything else
    node.agent.report = undefined;
    for (const of of this.#nodes.keys()) if (of !== name) this.#deliver(name, of);
    this.#take(name, { kind: "synced" });
  }

  #deliver(name: string, of: string): void {
    const { record } = this.#node(of);
    if (record === undefined) return;
    this.#node(name).agent.told.set(of, record);
    const allowedIps = [`10.0.${of.codePointAt(0) ?? 0}.0/24`];
    const peer: Peer = {
      node: of,
      endpoint: of,
      allowedIps,
      keys: record.keys,
      sending: record.sending,
      hasSlots: true,
    };
    this.#take(name, { kind: "peer", node: of, peer });
  }

  #take(name: string, event: NodeEvent): void {
    const { agent } = this.#node(name);
    for (const action of advance(agent.state, event, agent.nowMs)) {
      if (action.kind === "publish") agent.publish = action.record;
      else if (action.kind === "report") agent.report = action.done;
      else if (action.kind === "wake") agent.wakeMs = action.atMs;
      else if (action.kind === "prove") agent.proofs.push(action);
      else if (action.kind === "route") agent.routes.push(action);
      else agent.queues[action.slot].push(action);
    }
  }

  #act(name: string, action: DeviceAction): void {
    if (action.kind === "prove" || action.kind === "route") return;
    const node = this.#node(name);
    const device = node.devices[action.slot];
    if (action.kind === "install") device.entries.set(action.peer.node, action.peer.publicKey);
    else if (action.kind === "remove") {
      for (const [of, key] of device.entries) if (key === action.publicKey) device.entries.delete(of);
    } else {
      if (device.key !== undefined) this.#checkIdle(name, action.slot);
      device.made++;
      device.key = `${name}${action.slot}.${device.made}`;
      device.entries.clear();
      for (const peer of action.peers) device.entries.set(peer.node, peer.publicKey);
      this.#take(name, { kind: "rekeyed", action, publicKey: device.key });
    }
  }

  /** Nobody sends over a slot that gets a new key. */
  #checkIdle(name: string, slot: Slot): void {
    for (const [other, node] of this.#nodes) {
      if (node.routes.get(name) === slot)
        this.#violate(`${name} makes slot ${slot} anew while ${other} sends to it there`);
    }
    for (const [to, over] of this.#node(name).routes) {
      if (over === slot) this.#violate(`${name} makes slot ${slot} anew while it sends to ${to} there`);
    }
  }

  /** Whoever sends reaches the other, unless a device was lost. */
  #check(): void {
    for (const [name, { routes, devices }] of this.#nodes) {
      for (const [to, slot] of routes) {
        if (devices[slot].isLost || this.#node(to).devices[slot].isLost) continue;
        if (!this.#connected(name, to, slot))
          this.#violate(`${name} sends to ${to} on slot ${slot}, which does not work`);
      }
    }
  }

  #violate(what: string): void {
    const excused = [...this.#nodes.values()].some(({ devices }) => devices[0].isLost || devices[1].isLost);
    if (!excused) this.violations.push(what);
  }

  #connected(a: string, b: string, slot: Slot): boolean {
    const [one, two] = [this.#node(a).devices[slot], this.#node(b).devices[slot]];
    if (one.key === undefined || two.key === undefined) return false;
    return one.entries.get(b) === two.key && two.entries.get(a) === one.key;
  }

  #allConnected(name: string, slot: Slot): boolean {
    return [...this.#nodes.keys()].every((other) => other === name || this.#connected(name, other, slot));
  }

  /** The generation that the barrier would say now. */
  #next(): number {
    if (this.#generation >= this.#last) return this.#generation;
    if (this.#wrong === "impatient barrier") return this.#generation + 1;
    const participants = [...this.#nodes].map(([node, { done }]) => ({ node, done, hasPublished: true, missing: [] }));
    return decide({ generation: this.#generation, forMs: 1, intervalMs: 0, participants, oneSlot: [] }).generation;
  }

  /** What "naive" means: a node that makes the key anew on which everybody sends. */
  replaceInPlace(name: string): void {
    const { state } = this.#node(name).agent;
    const slot = state.own[0]?.generation === state.done ? 0 : 1;
    const peers = [...this.#node(name).devices[slot].entries].map(([node, publicKey]) => ({
      node,
      publicKey,
      endpoint: node,
      port: 1,
      allowedIps: [],
      initiator: true,
    }));
    this.#act(name, { kind: "rekey", slot, generation: state.done, number: -1, peers });
    this.#check();
  }

  #node(name: string): SimNode {
    const node = this.#nodes.get(name);
    if (node === undefined) throw new Error(`no node ${name}`);
    return node;
  }
}

function stepPublish(node: SimNode): void {
  node.record = node.agent.publish;
  node.agent.publish = undefined;
}

function stepReport(node: SimNode): void {
  node.done = node.agent.report ?? node.done;
  node.agent.report = undefined;
}

function newAgent(name: string): SimNode["agent"] {
  return {
    state: newNode(name, [SLOT_PORTS[0], SLOT_PORTS[1]]),
    queues: [[], []],
    routes: [],
    proofs: [],
    publish: undefined,
    report: undefined,
    wakeMs: undefined,
    nowMs: 0,
    told: new Map(),
    toldTarget: 0,
  };
}
