/** What is true while parts of a mesh are killed, away or replaced, whatever cluster is underneath: see mesh-bodies.ts. */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import type { Packet } from "#capture";
import { resources, type Pod } from "#kube";
import { findAccessRecord } from "#model/access-log";
import { eventually } from "./harness.ts";
import type { EnrolledScene } from "./mesh-bodies.ts";
import {
  assertFlawless,
  clearStreams,
  LOAD_PORT,
  loadServer,
  runLoad,
  startLoad,
  type LoadProgress,
  type LoadResult,
  type MeshRole,
} from "./mesh.ts";

const LONG = 10;
/** So many new connections are a load. */
const SERVED = 50;
/** It is over when nothing has failed for so long, and new connections were served. */
const SERVED_MS = 1_500;
const VEIL = "veil-system";
const CONTROLLER = { name: "veil-controller", namespace: VEIL };

/**
 * Runs load on the enrolled pair, does `harm` in the middle, and goes on until `isOver` says so of what the load tells; answers what
 * the load says. Nothing between the pair went in clear.
 */
async function underLoad(
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

/** The long connections have ended, and nothing has failed since for a while. */
function isBroken({ long, failedToMs, lastDoneMs }: LoadProgress): boolean {
  return long.alive === 0 && lastDoneMs > failedToMs + SERVED_MS;
}

/** Waits until none of the far client's new connections to a server fails. */
async function served({ enter }: EnrolledScene, server: Pod): Promise<void> {
  await eventually(`${server.metadata?.name} to be served`, async () => {
    assertFlawless(await runLoad(enter, server, ["--rate", "20", "--seconds", "1"]), 0);
    return true;
  });
}

/** Kills, one after the other, of what no connection goes through fail none, old or new. */
export async function killsFailNothing(
  at: EnrolledScene,
  t: TestContext,
  kills: readonly { readonly role: MeshRole; readonly node?: string }[],
): Promise<void> {
  const killAll = async (): Promise<void> => {
    for (const { role, node } of kills) await at.mesh.kill(role, node);
  };
  const result = await underLoad(at, killAll, (now, before) => now.short.done > before.short.done + SERVED);
  assertFlawless(result, LONG);
  t.diagnostic(`${result.short.done} new connections, 0 failed`);
  await served(at, at.scene.server);
}

/** The kill of a proxy breaks its connections and refuses new ones, none goes in clear, and it passes. */
export async function killFailsClosed(at: EnrolledScene, t: TestContext, kill: () => Promise<void>): Promise<void> {
  const result = await underLoad(at, kill, isBroken);
  const spanMs = result.failedToMs - result.failedFromMs;
  const broken = (result.failures["long:ECONNRESET"] ?? 0) + (result.failures["long:closed"] ?? 0);
  assert.ok(broken >= LONG, "its connections did not break");
  assert.equal(result.corrupt, 0);
  t.diagnostic(`connections failed for ${spanMs} ms: ${JSON.stringify(result.failures)}`);
  await served(at, at.scene.server);
}

/** Proxies that are replaced beside each other fail no new connection, and reset those that outlast the drain. */
export async function replacedProxiesFailNothing(at: EnrolledScene, t: TestContext): Promise<void> {
  const result = await underLoad(at, () => at.mesh.replaceProxies(), isBroken);
  const ofNew = Object.keys(result.failures).filter((key) => !key.startsWith("long:"));
  assert.deepEqual(ofNew, [], result.firstFailures.join("; "));
  assert.equal(result.corrupt, 0);
  t.diagnostic(`${result.short.done} new connections, none failed; ${JSON.stringify(result.failures)}`);
}

/**
 * While the controller is away an enrolled pair goes on, also with a restarted proxy. A new enrolled server is not reached, and never in
 * clear, as nobody vouches for it; once the controller is back, it is.
 */
export async function controllerAwayFailsClosed(at: EnrolledScene): Promise<void> {
  const { mesh, scene } = at;
  const [east = ""] = scene.namespaces;
  const { spec } = await mesh.client.get(resources.deployments, CONTROLLER.name, CONTROLLER.namespace);
  await scaleController(at, 0);
  await refusesNewServer(at, "late-one");
  await mesh.kill("data path", "node1");
  await served(at, scene.server);
  await refusesNewServer(at, "late-two");
  await scaleController(at, spec?.replicas ?? 1);
  await served(at, await mesh.readyPod(east, "late-two"));
}

async function scaleController({ mesh }: EnrolledScene, replicas: number): Promise<void> {
  const { name, namespace } = CONTROLLER;
  await mesh.kubectl("-n", namespace, "scale", "deployment", name, `--replicas=${replicas}`);
  if (replicas > 0) return;
  await eventually("the controller to be gone", async () => {
    const { items } = await mesh.client.list(resources.pods, { namespace, labelSelector: `app=${name}` });
    return items.length === 0 || undefined;
  });
}

/** Starts an enrolled server of the old one's account, and sees that it is not reached while the old one is. */
async function refusesNewServer(at: EnrolledScene, name: string): Promise<void> {
  const { mesh, scene, enter } = at;
  const [east = ""] = scene.namespaces;
  await mesh.apply([loadServer(mesh, { namespace: east, name, node: "node2" })]);
  const server = await eventually(`${name} to have an address`, async () => {
    const pod = await mesh.client.find(resources.pods, { namespace: east, name });
    return pod?.status?.podIP === undefined ? undefined : pod;
  });
  const captures = await Promise.all([mesh.captureNode("node1", { filter: "tcp" }), mesh.capturePod(scene.far, "tcp")]);
  const result = await runLoad(enter, server, ["--rate", "5", "--seconds", "3"]);
  const packets = (await Promise.all(captures.map((capture) => capture.stop()))).flat();
  assert.equal(result.short.done, 0, `port ${LOAD_PORT} of a server that nobody vouches for was reached`);
  const clear = clearStreams(packets, scene.far, server);
  assert.deepEqual(clear, [], "an enrolled client spoke in clear to an enrolled server");
  const reasons = await eventually(`records of the connections to ${name}`, async () => {
    const found = await reasonsTo(at, server);
    return found.length > 0 ? found : undefined; // they are held for a while before they are refused
  });
  assert.deepEqual(reasons, ["refused control_plane_unavailable"]);
  await served(at, scene.server);
}

/** What the records of the client's proxy say about connections to a pod, each verdict and reason once. */
async function reasonsTo({ mesh }: EnrolledScene, server: Pod): Promise<string[]> {
  const { items } = await mesh.client.list(resources.pods, { namespace: VEIL, labelSelector: "app=ztunnel" });
  const proxy = items.find(({ spec }) => spec?.nodeName === "node1")?.metadata?.name ?? "";
  const lines = (await mesh.kubectl("-n", VEIL, "logs", proxy)).split("\n");
  const records = lines.flatMap((line) => findAccessRecord(line) ?? []).filter((one) => one.direction === "outbound");
  const own = records.filter(({ destination }) => destination.address === `${server.status?.podIP}:${LOAD_PORT}`);
  return [...new Set(own.map(({ verdict, reason }) => `${verdict} ${reason}`))];
}
