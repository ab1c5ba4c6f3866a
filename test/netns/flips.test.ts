import { after, before, test } from "node:test";
import { startLab, type TestLab } from "./harness.ts";
import { flipsFailNothing, nothingIsClear, unenrolmentFailsNothing, type EnrolledScene } from "./mesh-bodies.ts";
import { labMesh } from "./mesh.ts";

const FLIPS = 10;

let lab: TestLab;
let at: EnrolledScene;

before(async () => {
  lab = await startLab("flips");
});
after(() => lab[Symbol.asyncDispose]());

test("ten flips of the label break no connection: nothing reset, refused, lost or changed, as in a twin without flips", (t) =>
  flipsFailNothing(labMesh(lab), t, FLIPS));

test("once both ends have been enrolled for the bound, no new connection has a byte in clear; without the label the capture finds them", async () => {
  at = await nothingIsClear(labMesh(lab));
});

test("un-enrolling a pair that has been enrolled for longer than the bound breaks no connection, nor does enrolling it again", () =>
  unenrolmentFailsNothing(at));
