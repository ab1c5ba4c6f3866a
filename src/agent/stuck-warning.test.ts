import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import type { Event } from "#kube";
import { podFacts } from "./pod-facts.ts";
import { stuckWarning } from "./stuck-warning.ts";

test("a pod that cannot be enrolled is marked with the reason, what to do, and that a restart helps", () => {
  const events: Event[] = [];
  const create = async (_: unknown, event: unknown): Promise<never> => {
    events.push(event as Event); // what the code under test wrote
    throw new Error("the api is away");
  };
  const warn = stuckWarning({ client: { create }, node: "node1", clock: new FakeClock(0), log: silentLog() });
  const pod = podFacts({ metadata: { uid: "u1", name: "cart-1", namespace: "shop" } });
  warn(pod, new CodedError("ENROLMENT_NO_NETNS", "the pod's network namespace cannot be found"));
  const [event] = events;
  assert.deepEqual(event?.metadata, { name: "veil-stuck.u1.enrolment-no-netns", namespace: "shop" });
  assert.deepEqual([event.type, event.reason, event.involvedObject.uid], ["Warning", "VeilNotEnrolled", "u1"]);
  assert.match(event.message ?? "", /cannot be found; .*--pod-netns-dir.*\(ENROLMENT_NO_NETNS\).*started anew/);
});
