import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import { uninstall } from "#cni";
import type { Event } from "#kube";
import { chainWarning } from "./chain-warning.ts";

test("a node whose CNI configuration cannot be used is marked with the reason, and what to do", async () => {
  const events: Event[] = [];
  const create = async (_: unknown, event: unknown): Promise<never> => {
    events.push(event as Event); // what the code under test wrote
    throw new Error("the api is away");
  };
  // As on a node where it was not possible.
  const failure = await uninstall({ confDir: "/proc/version", binDir: "/proc", credentials: undefined }).catch(
    (error: unknown) => error,
  );
  const warn = chainWarning({ client: { create }, node: "node1", clock: new FakeClock(0), log: silentLog() });
  warn("CNI_FOLDER", failure);
  const [event] = events;
  assert.deepEqual(event?.metadata, { name: "veil-cni.node1.cni-folder", namespace: "default" });
  assert.deepEqual(event.involvedObject, { apiVersion: "v1", kind: "Node", name: "node1", uid: "node1" });
  assert.deepEqual([event.type, event.reason], ["Warning", "VeilCniNotChained"]);
  assert.match(event.message ?? "", /cannot work in \/proc\/version: .*; check .*not read-only \(CNI_FOLDER\)/);
});
