/**
 * What the rotation of keys costs by size of the cluster: publications, deliveries and handshakes of one rotation, what they weigh, and
 * the CPU that one node's decisions take, with the decisions themselves and records as they are published. One node is run for real; the
 * others are its peers. `node --conditions=veil-source bench/wireguard-cost.ts`
 */
import { systemClock } from "#base/clock";
import { advance, newNode } from "../src/wireguard/node.ts";
import type { NodeAction, NodeEvent, NodeState } from "../src/wireguard/node-state.ts";
import { defaultIntervalMs } from "../src/wireguard/barrier.ts";
import { PeerDirectory, type NodeClaim } from "../src/wireguard/peers.ts";
import { formatRecord } from "../src/wireguard/record.ts";

const SIZES = [3, 10, 100, 500, 1_000, 2_000, 5_000];
/** A handshake is three packets of 148, 92 and 32 bytes and UDP and IP around each; an echo is two more of 96 and 28. */
const PROOF_BYTES = 148 + 92 + 32 + 2 * 96 + 5 * 28;

const key = (node: number, generation: number): string => {
  const bytes = Buffer.alloc(32, 9);
  bytes.writeUInt32BE(node, 0);
  bytes.writeUInt32BE(generation, 8);
  return bytes.toString("base64");
};
const keyOf = (node: number, generation: number, slot: number) => ({
  generation,
  publicKey: key(node, generation),
  port: 51_871 + slot,
});

/** What node `n` publishes when its newest key is of `generation`. */
function claim(n: number, generation: number): NodeClaim {
  const newest = keyOf(n, generation, generation % 2);
  const older = keyOf(n, generation - 1, (generation - 1) % 2);
  const keys = generation % 2 === 0 ? { 0: newest, 1: older } : { 0: older, 1: newest };
  return {
    node: `node-${String(n).padStart(5, "0")}`,
    addresses: [`172.16.${n >> 8}.${n & 255}`],
    podCidrs: [`10.${n >> 8}.${n & 255}.0/24`],
    publicKey: undefined,
    record: formatRecord({ keys, sending: generation - 1 }),
  };
}

/** Bytes of a node's CiliumNode as a watch delivers it. */
function deliveryBytes(): number {
  const { node, addresses, podCidrs, record } = claim(1, 1_000);
  const annotations = { "network.cilium.io/wg-pub-key": key(1, 1_000), "veil.dev/wireguard": record };
  const ownerReferences = [{ apiVersion: "v1", kind: "Node", name: node, uid: "00000000-0000-0000-0000-000000000000" }];
  const stamps = {
    uid: ownerReferences[0]?.uid,
    resourceVersion: "123456789",
    generation: 1,
    creationTimestamp: "2026-01-01T00:00:00Z",
  };
  const managedFields = [0, 1].map(() => ({
    manager: "veil",
    operation: "Update",
    apiVersion: "cilium.io/v2",
    time: stamps.creationTimestamp,
    fieldsType: "FieldsV1",
    fieldsV1: {
      "f:metadata": { "f:annotations": { "f:network.cilium.io/wg-pub-key": {}, "f:veil.dev/wireguard": {} } },
    },
  }));
  const metadata = {
    name: node,
    labels: { "app.kubernetes.io/managed-by": "veil" },
    annotations,
    ownerReferences,
    managedFields,
    ...stamps,
  };
  const spec = { addresses: [{ type: "InternalIP", ip: addresses[0] }], ipam: { podCIDRs: podCidrs } };
  return JSON.stringify({
    type: "MODIFIED",
    object: { apiVersion: "cilium.io/v2", kind: "CiliumNode", metadata, spec },
  }).length;
}

/** A node among `size`: carries out at once whatever it decides, and counts it. */
class Node {
  readonly counts = { publications: 0, reports: 0, installs: 0, proofs: 0, routes: 0 };
  readonly #state: NodeState = newNode("node-00000", [51_871, 51_872]);
  readonly #peers = new PeerDirectory("node-00000", (node, peer) => this.#take({ kind: "peer", node, peer }));
  readonly #open: NodeAction[] = [];
  #nowMs = 0;
  #isRunning = false;

  constructor(size: number) {
    this.#take({ kind: "started", own: [undefined, undefined], found: [new Set(), new Set()], done: -1 });
    for (let n = 1; n < size; n++) this.#peers.upsert(claim(n, 1));
    this.#take({ kind: "target", generation: 1 });
    this.#take({ kind: "synced" });
    this.#finish();
  }

  /** One rotation, in which every peer publishes once. */
  rotate(size: number, generation: number): void {
    this.#take({ kind: "target", generation });
    for (let n = 1; n < size; n++) this.#peers.upsert(claim(n, generation));
    this.#finish();
  }

  get done(): number {
    return this.#state.done;
  }

  /** Lets the last packets drain. */
  #finish(): void {
    this.#nowMs += 1_000;
    this.#take({ kind: "tick" });
  }

  #take(event: NodeEvent): void {
    this.#open.push(...advance(this.#state, event, this.#nowMs));
    if (this.#isRunning) return;
    this.#isRunning = true;
    for (let action = this.#open.shift(); action !== undefined; action = this.#open.shift()) this.#act(action);
    this.#isRunning = false;
  }

  #act(action: NodeAction): void {
    if (action.kind === "publish") this.counts.publications++;
    else if (action.kind === "report") this.counts.reports++;
    else if (action.kind === "install") this.counts.installs++;
    else if (action.kind === "rekey") this.#take({ kind: "rekeyed", action, publicKey: key(0, action.generation) });
    else if (action.kind === "prove") {
      this.counts.proofs++;
      this.#take({ kind: "proven", slot: action.slot, node: action.peer.node, pair: action.pair });
    } else if (action.kind === "route" && action.slot !== undefined) {
      this.counts.routes++;
      this.#take({ kind: "routed", node: action.peer.node, slot: action.slot });
    }
  }
}

const clock = systemClock();
const bytes = deliveryBytes();
const lines = SIZES.map((size) => {
  const node = new Node(size);
  const before = { ...node.counts };
  const startedMs = clock.monotonic();
  const cpu = process.cpuUsage();
  node.rotate(size, 2);
  const { user, system } = process.cpuUsage(cpu);
  if (node.done !== 2) throw new Error(`a rotation among ${size} nodes did not end`);
  const seconds = defaultIntervalMs(size) / 1000;
  const proofs = node.counts.proofs - before.proofs;
  return {
    size,
    seconds,
    publications: (2 * size) / seconds,
    deliveries: (size * size) / seconds,
    deliveredMB: (size * size * bytes) / seconds / 1e6,
    handshakes: (size * (size - 1)) / 2 / seconds,
    proofKb: (proofs * PROOF_BYTES) / seconds / 1000,
    cpuMs: (user + system) / 1000,
    tookMs: clock.monotonic() - startedMs,
  };
});

const head = [
  "nodes",
  "interval s",
  "writes/s",
  "deliveries/s",
  "API sends MB/s",
  "handshakes/s",
  "KB/s a node proves with",
  "CPU ms a node decides with",
];
const rows = lines.map((one) => [
  String(one.size),
  String(one.seconds),
  one.publications.toFixed(1),
  one.deliveries.toFixed(0),
  one.deliveredMB.toFixed(2),
  one.handshakes.toFixed(0),
  one.proofKb.toFixed(2),
  one.cpuMs.toFixed(1),
]);
process.stdout.write(
  `| ${head.join(" | ")} |\n|${"---|".repeat(head.length)}\n${rows.map((row) => `| ${row.join(" | ")} |`).join("\n")}\n\n`,
);
process.stdout.write(`One delivery is ${bytes} bytes. A writer writes twice in a rotation: its key, its report.\n`);
