import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { silentLog } from "#base/log";
import type { Authorization } from "#model/authorization";
import type { PolicyChange } from "#policy";
import { encodeAuthorization } from "#proto";
import { TYPE_AUTHORIZATION } from "#xds";
import { testPolicy, testQuestion } from "../policy/testing.ts";
import { Policies } from "./policies.ts";

function resource(policy: Authorization, more: { name?: string; value?: Uint8Array } = {}) {
  const name = `${policy.namespace}/${policy.name}`;
  return { typeUrl: TYPE_AUTHORIZATION, version: "1", aliases: [], name, value: encodeAuthorization(policy), ...more };
}

describe("policies of the control plane", () => {
  const rig = () => {
    const spread: PolicyChange[] = [];
    const log = silentLog();
    const policies = new Policies({ spread: async (change) => void spread.push(change), log });
    const take = async (...upserts: ReturnType<typeof resource>[]) => {
      const rejections = await policies.take({ typeUrl: TYPE_AUTHORIZATION, upserts, removes: [] });
      return rejections.map(({ name }) => name);
    };
    return { policies, spread, take };
  };

  it("are in force everywhere before they are acknowledged, and gone when they are removed", async () => {
    const { policies, spread, take } = rig();
    const policy = testPolicy("p");
    assert.deepEqual(await take(resource(policy)), []);
    assert.deepEqual(spread, [{ upserts: [policy], unusable: [], removes: [] }]);
    assert.equal(policies.index.decide(testQuestion()).allowed, false);
    await policies.take({ typeUrl: TYPE_AUTHORIZATION, upserts: [], removes: ["shop/p"] });
    assert.deepEqual(spread[1]?.removes, ["shop/p"]);
    assert.equal(policies.index.decide(testQuestion()).allowed, true);
  });

  it("that are not understood are refused by name, and what they may apply to lets nothing in", async () => {
    const { policies, spread, take } = rig();
    const good = testPolicy("good", [], { rules: [[]] });
    const odd = resource(testPolicy("odd"), { name: "shop/misnamed" });
    assert.deepEqual(await take(resource(good), odd), ["shop/misnamed"]);
    assert.deepEqual(spread[0]?.unusable, [{ name: "shop/misnamed", namespace: "shop", scope: "namespace" }]);
    assert.equal(policies.index.decide(testQuestion()).reason, "unusable");
    assert.equal(policies.index.decide(testQuestion({ namespace: "other" })).allowed, true);
    assert.deepEqual(await take(resource(good, { name: "x/broken", value: Uint8Array.of(0xff) })), ["x/broken"]);
    assert.equal(policies.index.decide(testQuestion({ namespace: "other" })).allowed, false, "it may be of everybody");
  });

  it("in dry run that are not understood are refused by name, and change nothing", async () => {
    const { policies, take } = rig();
    assert.deepEqual(await take(resource(testPolicy("p", [], { dryRun: true }), { name: "shop/x" })), ["shop/x"]);
    assert.equal(policies.index.decide(testQuestion()).allowed, true);
  });
});
