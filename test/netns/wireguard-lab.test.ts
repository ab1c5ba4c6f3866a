import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { findWords, type Packet } from "#capture";
import type { Pod } from "#kube";
import { enterPlace } from "#lab";
import { openNetns } from "#linux";
import { ensureWireguardGo } from "../../tools/test-programs.ts";
import { startFlows, type FlowPlace } from "./flow-mesh.ts";
import { eventually, must, startLab, type TestLab } from "./harness.ts";
import { DEVICES, processOf } from "./wireguard-world.ts";
import { idlePod, labMesh, namespaceObject, pidsOf } from "./mesh.ts";

const NAMESPACE = "flow";
const NODES = ["node1", "node2", "node3"] as const;
const WORDS = "words-about-purple-lighthouses";
/** From each place to each other one: well below what a slow machine carries. */
const RATE = 100;
const TWIN_MS = 4_000;
const ROTATIONS = 6;
/** Rotations in quick succession: as fast as the barrier allows. */
const QUICK = "1s";
const SLOW = "1h";

const clock = systemClock();

describe("a lab of three nodes with tunnels between them", () => {
  let lab: TestLab;
  let pods: readonly Pod[];
  let places: readonly FlowPlace[];

  before(async () => {
    const [program] = await ensureWireguardGo();
    lab = await startLab("wg", { nodes: NODES.length, wireguard: program });
    const mesh = labMesh(lab);
    const objects = NODES.map((node) => idlePod(mesh, { namespace: NAMESPACE, name: node, node }));
    await eventually("pods to be accepted", async () => {
      await lab.apply([namespaceObject(NAMESPACE), ...objects]);
      return true;
    });
    pods = await Promise.all(NODES.map((node) => lab.readyPod(NAMESPACE, node)));
    places = await Promise.all(
      pods.map(async (pod) => ({
        ip: pod.status?.podIP ?? "",
        enter: await enterPlace({ lab: lab.layout, clock }, `${NAMESPACE}/${pod.metadata?.name}`),
      })),
    );
    await generationReached(lab, 1);
  });
  after(async () => {
    await lab?.[Symbol.asyncDispose]();
  });

  it("carries what pods say by UDP to another node in the tunnel alone; what a node says itself can be read", async () => {
    const [from, to] = places;
    assert.ok(from && to);
    const before = await lab.captureNode("node1");
    await say(from.enter, from.ip, to.ip);
    const packets = await before.stop();
    assert.deepEqual(inClear(packets, places), []);
    assert.equal(findWords(packets, [WORDS]).length, 0, "the words were read");
    assert.ok(packets.some(isTunnel), "nothing went through the tunnel");
    // The same words from the node itself, which is not covered: this capture would have seen them.
    const twin = await lab.captureNode("node1");
    await say(["nsenter", `--net=/run/netns/${lab.nodes[0]?.netns}`], lab.nodes[0]?.address ?? "", to.ip);
    assert.ok(findWords(await twin.stop(), [WORDS]).length > 0, "the capture sees nothing");
  });

  it("loses no datagram while keys rotate, as a twin that does not rotate loses none", async () => {
    await interval(lab, SLOW);
    await using twin = await startFlows(places, RATE);
    await sleep(clock, TWIN_MS);
    const still = await twin.stop();
    const [keys, first] = [await keysOf(lab), await generationOf(lab)];
    await using flows = await startFlows(places, RATE);
    await interval(lab, QUICK);
    await generationReached(lab, first + ROTATIONS);
    await interval(lab, SLOW);
    const rotating = await flows.stop();
    for (const key of await keysOf(lab)) assert.ok(!keys.includes(key), `key ${key} was not changed`);
    assert.deepEqual([still.lost, still.by], [0, {}], JSON.stringify(still));
    assert.deepEqual([rotating.lost, rotating.by], [0, {}], JSON.stringify(rotating));
  });

  it("goes on while an agent is killed, and the next one takes the devices over with their keys", async () => {
    const keys = await keysOf(lab);
    await using flows = await startFlows(places, RATE);
    const before = await pidsOf(lab, "agent", "node1");
    for (const pid of before) process.kill(pid, "SIGKILL");
    await eventually("another agent that knows its pairs", async () => {
      const now = await pidsOf(lab, "agent", "node1");
      const view = await lab.execNode("node1", "curl", "-sf", "http://127.0.0.1:9965/wireguard");
      return now.length > 0 && !now.some((pid) => before.includes(pid)) && view.stdout.includes("node2")
        ? true
        : undefined;
    });
    const totals = await flows.stop();
    assert.deepEqual([totals.lost, totals.by], [0, {}], JSON.stringify(totals));
    assert.deepEqual(await keysOf(lab), keys);
  });

  it("makes a device anew that was killed, with fresh keys, and sends nothing in clear meanwhile", async () => {
    const keys = await keysOf(lab);
    const capture = await lab.captureNode("node1", { filter: "not port 51871 and not port 51872" });
    await using flows = await startFlows(places, RATE);
    using netns = openNetns(`/run/netns/${lab.nodes[0]?.netns}`);
    const killed = Object.values(DEVICES).flatMap((device) => processOf({ netns }, device) ?? []);
    assert.equal(killed.length, 2);
    for (const pid of killed) process.kill(pid, "SIGKILL");
    await eventually("both devices to have fresh keys", async () => {
      const now = await keysOf(lab, ["node1"]);
      return now.length === 2 && now.every((key) => !keys.includes(key)) ? true : undefined;
    });
    const taken = await flows.received();
    await eventually("datagrams to arrive again", async () => {
      const now = await flows.received();
      return now - taken > RATE * 6 || undefined;
    });
    await flows.stop();
    assert.deepEqual(inClear(await capture.stop(), places), []);
  });
});

/** Says the words ten times by UDP. */
async function say(enter: readonly string[], from: string, to: string): Promise<void> {
  const script = `const s=require("node:dgram").createSocket("udp4");s.bind(0,${JSON.stringify(from)},()=>{let n=0;const t=setInterval(()=>{s.send(${JSON.stringify(WORDS)},9200,${JSON.stringify(to)});if(++n===10){clearInterval(t);setTimeout(()=>s.close(),100)}},20)})`;
  await must([...enter, process.execPath, "-e", script]);
}

/** Packets with a pod at both ends, as they are on the wire. */
function inClear(packets: readonly Packet[], places: readonly FlowPlace[]): string[] {
  const ips = new Set<string>(places.map(({ ip }) => ip));
  return packets
    .filter(({ source, destination }) => ips.has(source) && ips.has(destination))
    .map(({ source, destination, destinationPort }) => `${source} > ${destination}:${destinationPort}`);
}

function isTunnel({ protocol, destinationPort }: Packet): boolean {
  return protocol === "udp" && (destinationPort === 51_871 || destinationPort === 51_872);
}

/** Public keys of the devices, as `wg` tells them. */
async function keysOf(lab: TestLab, nodes: readonly string[] = NODES): Promise<string[]> {
  const shown = await Promise.all(nodes.map((node) => lab.execNode(node, "wg", "show", "all", "public-key")));
  return shown
    .flatMap(({ stdout }) => [...stdout.matchAll(/\t(\S{44})$/gm)].map(([, key]) => key ?? ""))
    .toSorted(byText);
}

function byText(a: string, b: string): number {
  return a < b ? -1 : 1;
}

const rotation = [
  "get",
  "wireguardrotation",
  "cluster",
  "-o",
  "jsonpath={.status.generation}/{.status.phase}",
] as const;

async function generationOf(lab: TestLab): Promise<number> {
  return Number((await lab.kubectl(...rotation)).split("/")[0]);
}

async function generationReached(lab: TestLab, generation: number): Promise<void> {
  await eventually(
    `generation ${generation} on all nodes`,
    async () => {
      const [now, phase] = (await lab.kubectl(...rotation)).split("/");
      return Number(now) >= generation && phase === "running" ? true : undefined;
    },
    180_000,
  );
}

async function interval(lab: TestLab, text: string): Promise<void> {
  const patch = JSON.stringify({ spec: { interval: text } });
  await lab.kubectl("patch", "wireguardrotation", "cluster", "--type", "merge", "-p", patch);
}
