import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { systemClock, type Clock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { KubeClient } from "./client.ts";
import { resources } from "./resources.ts";
import { FakeApi } from "./testing.ts";

const PODS = "/api/v1/namespaces/shop/pods";
let api: FakeApi;
let client: KubeClient;

before(async () => {
  api = await FakeApi.start();
  client = new KubeClient({ config: api.config, log: silentLog(), clock: systemClock(), random: seededRandom(1) });
});
after(async () => {
  client.close();
  await api.stop();
});

test("an object is created, read, changed and deleted", async () => {
  const metadata = { name: "a", namespace: "shop", labels: { app: "a" } };
  const created = await client.create(resources.pods, { metadata });
  assert.equal(created.kind, "Pod");
  await assert.rejects(client.create(resources.pods, { metadata }), { code: "KUBE_ALREADY_EXISTS" });
  const read = await client.get(resources.pods, "a", "shop");
  assert.equal(read.metadata?.labels?.["app"], "a");
  const patched = await client.patch(
    resources.pods,
    { name: "a", namespace: "shop" },
    { type: "merge", body: { metadata: { labels: { app: null, tier: "front" } } } },
  );
  assert.deepEqual(patched.metadata?.labels, { tier: "front" });
  await assert.rejects(client.replace(resources.pods, read), { code: "KUBE_CONFLICT" });
  await client.delete(resources.pods, { name: "a", namespace: "shop" });
  await assert.rejects(client.get(resources.pods, "a", "shop"), { code: "KUBE_NOT_FOUND" });
  assert.equal(await client.find(resources.pods, { name: "a", namespace: "shop" }), undefined);
});

test("a list is read page by page and its items know their kind", async () => {
  for (let i = 0; i < 7; i++) api.put(PODS, { metadata: { name: `p${i}`, namespace: "shop" } });
  const { items, resourceVersion } = await client.list(resources.pods, { limit: 3 });
  assert.deepEqual(
    items.map((pod) => pod.metadata?.name),
    ["p0", "p1", "p2", "p3", "p4", "p5", "p6"],
  );
  assert.ok(items.every((pod) => pod.kind === "Pod" && pod.apiVersion === "v1"));
  assert.notEqual(resourceVersion, "");
  for (let i = 0; i < 7; i++) api.remove(`${PODS}/p${i}`);
});

test("a kept connection that the server has closed is no failure", async () => {
  await client.list(resources.pods);
  await api.restart();
  await client.list(resources.pods);
});

test("an API that is away, or is none, is told by code", async () => {
  await api.stop();
  await assert.rejects(client.list(resources.pods), { code: "KUBE_UNAVAILABLE" });
  await api.listen();
  api.intercept = (_request, response) => {
    response.end("<html>hello</html>");
    return true;
  };
  await assert.rejects(client.list(resources.pods), { code: "KUBE_PROTOCOL" });
  api.intercept = (_request, response) => {
    response.writeHead(502);
    response.end("bad gateway");
    return true;
  };
  await assert.rejects(client.list(resources.pods), { code: "KUBE_SERVER", message: /bad gateway/ });
  api.intercept = () => true;
  await assert.rejects(client.request({ method: "GET", path: "/version", timeoutMs: 20 }), { code: "KUBE_TIMEOUT" });
  const reason = new Error("enough");
  await assert.rejects(client.list(resources.pods, { signal: AbortSignal.abort(reason) }), reason);
  api.intercept = undefined;
});

test("a request that the API wants later is sent again when it says, and a little later by chance", async () => {
  const waits: number[] = [];
  const clock: Clock = {
    ...systemClock(),
    after: (ms, work) => {
      if (ms < 30_000) waits.push(ms); // the deadlines of requests
      return systemClock().after(ms < 30_000 ? 0 : ms, work);
    },
  };
  let refusals = 3;
  let seconds = "2";
  api.intercept = (_request, response) => {
    if (refusals-- <= 0) return false;
    response.writeHead(refusals === 0 ? 503 : 429, { "retry-after": seconds });
    response.end("too many");
    return true;
  };
  const throttled = new KubeClient({ config: api.config, log: silentLog(), clock, random: seededRandom(5) });
  await throttled.create(resources.pods, { metadata: { name: "later", namespace: "shop" } });
  api.remove(`${PODS}/later`);
  assert.equal(waits.length, 3);
  assert.ok(waits.every((ms) => ms >= 2_000 && ms < 3_000));
  assert.equal(new Set(waits).size, 3, "not all at once");
  for (const wrong of ["", "31", "soon"]) {
    [refusals, seconds] = [1, wrong];
    await assert.rejects(throttled.list(resources.pods), { code: "KUBE_UNAVAILABLE", message: /too many/ });
  }
  [refusals, seconds] = [99, "1"];
  await assert.rejects(throttled.list(resources.pods), { code: "KUBE_TOO_MANY_REQUESTS" });
  assert.equal(refusals, 99 - 11);
  api.intercept = undefined;
  throttled.close();
});

test("another server's certificate is refused", async () => {
  const other = await FakeApi.start();
  const config = { ...api.config, server: other.config.server };
  const stranger = new KubeClient({ config, log: silentLog(), clock: systemClock(), random: seededRandom(1) });
  await assert.rejects(stranger.list(resources.pods), { code: "KUBE_TLS" });
  stranger.close();
  await other.stop();
});

test("names cannot leave their place in the path", async () => {
  await assert.rejects(client.get(resources.pods, "../../secrets/x", "shop"), { code: "KUBE_NOT_FOUND" });
  assert.equal(api.requests.at(-1), "GET /api/v1/namespaces/shop/pods/..%2F..%2Fsecrets%2Fx");
});

test("what a token review leaves out reads as not authenticated", async () => {
  api.intercept = (_request, response) => {
    response.end(JSON.stringify({ status: { authenticated: "yes", user: { username: 7, groups: [1, "g"] } } }));
    return true;
  };
  const verdict = await client.reviewToken("t", ["istio-ca"]);
  assert.deepEqual(verdict, {
    authenticated: false,
    username: "",
    uid: "",
    groups: ["g"],
    extra: {},
    audiences: [],
    error: "",
  });
  await assert.rejects(client.createToken("shop", "default", {}), { code: "KUBE_PROTOCOL" });
  api.intercept = undefined;
});
