import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { KubeClient } from "./client.ts";
import { gatewayResources } from "./gateway-api.ts";
import { Informer } from "./informer.ts";
import { resources, type Pod } from "./resources.ts";
import { FakeApi } from "./testing.ts";

const PODS = "/api/v1/namespaces/shop/pods";
const clock = systemClock();

async function setUp(t: TestContext): Promise<{ api: FakeApi; informer: Informer<Pod>; seen: string[] }> {
  const api = await FakeApi.start();
  const log = silentLog();
  const random = seededRandom(1);
  const client = new KubeClient({ config: api.config, log, clock, random });
  const informer = new Informer({ client, ref: resources.pods, log, clock, random });
  const seen: string[] = [];
  informer.on({
    upserted: (pod, old) => seen.push(`${old === undefined ? "add" : "change"} ${pod.metadata?.name ?? ""}`),
    deleted: (pod) => seen.push(`delete ${pod.metadata?.name ?? ""}`),
    synced: () => seen.push("synced"),
  });
  t.after(async () => {
    await informer.drain(0);
    client.close();
    await api.stop();
  });
  return { api, informer, seen };
}

async function until(condition: () => boolean): Promise<void> {
  const endMs = clock.monotonic() + 60_000;
  while (!condition()) {
    assert.ok(clock.monotonic() < endMs, "nothing happened in a minute");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("an informer lists, then follows", async (t) => {
  const { api, informer, seen } = await setUp(t);
  api.put(PODS, { metadata: { name: "a", namespace: "shop", managedFields: [{}] } });
  await informer.start(new AbortController().signal);
  assert.deepEqual(seen, ["add a", "synced"]);
  assert.equal(informer.get("a", "shop")?.metadata?.name, "a");
  assert.ok(!JSON.stringify(informer.list()).includes("managedFields"));
  api.put(PODS, { metadata: { name: "b", namespace: "shop" } });
  api.put(PODS, { metadata: { name: "a", namespace: "shop", labels: { x: "1" } } });
  api.remove(`${PODS}/b`);
  await until(() => seen.length === 5);
  assert.deepEqual(seen.slice(2), ["add b", "change a", "delete b"]);
});

test("a late listener is told what is known", async (t) => {
  const { api, informer } = await setUp(t);
  api.put(PODS, { metadata: { name: "a", namespace: "shop" } });
  await informer.start(new AbortController().signal);
  const late: string[] = [];
  informer.on({ upserted: (pod) => late.push(pod.metadata?.name ?? ""), synced: () => late.push("synced") });
  assert.deepEqual(late, ["a", "synced"]);
});

test("a restart of the API loses no event, and the copy stays meanwhile", async (t) => {
  const { api, informer, seen } = await setUp(t);
  api.put(PODS, { metadata: { name: "a", namespace: "shop" } });
  await informer.start(new AbortController().signal);
  await until(() => informer.connected);
  await api.stop();
  await until(() => !informer.connected);
  assert.equal(informer.list().length, 1);
  api.put(PODS, { metadata: { name: "b", namespace: "shop" } });
  await api.listen();
  await until(() => informer.get("b", "shop") !== undefined);
  assert.deepEqual(seen, ["add a", "synced", "add b"]);
});

test("a watch that is too old becomes a list, and what was missed is told as events", async (t) => {
  const { api, informer, seen } = await setUp(t);
  api.put(PODS, { metadata: { name: "a", namespace: "shop" } });
  api.put(PODS, { metadata: { name: "b", namespace: "shop" } });
  api.put(PODS, { metadata: { name: "c", namespace: "shop", uid: "first" } });
  await informer.start(new AbortController().signal);
  await api.stop();
  api.remove(`${PODS}/a`);
  api.put(PODS, { metadata: { name: "b", namespace: "shop", labels: { x: "1" } } });
  api.remove(`${PODS}/c`);
  api.put(PODS, { metadata: { name: "c", namespace: "shop", uid: "second" } });
  api.compact();
  await api.listen();
  await until(() => seen.filter((word) => word === "synced").length === 2);
  assert.deepEqual(seen.slice(4), ["change b", "delete c", "add c", "delete a", "synced"]);
});

test("an API that is away at the start is waited for, and waiting ends with the signal", async (t) => {
  const { api, informer } = await setUp(t);
  await api.stop();
  const controller = new AbortController();
  const started = informer.start(controller.signal);
  assert.equal(await Promise.race([started, new Promise((resolve) => setTimeout(resolve, 150, "waiting"))]), "waiting");
  controller.abort(new Error("enough"));
  await assert.rejects(started, /enough/);
});

test("an API that ends every watch at once is not asked without pause", async (t) => {
  const { api, informer } = await setUp(t);
  api.intercept = (request, response) => {
    if (request.url?.includes("watch") !== true) return false;
    response.end();
    return true;
  };
  await informer.start(new AbortController().signal);
  await new Promise((resolve) => setTimeout(resolve, 400));
  assert.ok(api.requests.length < 8, `${api.requests.length} requests in 400 ms`);
});

test("a kind that the cluster may lack has no objects until it is there, and none again when it goes", async (t) => {
  const api = await FakeApi.start();
  const log = silentLog();
  const random = seededRandom(1);
  const client = new KubeClient({ config: api.config, log, clock, random });
  const timers: (() => void)[] = [];
  // Only the waits of this informer: they end when the test says so.
  const turned = { ...clock, after: (_ms: number, callback: () => void) => (timers.push(callback), () => {}) };
  const ref = gatewayResources.gateways;
  const informer = new Informer({ client, ref, log, clock: turned, random, relistAfterFailure: true, optional: true });
  const changes: string[] = [];
  informer.on({
    upserted: ({ metadata }) => changes.push(`add ${metadata?.name}`),
    deleted: ({ metadata }) => changes.push(`delete ${metadata?.name}`),
  });
  t.after(async () => {
    await informer.drain(0);
    client.close();
    await api.stop();
  });
  const missing = (
    request: { url?: string | undefined },
    response: { writeHead: (code: number) => unknown; end: (text: string) => unknown },
  ): boolean => {
    if (request.url?.includes("/gateways") !== true) return false;
    response.writeHead(404);
    response.end('{"kind":"Status","reason":"NotFound","code":404}');
    return true;
  };
  api.intercept = missing;
  await informer.start(new AbortController().signal);
  assert.ok(informer.synced && informer.connected, "nothing is all there is");
  api.put("/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways", {
    metadata: { name: "waypoint", namespace: "shop" },
  });
  api.intercept = undefined;
  await until(() => {
    timers.splice(0).forEach((callback) => callback());
    return changes.length === 1;
  });
  api.intercept = missing;
  api.compact();
  await until(() => {
    timers.splice(0).forEach((callback) => callback());
    return changes.length === 2;
  });
  assert.deepEqual(changes, ["add waypoint", "delete waypoint"]);
});
