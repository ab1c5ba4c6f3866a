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
  type LoadProgress,
  type LoadResult,
  type Mesh,
  type MeshRole,
  type RunningLoad,
  type Scene,
} from "./mesh.ts";

const LONG = 10;
/** So many new connections are a load. */
const SERVED = 50;
/** It is over when nothing has failed for so long, and new connections were served. */
const SERVED_MS = 1_500;
/** For so long pods stay without the label. */
const PLAIN_MS = 1_500;
/** Connections through tunnels that show that a label has taken effect. */
const SWITCHED = 10;
const LONG_FLIPPED = 50;
/** A client's port stays in TIME_WAIT for 60 s, and the kernel has 28,231 of them for one destination: more a second run out. */
const MOST = 300;
const clock = systemClock();

/** A scene that has been enrolled for longer than the propagation bound, and the words that run a program as its far client. */
export interface EnrolledScene {
  readonly mesh: Mesh;
  readonly scene: Scene;
  readonly enter: readonly string[];
}

/** Builds a scene, enrols it, and waits out the bound. */
export async function buildEnrolled(mesh: Mesh, prefix: string): Promise<EnrolledScene> {
  return enrolScene(mesh, await buildScene(mesh, prefix));
}

async function enrolScene(mesh: Mesh, scene: Scene): Promise<EnrolledScene> {
  await label(mesh, scene.namespaces, true);
  await enrolled(mesh, scene.namespaces, true);
  await sleep(clock, PROPAGATION_BOUND_MS);
  return { mesh, scene, enter: await mesh.enterPod(scene.far) };
}

/**
 * Runs load on the enrolled pair, does `harm` in the middle, and goes on until `isOver` says so of what the load tells; answers what
 * the load says. Nothing between the pair went in clear.
 */
export async function underLoad(
  { mesh, scene, enter }: EnrolledScene,
  harm: () => Promise<void>,
  isOver: (now: LoadProgress, before: LoadProgress) => boolean,
): Promise<LoadResult> {
  const captures = await Promise.all([
    mesh.captureNode("node1", { filter: "tcp" }),
    mesh.capturePod(scene.far, "tcp"),
    mesh.capturePod(scene.server, "tcp"),
  ]);
  const load = await startLoad(enter, scene.server, ["--long", String(LONG), "--rate", "50"]);
  const before = await load.until("a load", ({ short }) => short.done > SERVED);
  await harm();
  await load.until("the load to be served after the harm", (now) => isOver(now, before));
  const result = await load.stop();
  const packets: Packet[] = (await Promise.all(captures.map((capture) => capture.stop()))).flat();
  assert.deepEqual(clearStreams(packets, scene.far, scene.server), [], "an enrolled pair spoke in clear");
  assert.ok(packets.length > 100, "the capture saw nothing");
  return result;
}

/** Waits until the pair talks without a failure. */
export async function healthy({ scene, enter }: EnrolledScene): Promise<void> {
  await eventually("the mesh to be healthy again", async () => {
    const result = await runLoad(enter, scene.server, ["--rate", "20", "--seconds", "1"]);
    assertFlawless(result, 0);
    return true;
  });
}

/** The kill of what no connection goes through fails none, old or new. */
export async function killFailsNothing(
  at: EnrolledScene,
  t: TestContext,
  { role, node }: { readonly role: MeshRole; readonly node?: string | undefined },
): Promise<void> {
  const result = await underLoad(
    at,
    () => at.mesh.kill(role, node),
    (now, before) => now.short.done > before.short.done + SERVED,
  );
  assertFlawless(result, LONG);
  t.diagnostic(`${role}: ${result.short.done} new connections, 0 failed`);
  await healthy(at);
}

/** The kill of a proxy breaks its connections and refuses new ones, none goes in clear, and it passes. */
export async function killFailsClosed(at: EnrolledScene, t: TestContext, kill: () => Promise<void>): Promise<void> {
  const isOver = ({ long, failedToMs, lastDoneMs }: LoadProgress): boolean =>
    long.alive === 0 && lastDoneMs > failedToMs + SERVED_MS;
  const result = await underLoad(at, kill, isOver);
  const spanMs = result.failedToMs - result.failedFromMs;
  const broken = (result.failures["long:ECONNRESET"] ?? 0) + (result.failures["long:closed"] ?? 0);
  assert.ok(broken >= LONG, "its connections did not break");
  assert.equal(result.corrupt, 0);
  t.diagnostic(`connections failed for ${spanMs} ms: ${JSON.stringify(result.failures)}`);
  await healthy(at);
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
 * capture finds them. Answers the scene, as {@link buildEnrolled} does.
 */
export async function nothingIsClear(mesh: Mesh): Promise<EnrolledScene> {
  const scene = await buildScene(mesh, "clear");
  const look = async (): Promise<Packet[]> => {
    const running = await capture(mesh, scene);
    for (const pod of [scene.far, scene.near]) assertFlawless(await shortLoad(mesh, pod, scene.server), 0);
    return running.stop();
  };
  const bare = await look();
  for (const pod of [scene.far, scene.near]) {
    assert.ok(
      clearStreams(bare, pod, scene.server).length > 10,
      `the capture does not see ${pod.metadata?.name} in clear`,
    );
  }
  const at = await enrolScene(mesh, scene);
  const covered = await look();
  assert.ok(covered.length > 100, "the capture saw nothing");
  for (const pod of [scene.far, scene.near]) assert.deepEqual(clearStreams(covered, pod, scene.server), []);
  return at;
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
  return runLoad(await mesh.enterPod(pod), server, ["--rate", "20", "--seconds", "3"]);
}
