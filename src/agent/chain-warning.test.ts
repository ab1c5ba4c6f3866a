import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import type { Event } from "#kube";
import { chainWarning } from "./chain-warning.ts";

test("a node whose CNI configuration cannot be used is marked with the reason", () => {
  const events: Event[] = [];
  const create = async (_: unknown, event: unknown): Promise<never> => {
    events.push(event as Event); // what the code under test wrote
    throw new Error("the api is away");
  };
  const warn = chainWarning({ client: { create }, node: "node1", clock: new FakeClock(0), log: silentLog() });
  warn({ code: "CNI_CONFIG_INVALID", reason: "/etc/cni/net.d/10-net.conflist is no JSON" });
  const [event] = events;
  assert.deepEqual(event?.metadata, { name: "veil-cni.node1.cni-config-invalid", namespace: "default" });
  assert.deepEqual(event.involvedObject, { apiVersion: "v1", kind: "Node", name: "node1", uid: "node1" });
  assert.deepEqual([event.type, event.reason], ["Warning", "VeilCniNotChained"]);
  assert.match(event.message ?? "", /10-net\.conflist is no JSON \(CNI_CONFIG_INVALID\)/);
});
