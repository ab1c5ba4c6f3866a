import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import type { Capture, Packet } from "#capture";
import type { Pod } from "#kube";
import { eventually, must, startLab, type TestLab } from "./harness.ts";
import {
  assertFlawless,
  buildScene,
  clearStreams,
  enrolled,
  enterPod,
  label,
  PROPAGATION_BOUND_MS,
  runLoad,
  startLoad,
  type LoadResult,
  type RunningLoad,
  type Scene,
} from "./mesh.ts";

const FLIPS = 10;
/** For so long pods stay without the label. */
const PLAIN_MS = 1_500;
/** Connections through tunnels that show that a label has taken effect. */
const SWITCHED = 10;
const LONG = 50;
/** A client's port stays in TIME_WAIT for 60 s, and the kernel has 28,231 of them for one destination: more a second run out. */
const MOST = 300;
const clock = systemClock();

let lab: TestLab;

before(async () => {
  lab = await startLab("flips");
});
after(() => lab[Symbol.asyncDispose]());

/** New connections a second: a quarter of what the pair can do while it is labelled and says as much as in the test, `MOST` at most. */
async function measureRate(): Promise<number> {
  const scene = await buildScene(lab, "capacity");
  await label(lab, scene.namespaces, true);
  await enrolled(lab, scene.namespaces, true);
  const words = ["--long", String(2 * LONG), "--closed", "8"];
  const load = await startLoad(await enterPod(lab, scene.far), scene.server, words);
  const { elapsedMs, short } = await load.until("a load", (now) => now.elapsedMs > 3_000 || now.short.done > 20_000);
  await load.stop();
  await lab.kubectl("delete", "namespace", ...scene.namespaces, "--wait=false");
  return Math.max(1, Math.min(MOST, Math.floor((short.done * 1000) / elapsedMs / 4)));
}

/** New connections to the scene's server that came through tunnels so far, by its node's metrics. */
async function tunnelled({ server, namespaces: [east = ""] }: Scene): Promise<number> {
  const netns = lab.nodes.find(({ name }) => name === server.spec?.nodeName)?.netns ?? "";
  const metrics = await must(["ip", "netns", "exec", netns, "curl", "-sf", "http://127.0.0.1:15020/metrics"]);
  const labels = ['reporter="destination"', `destination_workload_namespace="${east}"`, 'policy="mutual_tls"'];
  const lines = metrics.split("\n").filter((line) => line.startsWith("istio_tcp_connections_opened_total{"));
  const own = lines.filter((line) => labels.every((text) => line.includes(text)));
  return own.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

async function capture(at: Scene): Promise<{ stop: () => Promise<Packet[]> }> {
  const filter = "tcp";
  const captures: Capture[] = await Promise.all([
    lab.captureNode("node1", { filter }),
    lab.captureNode("node2", { filter }),
    ...[at.server, at.far, at.near].map((pod) => lab.capturePod(pod, filter)),
  ]);
  return { stop: async () => (await Promise.all(captures.map((one) => one.stop()))).flat() };
}

async function shortLoad(pod: Pod, server: Pod): Promise<LoadResult> {
  return runLoad(await enterPod(lab, pod), server, ["--rate", "20", "--seconds", "3"]);
}

test("ten flips of the label break no connection: nothing reset, refused, lost or changed, as in a twin without flips", async (t) => {
  const rate = await measureRate();
  const scene = await buildScene(lab, "flips");
  const twin = await buildScene(lab, "twin");
  const start = async (at: Scene, newOnes: number): Promise<RunningLoad> =>
    startLoad(await enterPod(lab, at.far), at.server, ["--long", String(LONG), "--rate", String(newOnes)]);
  const quiet = await start(twin, Math.min(10, rate));
  const flipped = await start(scene, rate);
  for (let flip = 0; flip < FLIPS; flip++) {
    const before = await tunnelled(scene);
    await label(lab, scene.namespaces, true);
    await eventually("connections to be switched", async () =>
      (await tunnelled(scene)) > before + SWITCHED ? true : undefined,
    );
    await label(lab, scene.namespaces, false);
    await sleep(clock, PLAIN_MS);
  }
  const [result, still] = [await flipped.stop(), await quiet.stop()];
  assertFlawless(still, LONG);
  assertFlawless(result, LONG);
  t.diagnostic(`${result.short.done} new connections at ${rate} a second`);
  await lab.kubectl("delete", "namespace", ...scene.namespaces, ...twin.namespaces, "--wait=false");
});

test("once both ends have been enrolled for the bound, no new connection has a byte in clear; without the label the capture finds them", async () => {
  const scene = await buildScene(lab, "clear");
  const look = async (): Promise<Packet[]> => {
    const running = await capture(scene);
    for (const pod of [scene.far, scene.near]) assertFlawless(await shortLoad(pod, scene.server), 0);
    return running.stop();
  };
  const bare = await look();
  for (const pod of [scene.far, scene.near]) {
    assert.ok(
      clearStreams(bare, pod, scene.server).length > 10,
      `the capture does not see ${pod.metadata?.name} in clear`,
    );
  }
  await label(lab, scene.namespaces, true);
  await enrolled(lab, scene.namespaces, true);
  await sleep(clock, PROPAGATION_BOUND_MS);
  const covered = await look();
  assert.ok(covered.length > 100, "the capture saw nothing");
  for (const pod of [scene.far, scene.near]) assert.deepEqual(clearStreams(covered, pod, scene.server), []);
});
