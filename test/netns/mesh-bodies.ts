/**
 * What is true of a mesh, whatever cluster is underneath: the same tests run in a lab and on real kubelets, where only {@link Mesh}
 * differs.
 */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { sleep, systemClock } from "#base/clock";
import type { Capture, Packet } from "#capture";
import type { Pod } from "#kube";
import { eventually } from "./harness.ts";
import {
  assertFlawless,
  buildScene,
  clearStreams,
  enrolled,
  label,
  PROPAGATION_BOUND_MS,
  runLoad,
  startLoad,
  type LoadResult,
  type Mesh,
  type RunningLoad,
  type Scene,
} from "./mesh.ts";

const LONG = 10;
/** So many new connections are a load. */
const SERVED = 50;
/** For so long pods stay without the label. */
const PLAIN_MS = 1_500;
/** Connections through tunnels that show that a label has taken effect. */
const SWITCHED = 10;
const LONG_FLIPPED = 50;
/** New connections of a short load. */
const SHORT_DONE = 40;
/** A client's port stays in TIME_WAIT for 60 s, and the kernel has 28,231 of them for one destination: more a second run out. */
const MOST = 300;
const clock = systemClock();

/** An enrolled scene, and the words that run a program as its far client. */
export interface EnrolledScene {
  readonly mesh: Mesh;
  readonly scene: Scene;
  readonly enter: readonly string[];
}

/** Builds a scene, enrols it, and waits until its clients' nodes know of that: their connections go through tunnels. */
export async function buildEnrolled(mesh: Mesh, prefix: string): Promise<EnrolledScene> {
  const scene = await buildScene(mesh, prefix);
  await label(mesh, scene.namespaces, true);
  await enrolled(mesh, scene.namespaces, true);
  for (const pod of [scene.far, scene.near]) {
    const enter = await mesh.enterPod(pod);
    await eventually(`the connections of ${pod.metadata?.name} to go through tunnels`, async () => {
      const before = await tunnelled(mesh, scene);
      const { short } = await runLoad(enter, scene.server, ["--rate", "20", "--seconds", "0.5"]);
      return (short.done > 0 && (await tunnelled(mesh, scene)) >= before + short.done) || undefined;
    });
  }
  return { mesh, scene, enter: await mesh.enterPod(scene.far) };
}

/** Flips of the label under load break no connection: nothing reset, refused, lost or changed, as in a twin without flips. */
export async function flipsFailNothing(mesh: Mesh, t: TestContext, flips: number): Promise<void> {
  const rate = await measureRate(mesh);
  const scene = await buildScene(mesh, "flips");
  const twin = await buildScene(mesh, "twin");
  const start = async (at: Scene, newOnes: number): Promise<RunningLoad> =>
    startLoad(await mesh.enterPod(at.far), at.server, ["--long", String(LONG_FLIPPED), "--rate", String(newOnes)]);
  const quiet = await start(twin, Math.min(10, rate));
  const flipped = await start(scene, rate);
  for (let flip = 0; flip < flips; flip++) {
    const before = await tunnelled(mesh, scene);
    await label(mesh, scene.namespaces, true);
    await eventually("connections to be switched", async () =>
      (await tunnelled(mesh, scene)) > before + SWITCHED ? true : undefined,
    );
    await label(mesh, scene.namespaces, false);
    await sleep(clock, PLAIN_MS);
  }
  const [result, still] = [await flipped.stop(), await quiet.stop()];
  assertFlawless(still, LONG_FLIPPED);
  assertFlawless(result, LONG_FLIPPED);
  t.diagnostic(`${result.short.done} new connections at ${rate} a second`);
  await mesh.kubectl("delete", "namespace", ...scene.namespaces, ...twin.namespaces, "--wait=false");
}

/**
 * Once both ends have been enrolled for the bound, no new connection has a byte in clear, on one node or across; without the label the
 * capture finds them. Answers the scene.
 */
export async function nothingIsClear(mesh: Mesh): Promise<EnrolledScene> {
  const scene = await buildScene(mesh, "clear");
  const look = async (): Promise<Packet[]> => {
    const running = await capture(mesh, scene);
    const loads = [scene.far, scene.near].map((pod) => shortLoad(mesh, pod, scene.server));
    for (const result of await Promise.all(loads)) assertFlawless(result, 0);
    return running.stop();
  };
  const bare = await look();
  for (const pod of [scene.far, scene.near]) {
    assert.ok(
      clearStreams(bare, pod, scene.server).length > 10,
      `the capture does not see ${pod.metadata?.name} in clear`,
    );
  }
  await label(mesh, scene.namespaces, true);
  await enrolled(mesh, scene.namespaces, true);
  await sleep(clock, PROPAGATION_BOUND_MS);
  const covered = await look();
  assert.ok(covered.length > 100, "the capture saw nothing");
  for (const pod of [scene.far, scene.near]) assert.deepEqual(clearStreams(covered, pod, scene.server), []);
  return { mesh, scene, enter: await mesh.enterPod(scene.far) };
}

/**
 * Un-enrolling a pair under load fails nothing, however long the two have been enrolled: their nodes hear of it one after the other. Nor
 * does enrolling it again.
 */
export async function unenrolmentFailsNothing({ mesh, scene, enter }: EnrolledScene): Promise<void> {
  const load = await startLoad(enter, scene.server, ["--long", String(LONG), "--rate", "100"]);
  for (const on of [false, true]) {
    const before = await load.until("a load", ({ short }) => short.done > SERVED);
    await label(mesh, scene.namespaces, on);
    await enrolled(mesh, scene.namespaces, on);
    await load.until("a load after it", ({ short }) => short.done > before.short.done + SERVED);
  }
  assertFlawless(await load.stop(), LONG);
}

/** New connections a second: a quarter of what the pair can do while it is labelled and says as much as in the test, `MOST` at most. */
async function measureRate(mesh: Mesh): Promise<number> {
  const scene = await buildScene(mesh, "capacity");
  await label(mesh, scene.namespaces, true);
  await enrolled(mesh, scene.namespaces, true);
  const words = ["--long", String(2 * LONG_FLIPPED), "--closed", "8"];
  const load = await startLoad(await mesh.enterPod(scene.far), scene.server, words);
  const { elapsedMs, short } = await load.until("a load", (now) => now.elapsedMs > 3_000 || now.short.done > 20_000);
  await load.stop();
  await mesh.kubectl("delete", "namespace", ...scene.namespaces, "--wait=false");
  return Math.max(1, Math.min(MOST, Math.floor((short.done * 1000) / elapsedMs / 4)));
}

/** New connections to the scene's server that came through tunnels so far, by its node's metrics. */
async function tunnelled(mesh: Mesh, { server, namespaces: [east = ""] }: Scene): Promise<number> {
  const metrics = await mesh.proxyMetrics(server.spec?.nodeName ?? "");
  const labels = ['reporter="destination"', `destination_workload_namespace="${east}"`, 'policy="mutual_tls"'];
  const lines = metrics.split("\n").filter((line) => line.startsWith("istio_tcp_connections_opened_total{"));
  const own = lines.filter((line) => labels.every((text) => line.includes(text)));
  return own.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

async function capture(mesh: Mesh, at: Scene): Promise<{ stop: () => Promise<Packet[]> }> {
  const filter = "tcp";
  const captures: Capture[] = await Promise.all([
    mesh.captureNode("node1", { filter }),
    mesh.captureNode("node2", { filter }),
    ...[at.server, at.far, at.near].map((pod) => mesh.capturePod(pod, filter)),
  ]);
  return { stop: async () => (await Promise.all(captures.map((one) => one.stop()))).flat() };
}

async function shortLoad(mesh: Mesh, pod: Pod, server: Pod): Promise<LoadResult> {
  const load = await startLoad(await mesh.enterPod(pod), server, ["--rate", "20"]);
  await load.until("connections", ({ short }) => short.done >= SHORT_DONE);
  return load.stop();
}
