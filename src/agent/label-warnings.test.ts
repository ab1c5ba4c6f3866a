import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import type { Event } from "#kube";
import { LabelWarnings } from "./label-warnings.ts";

function warnings(): { look: LabelWarnings["look"]; events: Event[] } {
  const events: Event[] = [];
  const create = async (_: unknown, event: unknown): Promise<never> => {
    events.push(event as Event); // what the code under test wrote
    throw new Error("another agent was first");
  };
  const made = new LabelWarnings({
    client: { create },
    node: "node1",
    clock: new FakeClock(0),
    log: silentLog(),
  });
  return { look: made.look.bind(made), events };
}

test("a label with a value that means nothing is told once, on the object, with the values that mean something", () => {
  const { look, events } = warnings();
  const namespace = { name: "shop", uid: "u1", labels: { "io.cilium/mtls-enabled": "yes" } };
  look("Namespace", namespace);
  look("Namespace", { ...namespace, resourceVersion: "2" });
  look("Pod", { name: "p", namespace: "shop", uid: "u2", labels: { "istio.io/dataplane-mode": "ambiant" } });
  assert.deepEqual(
    events.map(({ involvedObject, message, metadata }) => [involvedObject.kind, metadata.namespace, message]),
    [
      ["Namespace", "default", "label io.cilium/mtls-enabled=yes (it can be true or false) does not enrol anything"],
      ["Pod", "shop", "label istio.io/dataplane-mode=ambiant (it can be ambient or none) does not enrol anything"],
    ],
  );
});

test("labels that mean something, and objects without any, are not warned about", () => {
  const { look, events } = warnings();
  look("Namespace", {
    name: "a",
    uid: "u",
    labels: { "io.cilium/mtls-enabled": "false", "istio.io/dataplane-mode": "none" },
  });
  look("Pod", { name: "b", uid: "v" });
  look("Pod", undefined);
  assert.deepEqual(events, []);
});
