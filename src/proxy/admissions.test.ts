import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FakeClock } from "#base/clock";
import { PolicyIndex, type Decision } from "#policy";
import { testPolicy, testQuestion } from "../policy/testing.ts";
import { Admissions } from "./admissions.ts";

const turn = async (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Denies these ports of namespace `shop`. */
function denying(...destinationPorts: number[]) {
  const policy = testPolicy("p", [{ destinationPorts }], { action: "deny" });
  return { upserts: [policy], unusable: [], removes: [] };
}

function rig() {
  const clock = new FakeClock();
  const policies = new PolicyIndex();
  const admissions = new Admissions(policies, clock);
  const ended: string[] = [];
  const enter = (destinationPort: number, policyNames: readonly string[] = []) => {
    const admission = admissions.enter(testQuestion({ destinationPort, policyNames }));
    admission.onDenied = ({ policy }: Decision) => ended.push(`${destinationPort} ${policy}`);
    return admission;
  };
  const change = (...ports: number[]): void => {
    policies.apply(denying(...ports));
    admissions.changed();
  };
  return { clock, policies, admissions, ended, enter, change };
}

describe("a running connection", () => {
  it("ends when a policy comes that denies it, and others go on", async () => {
    const { admissions, ended, enter, change } = rig();
    for (const port of [80, 81, 82]) enter(port);
    change(81);
    assert.deepEqual(ended, [], "the change itself takes no time");
    await turn();
    assert.deepEqual(ended, ["81 shop/p"]);
    assert.equal(admissions.count, 2);
  });

  it("ends when a policy is changed, and when the one that allowed it goes", async () => {
    const { policies, admissions, ended, enter, change } = rig();
    enter(80);
    change(81);
    await turn();
    change(80);
    await turn();
    assert.deepEqual(ended, ["80 shop/p"]);
    policies.apply({ upserts: [], unusable: [], removes: ["shop/p"] });
    const open = testPolicy("open", [], { rules: [[]] });
    policies.apply({ upserts: [open, testPolicy("nothing")], unusable: [], removes: [] });
    enter(82);
    policies.apply({ upserts: [], unusable: [], removes: ["shop/open"] });
    admissions.changed();
    await turn();
    assert.deepEqual(ended, ["80 shop/p", "82 undefined"]);
  });

  it("keeps the list of policies that its pod had when it was accepted", async () => {
    const { policies, admissions, ended, enter } = rig();
    enter(80, ["shop/p"]);
    enter(81);
    policies.apply({ upserts: [testPolicy("p", [], { scope: "workload" })], unusable: [], removes: [] });
    admissions.changed();
    await turn();
    assert.deepEqual(ended, ["80 undefined"], "the one that listed it");
  });

  it("that has ended by itself is not told", async () => {
    const { ended, enter, change } = rig();
    enter(80).leave();
    change(80);
    await turn();
    assert.deepEqual(ended, []);
  });

  it("that is denied while its application is dialled knows it", async () => {
    const { enter, change } = rig();
    const admission = enter(80);
    admission.onDenied = undefined;
    change(80);
    await turn();
    assert.equal(admission.denied?.reason, "denied");
  });
});

describe("ten thousand running connections", () => {
  const many = 10_000;

  it("are judged in slices: other work gets its turn between them", async () => {
    const { ended, enter, change } = rig();
    for (let i = 0; i < many; i++) enter(80);
    change(80);
    let turns = 0;
    let most = 0;
    for (let before = 0; ended.length < many; turns++) {
      await turn();
      most = Math.max(most, ended.length - before);
      before = ended.length;
    }
    assert.ok(most <= 2 * 256, `${most} in one turn`);
    assert.ok(turns >= many / 512, `${turns} turns`);
  });

  it("end in shorter slices when closing takes long", async () => {
    const { clock, admissions, ended } = rig();
    const policies = new PolicyIndex();
    const slow = new Admissions(policies, clock);
    for (let i = 0; i < 100; i++) {
      slow.enter(testQuestion()).onDenied = () => {
        ended.push("");
        void clock.advance(1); // one millisecond for each
      };
    }
    policies.apply(denying(8080));
    slow.changed();
    await turn();
    assert.ok(ended.length > 0 && ended.length <= 32, `${ended.length} in one slice`);
    while (slow.count > 0) await turn();
    assert.equal(ended.length, 100);
    assert.equal(admissions.count, 0);
  });

  it("are all judged by the newest policies, however often these change meanwhile", async () => {
    const { ended, enter, change } = rig();
    for (let i = 0; i < many; i++) enter(i % 2 === 0 ? 80 : 81);
    change(82);
    for (let i = 0; i < 5; i++) {
      await turn();
      change(82 + i);
    }
    change(80);
    for (let i = 0; i < 200; i++) await turn();
    assert.equal(ended.length, many / 2);
    assert.ok(ended.every((line) => line === "80 shop/p"));
  });
});
