/**
 * Everything goes wrong at once, at random: parts are killed, packets are lost, tunnels fall silent without a word. Longer than in
 * the tests: `VEIL_CHAOS_SECONDS=600`; the same again: `VEIL_CHAOS_SEED=` what the test printed.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { findHostPort } from "#base/ip";
import { seededRandom } from "#base/random";
import type { Packet } from "#capture";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import type { Pod } from "#kube";
import { eventually, must, startLab, type TestLab } from "./harness.ts";
import { buildEnrolled } from "./mesh-bodies.ts";
import {
  assertFlawless,
  childrenOf,
  clearStreams,
  labMesh,
  pidsOf,
  runLoad,
  startLoad,
  TUNNEL_PORT,
  type LoadResult,
  type Mesh,
  type RunningLoad,
  type Scene,
} from "./mesh.ts";

const SECONDS = Number(process.env["VEIL_CHAOS_SECONDS"] ?? "20");
const SEED = Number(process.env["VEIL_CHAOS_SEED"] ?? process.pid);
const LONG = 5;
const PARTS = ["controller", "agent", "apiserver", "proxy", "data path"] as const;
const NODES = ["node1", "node2"] as const;
const clock = systemClock();

let lab: TestLab;
let mesh: Mesh;
let scene: Scene;

before(async () => {
  lab = await startLab("chaos");
  mesh = labMesh(lab);
  ({ scene } = await buildEnrolled(mesh, "chaos"));
});
after(() => lab[Symbol.asyncDispose]());

async function kill(part: (typeof PARTS)[number], node: (typeof NODES)[number]): Promise<void> {
  const role = part === "data path" ? "proxy" : part;
  const [pid] = await pidsOf(lab, role, role === "proxy" || role === "agent" ? node : undefined);
  if (pid === undefined) return; // it is down already
  try {
    process.kill(part === "data path" ? Number(childrenOf(pid)[0]) : pid, "SIGKILL");
  } catch {
    // It has ended meanwhile.
  }
}

/** Loses packets on a node: of everything that is passed on a part, or all of what tunnels carry one way. */
async function lose(node: string, what: "some" | "tunnels" | "nothing"): Promise<void> {
  const rules = {
    some: "numgen random mod 100 < 3 drop",
    tunnels: `tcp sport ${TUNNEL_PORT} drop`,
    nothing: "",
  };
  const table = `add table inet vt-chaos\ndelete table inet vt-chaos\n`;
  const chain = `table inet vt-chaos { chain forward { type filter hook forward priority 0; ${rules[what]}\n}; }\n`;
  const netns = lab.nodes.find(({ name }) => name === node)?.netns ?? "";
  await must(["ip", "netns", "exec", netns, "nft", "-f", "-"], { input: what === "nothing" ? table : table + chain });
}

async function chaos(untilMs: number, log: (line: string) => void): Promise<void> {
  const random = seededRandom(SEED);
  const choose = <T>(choices: readonly [T, ...T[]]): T => choices[random.below(choices.length)] ?? choices[0];
  await kill("data path", "node1"); // this one is always seen
  while (clock.monotonic() < untilMs) {
    const node = choose(NODES);
    const event = choose(["kill", "kill", "some", "tunnels", "nothing"] as const);
    const part = choose(PARTS);
    log(event === "kill" ? `kill ${part} of ${node}` : `lose ${event} of ${node}`);
    await (event === "kill" ? kill(part, node) : lose(node, event));
    await sleep(clock, choose([200, 500, 1_000, 2_000]));
  }
  for (const node of NODES) await lose(node, "nothing");
}

/** What the proxies of all nodes wrote, of this and earlier runs of theirs. */
function records(): FlowRecord[] {
  const files = readdirSync(lab.layout.folder, { recursive: true, encoding: "utf8" });
  const logs = files.filter((file) => /proxy\b.*\.log$/.test(file));
  const lines = logs.flatMap((file) => readFileSync(join(lab.layout.folder, file), "utf8").split("\n"));
  return lines.flatMap((line) => findAccessRecord(line) ?? []);
}

function assertEnded(result: LoadResult): void {
  assert.equal(result.corrupt, 0, "bytes were changed");
  assert.equal(result.long.stalled, 0, "a connection neither went on nor ended");
  assert.ok(result.short.done > 0, "nothing went right");
}

test("under kills, loss and silence at once, a connection ends with right bytes or with a reason, and none speaks in clear", async (t) => {
  t.diagnostic(`seed ${SEED}`);
  const captures = await Promise.all([
    lab.captureNode("node1", { filter: "tcp" }),
    ...[scene.far, scene.near, scene.server].map((pod) => lab.capturePod(pod, "tcp")),
  ]);
  const words = ["--long", String(LONG), "--rate", "10"];
  const start = async (pod: Pod): Promise<RunningLoad> => startLoad(await mesh.enterPod(pod), scene.server, words);
  const loads = await Promise.all([scene.far, scene.near].map(start));
  await chaos(clock.monotonic() + SECONDS * 1000, (line) => t.diagnostic(line));
  const results: LoadResult[] = [];
  for (const load of loads) {
    const before = await load.until("how it goes", () => true);
    await load.until("new connections to be served", ({ short }) => short.done > before.short.done + 10);
    // A session whose peer is silent is given up after 10 s, and 20 s more for the answer to a PING.
    await load.until("nothing to hang", ({ long }) => long.waitingMs < 5_000);
    results.push(await load.stop());
  }
  for (const result of results) t.diagnostic(JSON.stringify(result.failures));
  for (const result of results) assertEnded(result);
  assert.ok(
    results.some(({ firstFailures }) => firstFailures.length > 0),
    "nothing went wrong: this was no chaos",
  );
  const packets: Packet[] = (await Promise.all(captures.map((capture) => capture.stop()))).flat();
  assert.ok(packets.length > 1_000, "the capture saw nothing");
  for (const pod of [scene.far, scene.near]) {
    assert.deepEqual(clearStreams(packets, pod, scene.server), [], "an enrolled pair spoke in clear");
  }
  const clients = new Set([scene.far, scene.near].map((pod) => pod.status?.podIP));
  const written = records().filter(({ source }) => clients.has(findHostPort(source.address)?.host));
  t.diagnostic(`${written.length} records`);
  assert.ok(written.length > 20);
  const unexplained = written.filter(({ verdict, reason }) => verdict === "refused" && reason === "ok");
  const clear = written.filter(({ verdict, encryption }) => verdict === "forwarded" && encryption !== "mutual_tls");
  assert.deepEqual([unexplained, clear], [[], []]);
});

test("when it is over, all is as before", async () => {
  for (const pod of [scene.far, scene.near]) {
    await eventually("a load without a failure", async () => {
      assertFlawless(await runLoad(await mesh.enterPod(pod), scene.server, ["--rate", "20", "--seconds", "2"]), 0);
      return true;
    });
  }
});
