import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import type { Capture, Packet } from "#capture";
import type { Pod } from "#kube";
import { startLab, type TestLab } from "./harness.ts";
import {
  assertFlawless,
  buildScene,
  clearStreams,
  enrolled,
  enterPod,
  label,
  PROPAGATION_BOUND_MS,
  runLoad,
  TUNNEL_PORT,
  type LoadResult,
  type Scene,
} from "./mesh.ts";

const FLIPS = 10;
const HOLD_MS = 1_500;
const LONG = 50;
const clock = systemClock();

let lab: TestLab;
/** A client's port stays in TIME_WAIT for 60 s, and the kernel has 28,231 of them for one destination: more a second run out. */
const MOST = 300;
/** New connections a second: half of what the pair can do while it is labelled, `MOST` at most. */
let rate: number;

before(async () => {
  lab = await startLab("flips");
  const scene = await buildScene(lab, "capacity");
  await label(lab, scene.namespaces, true);
  await enrolled(lab, scene.namespaces, true);
  const enter = await enterPod(lab, scene.far);
  const { short } = await runLoad(enter, scene.server, ["--closed", "8", "--seconds", "3"]);
  rate = Math.min(MOST, Math.floor(short.done / 3 / 2));
  await lab.kubectl("delete", "namespace", ...scene.namespaces, "--wait=false");
});
after(() => lab[Symbol.asyncDispose]());

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

test("ten flips of the label break no connection: nothing reset, refused, lost or changed, as in a twin without flips", async () => {
  assert.ok(rate > 10, `a capacity of ${2 * rate} connections a second is no load`);
  const scene = await buildScene(lab, "flips");
  const twin = await buildScene(lab, "twin");
  const seconds = 12 + Math.ceil((2 * FLIPS * (HOLD_MS + 700)) / 1000);
  const words = (part: number): string[] => [
    "--long",
    String(LONG),
    "--rate",
    String(Math.floor(rate * part)),
    "--seconds",
    String(seconds),
  ];
  const quiet = runLoad(await enterPod(lab, twin.far), twin.server, [
    "--long",
    String(LONG),
    "--rate",
    "10",
    "--seconds",
    String(seconds),
  ]);
  const flipped = runLoad(await enterPod(lab, scene.far), scene.server, words(1));
  await sleep(clock, 2_000);
  const startMs = clock.monotonic();
  const tunnels = await lab.captureNode("node1", {
    filter: `dst host ${scene.server.status?.podIP} and tcp dst port ${TUNNEL_PORT}`,
  });
  const heldUs: { fromUs: number; toUs: number }[] = [];
  for (let flip = 0; flip < FLIPS; flip++) {
    for (const on of [true, false]) {
      await label(lab, scene.namespaces, on);
      await sleep(clock, HOLD_MS);
      if (on) heldUs.push({ fromUs: (clock.now() - HOLD_MS / 2) * 1000, toUs: clock.now() * 1000 });
    }
  }
  const requests = (await tunnels.stop()).filter(({ payload }) => payload.length > 100);
  for (const { fromUs, toUs } of heldUs) {
    const seen = requests.filter(({ timeUs }) => timeUs >= fromUs && timeUs < toUs).length;
    assert.ok(seen > 10, `only ${seen} packets of tunnels while both sides were labelled: nothing was switched`);
  }
  assert.ok(
    clock.monotonic() - startMs < (seconds - 4) * 1000,
    "the load ended before the flips did: nothing was tested at the end",
  );
  const [result, still] = await Promise.all([flipped, quiet]);
  assertFlawless(still, LONG);
  assertFlawless(result, LONG);
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
      clearStreams(bare, pod, scene.server).length > 50,
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
