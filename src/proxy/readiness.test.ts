import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Readiness } from "./readiness.ts";

describe("readiness", () => {
  const state = { missing: ["the agent"], obstacles: ["a reader"] };
  const readiness = new Readiness({ missing: () => state.missing, obstacles: () => state.obstacles });

  it("is reached when nothing is missing", () => {
    assert.deepEqual(readiness.look(), { isReady: false, pending: ["a reader", "the agent"] });
    state.obstacles = [];
    assert.deepEqual(readiness.look(), { isReady: false, pending: ["the agent"] });
    state.missing = [];
    assert.deepEqual(readiness.look(), { isReady: true, pending: [] });
  });

  it("stays when something is missing again, which is shown, and goes while no connection is taken", () => {
    state.missing = ["the agent"];
    assert.deepEqual(readiness.look(), { isReady: true, pending: ["the agent"] });
    state.obstacles = ["a reader"];
    assert.deepEqual(readiness.look(), { isReady: false, pending: ["a reader", "the agent"] });
    state.obstacles = [];
    assert.equal(readiness.look().isReady, true);
  });
});
