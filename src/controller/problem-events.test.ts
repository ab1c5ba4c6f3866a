import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeClock } from "#base/clock";
import { silentLog } from "#base/log";
import type { KubeClient, KubeObject } from "#kube";
import { ProblemEvents } from "./problem-events.ts";

const about = {
  apiVersion: "networking.istio.io/v1",
  kind: "ServiceEntry",
  metadata: { name: "api", namespace: "shop", uid: "u1" },
};
const problem = {
  object: "ServiceEntry shop/api",
  field: "spec.ports[0].protocol",
  message: "UDP is not carried",
  about,
};

test("a problem is told on its object, once, whatever the API answers", async () => {
  const written: KubeObject[] = [];
  let fails = false;
  const create = async (_ref: unknown, object: KubeObject): Promise<KubeObject> => {
    written.push(object);
    if (fails) throw new Error("it is there already");
    return object;
  };
  const client = { create } as unknown as Pick<KubeClient, "create">;
  const events = new ProblemEvents({ client, clock: new FakeClock(), log: silentLog() });
  events.take([problem, { object: "Pod shop/cart", field: "status", message: "not ours to tell" }]);
  events.take([problem]);
  assert.equal(written.length, 1);
  const [event] = written;
  assert.equal(event?.metadata?.namespace, "shop");
  assert.equal(Reflect.get(event ?? {}, "message"), "spec.ports[0].protocol: UDP is not carried");
  assert.deepEqual(Reflect.get(event ?? {}, "involvedObject"), {
    apiVersion: about.apiVersion,
    kind: about.kind,
    ...about.metadata,
  });
  fails = true;
  events.take([{ ...problem, message: "another" }]);
  await new Promise((done) => void setImmediate(done));
  assert.equal(written.length, 2);
});
