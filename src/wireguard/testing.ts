import { sleep, systemClock } from "#base/clock";
import type { Slot, SlotPeer, SlotStatus, Tunnels } from "./slots.ts";

interface Device {
  key: string | undefined;
  readonly peers: Map<string, { readonly peer: SlotPeer; lastHandshakeMs: number }>;
}

/** What is between fake nodes. */
export class FakeUnderlay {
  readonly nodes = new Map<string, FakeTunnels>();
  /** Keys that were given out; each is another one, and one that a peer may have. */
  count = 0;
  /** Nodes that nobody reaches. */
  readonly cut = new Set<string>();

  /** A node whose devices are empty. */
  add(name: string): void {
    this.nodes.set(name, new FakeTunnels(name, this));
  }

  /** A pair that has each other's keys shakes hands; an echo then comes back. */
  reaches(from: FakeTunnels, slot: Slot, publicKey: string): boolean {
    const to = [...this.nodes.values()].find((node) => node.devices[slot].key === publicKey);
    if (to === undefined || this.cut.has(from.name) || this.cut.has(to.name)) return false;
    return from.devices[slot].peers.has(publicKey) && to.devices[slot].peers.has(from.devices[slot].key ?? "");
  }
}

/** A node's devices without a kernel: what they are given is kept, and two nodes reach each other when their keys say so. Outlives agents. */
export class FakeTunnels implements Tunnels {
  readonly name: string;
  readonly devices: readonly [Device, Device] = [newDevice(), newDevice()];
  /** By node: where its packets leave. */
  readonly routes = new Map<string, Slot>();
  /** What was wrong: a key that was made anew while somebody sent over it. */
  readonly violations: string[] = [];
  readonly #underlay: FakeUnderlay;
  readonly #lost = new Set<(slot: Slot) => void>();

  constructor(name: string, underlay: FakeUnderlay) {
    this.name = name;
    this.#underlay = underlay;
  }

  async rekey(slot: Slot, peers: readonly SlotPeer[]): Promise<string> {
    await sleep(systemClock(), 1);
    const users = [...this.#underlay.nodes.values()].filter((node) => node.routes.get(this.name) === slot);
    if (this.devices[slot].key !== undefined)
      this.violations.push(...users.map(({ name }) => `${name} sends on ${slot}`));
    this.#underlay.count++;
    const key = Buffer.alloc(32);
    key.writeUInt32BE(this.#underlay.count, 4);
    const device = this.devices[slot];
    device.key = key.toString("base64");
    device.peers.clear();
    for (const peer of peers) device.peers.set(peer.publicKey, { peer, lastHandshakeMs: 0 });
    return device.key;
  }

  async install(slot: Slot, peer: SlotPeer, replacing?: string): Promise<void> {
    await sleep(systemClock(), 1);
    const { peers } = this.devices[slot];
    const lastHandshakeMs = replacing === undefined ? (peers.get(peer.publicKey)?.lastHandshakeMs ?? 0) : 0;
    if (replacing !== undefined) peers.delete(replacing);
    peers.set(peer.publicKey, { peer, lastHandshakeMs });
  }

  async remove(slot: Slot, publicKey: string): Promise<void> {
    await sleep(systemClock(), 1);
    this.devices[slot].peers.delete(publicKey);
  }

  status(slot: Slot): Promise<SlotStatus> {
    const { key, peers } = this.devices[slot];
    for (const [publicKey, entry] of peers) {
      if (this.#underlay.reaches(this, slot, publicKey)) entry.lastHandshakeMs ||= systemClock().now();
    }
    const known = [...peers].map(
      ([publicKey, { lastHandshakeMs }]) => [publicKey, { lastHandshakeMs, receivedBytes: 1, sentBytes: 2 }] as const,
    );
    return Promise.resolve({ publicKey: key, peers: new Map(known) });
  }

  probe(slot: Slot, peer: SlotPeer): Promise<boolean> {
    return Promise.resolve(this.#underlay.reaches(this, slot, peer.publicKey));
  }

  route(peer: SlotPeer, slot: Slot | undefined): Promise<void> {
    if (slot === undefined) this.routes.delete(peer.node);
    else this.routes.set(peer.node, slot);
    return Promise.resolve();
  }

  onLost(listener: (slot: Slot) => void): () => void {
    this.#lost.add(listener);
    return () => void this.#lost.delete(listener);
  }

  /** Ends a device; it is there again at once, empty. */
  lose(slot: Slot): void {
    this.devices[slot].key = undefined;
    this.devices[slot].peers.clear();
    for (const listener of this.#lost) listener(slot);
  }
}

function newDevice(): Device {
  return { key: undefined, peers: new Map() };
}
