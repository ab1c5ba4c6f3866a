import { every, sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { Informer, resources, type KubeClient, type KubeObject, type Node } from "#kube";
import { DeviceQueue } from "./device-queue.ts";
import { advance, newNode } from "./node.ts";
import { NodeObjects } from "./node-objects.ts";
import type { NodeAction, NodeEvent, NodeState } from "./node-state.ts";
import {
  claimOf,
  FIRST_GENERATION,
  ROTATION_NAME,
  wireguardResources,
  type CiliumNode,
  type WireGuardRotation,
} from "./objects.ts";
import { slotPeer } from "./pair.ts";
import { PathCheck, type SendingPair } from "./path-check.ts";
import { PeerDirectory } from "./peers.ts";
import { Prover } from "./prover.ts";
import { SLOT_PORTS, SLOTS, type Tunnels } from "./slots.ts";
import { countNode, describeNode, reportOf, samplesOf, type NodeView, type PeerSample } from "./view.ts";

/** Steps that were refused are tried again, and the report is brought up to date, so often. */
const TICK_MS = 500;
/** Whether large packets arrive, too, is looked at so often. */
const PATHS_MS = 30_000;
/** Devices are read for the metrics of peers so often. */
const SAMPLE_MS = 15_000;
/** Between two reports of nothing but progress. */
const PROGRESS_MS = 5_000;
/** Between two tries to begin. */
const RETRY_MS = 1_000;

/** What a node's rotation is made of. */
export interface NodeRotationOptions {
  readonly client: KubeClient;
  readonly node: string;
  /** The node's devices, open. */
  readonly tunnels: Tunnels;
  /** UDP ports of the slots. Default: {@link SLOT_PORTS}. */
  readonly ports?: readonly [number, number];
  /** What carries the tunnels, for the report. */
  readonly backend: { readonly kind: string; readonly version: string };
  /** Whether keys are published and read where Cilium has them: not where Cilium itself is. */
  readonly foreignKeys: boolean;
  /** Of the table `wireguardMetrics`. */
  readonly metrics: CellSet;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/**
 * Carries out a node's part of the rotation: events come from the API and from the devices, {@link advance} decides, and its actions
 * go to the devices and the API.
 *
 *     CiliumNodes ──▶ PeerDirectory ─┐                  ┌─▶ devices (in order, per slot) ──▶ done or failed ─┐
 *     WireGuardRotation ─────────────┼──▶ advance() ────┼─▶ proofs (handshake and echo) ──▶ proven ──────────┼──▶ advance()
 *     a device that was lost ────────┘                  └─▶ CiliumNode annotation, WireGuardNode status      ┘
 *
 * It may end at any step: devices, routes and what was published stay, and the next one goes on from there.
 */
export class NodeRotation implements Service {
  readonly name = "wireguard rotation";
  readonly #options: NodeRotationOptions;
  readonly #state: NodeState;
  readonly #objects: NodeObjects;
  readonly #peers: PeerDirectory;
  readonly #queue: DeviceQueue;
  readonly #prover: Prover;
  readonly #paths: PathCheck;
  readonly #nodes: Informer<CiliumNode>;
  readonly #rotations: Informer<WireGuardRotation>;
  readonly #own: Informer<Node>;
  readonly #stop = new AbortController();
  #cancels: (() => void)[] = [];
  #running: Promise<void> | undefined;
  #samples: PeerSample[] = [];
  #reported = { text: "", whole: "", atMs: 0 };

  constructor(options: NodeRotationOptions) {
    const { client, node, tunnels, ports = [SLOT_PORTS[0], SLOT_PORTS[1]], clock, random, log } = options;
    const { signal } = this.#stop;
    this.#options = options;
    this.#state = newNode(node, ports);
    this.#objects = new NodeObjects(options);
    this.#peers = new PeerDirectory(node, (name, peer) => this.#take({ kind: "peer", node: name, peer }));
    const take = (event: NodeEvent): void => this.#take(event);
    this.#queue = new DeviceQueue({ tunnels, log, signal, onDone: take });
    this.#prover = new Prover({ state: this.#state, tunnels, queue: this.#queue, clock, signal, onProven: take });
    this.#paths = new PathCheck(tunnels);
    const shared = { client, clock, random, log };
    this.#nodes = new Informer({ ...shared, ref: wireguardResources.ciliumNodes });
    this.#rotations = new Informer({
      ...shared,
      ref: wireguardResources.wireguardRotations,
      fieldSelector: `metadata.name=${ROTATION_NAME}`,
    });
    this.#own = new Informer({ ...shared, ref: resources.nodes, fieldSelector: `metadata.name=${node}` });
  }

  /** Every pair and slot as it is now. */
  async view(): Promise<NodeView> {
    const { tunnels, clock } = this.#options;
    const devices = await Promise.all(SLOTS.map((slot) => tunnels.status(slot)));
    const refusals = this.#peers.refusals;
    return describeNode(this.#state, { devices, refusals, nowMs: clock.now(), monotonicMs: clock.monotonic() });
  }

  /** Metrics of each peer and slot, as they were last read. */
  get samples(): PeerSample[] {
    return this.#samples;
  }

  /** Starts; resolves at once: the API is waited for beside it. */
  start(): Promise<void> {
    this.#running = this.#run();
    return Promise.resolve();
  }

  /** Ends; what is published and what is in the devices stays. */
  async drain(deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("draining"));
    for (const cancel of this.#cancels) cancel();
    await this.#running;
    await Promise.all([this.#nodes, this.#rotations, this.#own].map((one) => one.drain(deadlineMs)));
    await Promise.all([this.#objects.stop(), this.#queue.idle()]);
  }

  async #run(): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await this.#begin();
        return;
      } catch (error) {
        if (signal.aborted) return;
        log.warn({ error: messageOf(error) }, "the rotation of keys cannot begin yet, trying again");
        await sleep(clock, RETRY_MS, signal).catch(() => undefined);
      }
    }
  }

  async #begin(): Promise<void> {
    const { clock, tunnels } = this.#options;
    const { signal } = this.#stop;
    const started = await this.#adopt(await this.#objects.open(signal));
    // Before anything is sent: whoever waits for this node's report must not take an old one for it.
    await this.#objects.reportNow({ ...this.#status(), done: started.done }, signal);
    await Promise.all([this.#nodes, this.#rotations, this.#own].map((one) => one.start(signal)));
    this.#take(started);
    this.#cancels = [
      tunnels.onLost((slot) => this.#lost(slot)),
      this.#followPeers(),
      this.#followTarget(),
      this.#followOwnNode(),
      every(clock, TICK_MS, () => this.#tick()),
      every(clock, SAMPLE_MS, () => void this.#sample()),
      every(clock, PATHS_MS, () => void this.#paths.look(this.#sendingPairs())),
    ];
    this.#take({ kind: "synced" });
  }

  /** What an earlier agent left in the devices: a slot whose key is the one that was published goes on as it is. */
  async #adopt({ record, done }: Awaited<ReturnType<NodeObjects["open"]>>): Promise<NodeEvent & { kind: "started" }> {
    const own: NodeState["own"] = [undefined, undefined];
    const found: NodeState["found"] = [new Set(), new Set()];
    for (const slot of SLOTS) {
      const key = record?.keys[slot];
      const status = await this.#options.tunnels.status(slot);
      if (key === undefined || status.publicKey !== key.publicKey) continue;
      own[slot] = { ...key, port: this.#state.ports[slot] };
      for (const publicKey of status.peers.keys()) found[slot].add(publicKey);
    }
    const isAdopted = own[0] !== undefined || own[1] !== undefined;
    if (isAdopted) this.#options.log.info({ done }, "devices go on with the keys that they have");
    return { kind: "started", own, found, done: isAdopted ? done : -1 };
  }

  #followPeers(): () => void {
    const { node, foreignKeys } = this.#options;
    const upserted = (object: CiliumNode): void => {
      if (object.metadata?.name === node) this.#objects.observe(object);
      this.#peers.upsert(claimOf(object, foreignKeys));
    };
    const own = this.#nodes.get(node);
    if (own !== undefined) upserted(own); // first: nobody may claim what this node has
    for (const object of this.#nodes.list().toSorted(olderFirst)) upserted(object);
    return this.#nodes.on({ upserted, deleted: ({ metadata }) => this.#peers.remove(metadata?.name ?? "") });
  }

  #followTarget(): () => void {
    const upserted = ({ status }: WireGuardRotation): void => {
      if (status?.generation !== undefined) this.#take({ kind: "target", generation: status.generation });
    };
    const unfollow = this.#rotations.on({ upserted });
    if (this.#state.target === undefined) {
      // No controller has ever said one: go where the others are.
      const sending = this.#peers.peers.filter(({ hasSlots }) => hasSlots).map((peer) => peer.sending);
      this.#take({ kind: "target", generation: Math.max(FIRST_GENERATION, this.#state.done, ...sending) });
    }
    return unfollow;
  }

  #followOwnNode(): () => void {
    const { node, log } = this.#options;
    const upserted = (own: Node): void => {
      const object = this.#nodes.get(node);
      if (object === undefined || own.metadata?.name !== node) return;
      this.#objects.follow(own, object, this.#stop.signal).catch((error: unknown) => {
        if (!this.#stop.signal.aborted)
          log.warn({ error: messageOf(error) }, "the node's addresses cannot be published");
      });
    };
    return this.#own.on({ upserted });
  }

  #take(event: NodeEvent): void {
    if (this.#stop.signal.aborted) return;
    const { clock, metrics } = this.#options;
    if (event.kind === "failed") metrics.bind("veil_wireguard_device_failures_total", {}).value++;
    for (const action of advance(this.#state, event, clock.monotonic())) this.#act(action);
  }

  #act(action: NodeAction): void {
    const { clock, log, metrics } = this.#options;
    if (action.kind === "publish") this.#objects.publish(action.record);
    else if (action.kind === "prove") this.#prover.prove(action);
    else if (action.kind === "wake") {
      clock.after(Math.max(1, action.atMs - clock.monotonic()), () => this.#take({ kind: "tick" }));
    } else if (action.kind === "report") {
      log.info({ done: action.done }, "this generation of keys is in use to all peers");
      this.#report();
    } else {
      if (action.kind === "rekey") metrics.bind("veil_wireguard_rotations_total", { slot: `${action.slot}` }).value++;
      this.#queue.push(action);
    }
  }

  #lost(slot: 0 | 1): void {
    this.#options.log.warn({ slot }, "a wireguard device was lost and gets a fresh key");
    this.#options.metrics.bind("veil_wireguard_lost_devices_total", { slot: `${slot}` }).value++;
    this.#take({ kind: "lost", slot });
  }

  async #sample(): Promise<void> {
    const view = await this.view().catch(() => undefined); // a device that is being made anew has none
    this.#samples = view === undefined ? [] : samplesOf(view);
  }

  #tick(): void {
    this.#take({ kind: "tick" });
    this.#report();
  }

  #status(): ReturnType<typeof reportOf> {
    const { backend, clock } = this.#options;
    const { narrow } = this.#paths;
    return reportOf(this.#state, { backend, refusals: this.#peers.refusals, narrow, nowMs: clock.monotonic() });
  }

  #sendingPairs(): SendingPair[] {
    return [...this.#state.pairs.values()].flatMap(({ peer, route }) => {
      const entry = route === undefined || !peer.hasSlots ? undefined : slotPeer(this.#state, peer, route);
      return entry === undefined || route === undefined ? [] : [{ slot: route, peer: entry }];
    });
  }

  /** Reports what others wait for at once, and how far it has come seldom: a rotation costs a node two writes. */
  #report(): void {
    const status = this.#status();
    const nowMs = this.#options.clock.monotonic();
    countNode(this.#state, this.#peers.refusals, this.#options.metrics);
    const { proven, observedGeneration, ...urgent } = status;
    const text = JSON.stringify(urgent);
    const whole = `${text} ${proven} ${observedGeneration}`;
    const isDue = this.#reported.whole !== whole && nowMs - this.#reported.atMs >= PROGRESS_MS;
    if (this.#reported.text === text && !isDue) return;
    this.#reported = { text, whole, atMs: nowMs };
    this.#objects.report(status);
  }
}

/** By the API's own clock, then by name: of two that claim the same, the one that was there first. */
function olderFirst(a: KubeObject, b: KubeObject): number {
  const key = ({ metadata }: KubeObject): string => `${metadata?.creationTimestamp ?? ""} ${metadata?.name ?? ""}`;
  return key(a) < key(b) ? -1 : 1;
}
