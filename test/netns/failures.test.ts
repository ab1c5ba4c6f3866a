import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startLab, type TestLab } from "./harness.ts";
import { flipsFailNothing, nothingIsClear, unenrolmentFailsNothing, type EnrolledScene } from "./mesh-bodies.ts";
import {
  controllerAwayFailsClosed,
  killFailsClosed,
  killsFailNothing,
  replacedProxiesFailNothing,
} from "./mesh-outages.ts";
import { labMesh, pidsOf } from "./mesh.ts";

const FLIPS = 10;

let lab: TestLab;
let at: EnrolledScene;

before(async () => {
  lab = await startLab("fail");
});
after(() => lab[Symbol.asyncDispose]());

test("ten flips of the label break no connection: nothing reset, refused, lost or changed, as in a twin without flips", (t) =>
  flipsFailNothing(labMesh(lab), t, FLIPS));

test("once both ends have been enrolled for the bound, no new connection has a byte in clear; without the label the capture finds them", async () => {
  at = await nothingIsClear(labMesh(lab));
});

for (const kill of [
  { role: "controller" },
  { role: "agent", node: "node1" },
  { role: "agent", node: "node2" },
  { role: "apiserver" },
] as const) {
  const where = "node" in kill ? ` of ${kill.node}` : "";
  test(`kill -9 of the ${kill.role}${where} fails no connection, old or new`, (t) => killsFailNothing(at, t, [kill]));
}

/** Ends the process that carries the data of a node, or the supervisor above it, which takes that process along. */
async function killProxy(node: string, part: "data path" | "supervisor"): Promise<void> {
  if (part === "data path") return at.mesh.kill(part, node);
  const [pid] = await pidsOf(lab, "proxy", node);
  assert.ok(pid !== undefined);
  process.kill(pid, "SIGKILL");
}

for (const [part, node] of [
  ["data path", "node1"],
  ["data path", "node2"],
  ["supervisor", "node1"],
  ["supervisor", "node2"],
] as const) {
  test(`kill -9 of the proxy's ${part} on ${node} breaks its connections, refuses new ones, never in clear, and passes`, (t) =>
    killFailsClosed(at, t, () => killProxy(node, part)));
}

test("with the controller stopped, an old enrolled client does not reach a new enrolled server, and never in clear; also with a restarted proxy", () =>
  controllerAwayFailsClosed(at));

test("proxies that are replaced beside each other fail no new connection, and reset those that outlast the drain", (t) =>
  replacedProxiesFailNothing(at, t));

test("un-enrolling a pair that has been enrolled for longer than the bound breaks no connection, nor does enrolling it again", () =>
  unenrolmentFailsNothing(at));
