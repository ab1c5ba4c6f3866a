import assert from "node:assert/strict";
import { test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { seededRandom } from "#base/random";
import { KubeClient, resources } from "#kube";
import { NodeRotation, ROTATION_NAME, wireguardMetrics, wireguardResources, type WireGuardRotation } from "#wireguard";
import { FakeApi } from "../kube/testing.ts";
import { FakeUnderlay, type FakeTunnels } from "../wireguard/testing.ts";
import { aloneInLead } from "./testing.ts";
import { WireguardBarrier } from "./wireguard-barrier.ts";

const clock = systemClock();
const shared = { clock, random: seededRandom(1), log: silentLog() };

async function eventually(what: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = clock.monotonic() + 120_000;
  const isTrue = async (): Promise<boolean> => check();
  while (!(await isTrue().catch(() => false))) {
    assert.ok(clock.monotonic() < endMs, `never: ${what}`);
    await sleep(clock, 10);
  }
}

/** Nodes whose devices are fakes, with an API, agents' rotations and a barrier that are real. */
class World implements AsyncDisposable {
  readonly client: KubeClient;
  readonly underlay = new FakeUnderlay();
  readonly rotations = new Map<string, NodeRotation>();
  readonly #api: FakeApi;
  readonly #barrier: WireguardBarrier;

  private constructor(api: FakeApi) {
    this.#api = api;
    this.client = new KubeClient({ config: api.config, ...shared });
    this.#barrier = new WireguardBarrier({
      client: this.client,
      leader: aloneInLead(this.client),
      foreignKeys: true,
      ...shared,
    });
  }

  static async of(...names: readonly string[]): Promise<World> {
    const world = new World(await FakeApi.start());
    await world.client.create(wireguardResources.wireguardRotations, {
      metadata: { name: ROTATION_NAME },
      spec: { interval: "1s" },
    });
    for (const name of names) await world.addNode(name);
    await world.#barrier.start(new AbortController().signal);
    return world;
  }

  async addNode(name: string): Promise<void> {
    const number = this.underlay.nodes.size + 1;
    await this.client.create(resources.nodes, {
      metadata: { name },
      spec: { podCIDRs: [`10.244.${number}.0/24`] },
      status: { addresses: [{ type: "InternalIP", address: `192.168.0.${number}` }] },
    });
    this.underlay.add(name);
    await this.startAgent(name);
  }

  async startAgent(name: string): Promise<void> {
    const { client } = this;
    const tunnels = this.tunnels(name);
    const backend = { kind: "fake", version: "1" };
    const metrics = new CellSet(wireguardMetrics);
    const yearsMs = name === "late" ? 365 * 86_400_000 : 0;
    const own = { ...shared, clock: { ...clock, now: () => clock.now() - yearsMs } };
    const rotation = new NodeRotation({ ...own, client, node: name, tunnels, backend, foreignKeys: true, metrics });
    this.rotations.set(name, rotation);
    await rotation.start();
  }

  async stopAgent(name: string): Promise<void> {
    await this.rotations.get(name)?.drain(0);
    this.rotations.delete(name);
  }

  tunnels(name: string): FakeTunnels {
    const found = this.underlay.nodes.get(name);
    assert.ok(found);
    return found;
  }

  async status(): Promise<NonNullable<WireGuardRotation["status"]>> {
    return (await this.client.get(wireguardResources.wireguardRotations, ROTATION_NAME)).status ?? {};
  }

  /** All nodes have reported this generation, or a later one. */
  async reached(generation: number): Promise<void> {
    await eventually(`generation ${generation}`, async () => {
      const { items } = await this.client.list(wireguardResources.wireguardNodes);
      return (
        items.length === this.underlay.nodes.size && items.every(({ status }) => (status?.done ?? -1) >= generation)
      );
    });
  }

  violations(): string[] {
    return [...this.underlay.nodes.values()].flatMap((node) => node.violations);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const rotation of this.rotations.values()) await rotation.drain(0);
    await this.#barrier.drain(0);
    this.client.close();
    await this.#api.stop();
  }
}

test("keys rotate by the barrier: published, proven, in use everywhere before the next generation", async () => {
  await using world = await World.of("a", "b", "c");
  await world.reached(1);
  const before = world.tunnels("a").devices.map(({ key }) => key);
  await world.reached(3);
  const after = world.tunnels("a").devices.map(({ key }) => key);
  assert.ok(after[0] !== before[0] && after[1] !== before[1], "both keys are others");
  assert.deepEqual(world.violations(), []);
  const view = await world.rotations.get("a")?.view();
  assert.deepEqual(
    view?.pairs.map(({ node, reason }) => [node, reason]),
    [
      ["b", undefined],
      ["c", undefined],
    ],
  );
});

test("a node that does not answer holds the rotation by its name, and goes on with it when it is back", async () => {
  await using world = await World.of("a", "b", "c");
  await world.reached(1);
  world.underlay.cut.add("c");
  await eventually("c is named", async () => {
    const { waitingFor = [], generation = 0 } = await world.status();
    return generation >= 2 && waitingFor.some(({ node }) => node === "c");
  });
  const { generation = 0 } = await world.status();
  await eventually("a and b have moved", () => world.tunnels("a").routes.get("b") === generation % 2);
  world.underlay.cut.clear();
  await world.reached(generation + 1);
  assert.deepEqual(world.violations(), []);
});

test("an agent that starts again takes over devices with the keys that it finds", async () => {
  await using world = await World.of("a", "b");
  await world.reached(1);
  await world.stopAgent("a");
  const { generation = 0 } = await world.status();
  const keys = new Set(world.tunnels("a").devices.map(({ key }) => key));
  await world.startAgent("a");
  await eventually(
    "it knows its pair again",
    async () => (await world.rotations.get("a")?.view())?.pairs[0]?.slots[0] !== undefined,
  );
  assert.ok(world.tunnels("a").devices.some(({ key }) => keys.has(key)));
  await world.reached(generation + 2);
  assert.deepEqual(world.violations(), []);
});

test("a device that is lost gets a fresh key, which its peers take at once", async () => {
  await using world = await World.of("a", "b");
  await world.reached(1);
  for (const slot of [0, 1] as const) world.tunnels("b").lose(slot);
  const { generation = 0 } = await world.status();
  await world.reached(generation + 2);
  const { key } = world.tunnels("b").devices[0];
  assert.ok(world.tunnels("a").devices[0].peers.has(key ?? ""));
});

test("a key that somebody puts into a node's object is replaced by the node's own again", async () => {
  await using world = await World.of("a", "b");
  await world.reached(1);
  const { ciliumNodes } = wireguardResources;
  const annotations = { "veil.dev/wireguard": '{"slots":[],"sending":1}', "network.cilium.io/wg-pub-key": "theirs" };
  await world.client.patch(ciliumNodes, { name: "b" }, { type: "merge", body: { metadata: { annotations } } });
  await eventually("b has written its own", async () => {
    const { metadata } = await world.client.get(ciliumNodes, "b");
    return metadata?.annotations?.["network.cilium.io/wg-pub-key"] === world.tunnels("b").devices[0].key;
  });
  await world.reached(((await world.status()).generation ?? 0) + 1);
  assert.equal(world.tunnels("a").routes.size, 1);
});

test("a node whose clock is a year off rotates with the others", async () => {
  await using world = await World.of("a", "late");
  await world.reached(3);
  assert.deepEqual(world.violations(), []);
});

test("a node that joins while keys rotate takes part; one that goes leaves nothing behind", async () => {
  await using world = await World.of("a", "b");
  await world.reached(1);
  await world.addNode("c");
  const { generation = 0 } = await world.status();
  await world.reached(generation + 2);
  assert.equal(world.tunnels("c").routes.size, 2);
  await world.stopAgent("c");
  world.underlay.nodes.delete("c");
  await world.client.delete(wireguardResources.wireguardNodes, { name: "c" });
  await world.client.delete(wireguardResources.ciliumNodes, { name: "c" });
  await eventually(
    "nothing stale",
    () => world.tunnels("a").routes.size === 1 && world.tunnels("a").devices[0].peers.size === 1,
  );
  const next = ((await world.status()).generation ?? 0) + 1;
  await world.reached(next);
  assert.deepEqual(world.violations(), []);
});

test("a node with one static key gets one slot, holds the rotation and is named; a refused one holds nobody", async () => {
  await using world = await World.of("a", "b");
  await world.reached(1);
  const key = Buffer.alloc(32, 77).toString("base64");
  const at = { addresses: [{ type: "InternalIP", ip: "192.168.0.99" }], ipam: { podCIDRs: ["10.244.99.0/24"] } };
  const { ciliumNodes } = wireguardResources;
  const annotations = { "network.cilium.io/wg-pub-key": key };
  await world.client.create(ciliumNodes, { metadata: { name: "other", annotations }, spec: at });
  await eventually("it is held", async () => (await world.status()).phase === "held");
  assert.deepEqual((await world.status()).waitingFor, [{ node: "other", reason: "OneSlot" }]);
  await eventually("it has slot 0", () => world.tunnels("a").devices[0].peers.has(key));
  assert.equal(world.tunnels("a").devices[1].peers.has(key), false);
  await world.client.patch(
    ciliumNodes,
    { name: "other" },
    { type: "merge", body: { spec: { ipam: { podCIDRs: ["0.0.0.0/0"] } } } },
  );
  const { generation = 0 } = await world.status();
  await world.reached(generation + 1);
  assert.deepEqual(
    (await world.status()).refused?.map(({ node, reason }) => [node, reason]),
    [["other", "CidrTooWide"]],
  );
  const { items } = await world.client.list(resources.events);
  assert.deepEqual(
    items.map(({ reason, involvedObject }) => [reason, involvedObject.name]),
    [["VeilTunnelRefused", "other"]],
  );
  assert.equal(world.tunnels("a").devices[0].peers.has(key), false);
});
