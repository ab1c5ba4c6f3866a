import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { nftRedirector, REDIRECTION_TABLE } from "#enrolment";
import { runNft } from "#linux";
import { firstLine, TestWorld, type TestPod } from "./enrolment-world.ts";

const CAPTURE = { inbound: true };
let world: TestWorld;

interface LoadResult {
  readonly long: { readonly opened: number; readonly alive: number; readonly bytes: number };
  readonly short: { readonly tried: number; readonly done: number };
  readonly failures: Readonly<Record<string, number>>;
  readonly corrupt: number;
}

/** A load from one pod to another; `stop` ends it and tells what happened. */
function load(from: TestPod, to: TestPod, ...args: string[]): { stop(): Promise<LoadResult> } {
  const path = fileURLToPath(new URL("load.ts", import.meta.url));
  const child = world.spawn(from, process.execPath, path, "client", "--target", `${to.ip}:9000`, ...args);
  const line = firstLine(child);
  return {
    stop: async () => {
      child.kill("SIGTERM");
      return JSON.parse(await line) as LoadResult; // the load's own format
    },
  };
}

/** What the proxy of a pod has passed on so far. */
async function counts(proxy: ChildProcess): Promise<{ outbound: number; inbound: number; failed: number }> {
  const line = firstLine(proxy);
  proxy.kill("SIGUSR2");
  return JSON.parse(await line) as { outbound: number; inbound: number; failed: number }; // the test proxy's own format
}

async function stop(child: ChildProcess): Promise<void> {
  child.kill("SIGKILL");
  await once(child, "exit");
}

before(async () => {
  world = new TestWorld("enr");
  await world.program(world.pods.b1, "load.ts", "server");
  await world.program(world.pods.a2, "load.ts", "server");
});
after(() => world[Symbol.dispose]());

test("a connection that is open already survives the label, on both ends", async () => {
  const { a1, b1 } = world.pods;
  const proxies = [await world.program(a1, "enrolment-proxy.ts"), await world.program(b1, "enrolment-proxy.ts")];
  const before = load(a1, b1, "--long", "5");
  await delay(500);
  for (const pod of [a1, b1]) await nftRedirector.install(pod.netns, CAPTURE);
  await delay(500);
  const result = await before.stop();
  assert.deepEqual(result.failures, {});
  assert.equal(result.long.alive, 5);
  for (const proxy of proxies) assert.deepEqual(await counts(proxy), { outbound: 0, inbound: 0, failed: 0 });
  for (const pod of [a1, b1]) await nftRedirector.remove(pod.netns);
  for (const proxy of proxies) await stop(proxy);
});

test("twin: a plain redirect of every packet resets it", async () => {
  const { a1, b1 } = world.pods;
  const proxy = await world.program(a1, "enrolment-proxy.ts");
  const open = load(a1, b1, "--long", "5");
  await delay(500);
  await runNft(
    "table inet vt { chain o { type nat hook output priority -100; meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001; }; }",
    { netns: a1.netns },
  );
  await delay(500);
  const result = await open.stop();
  await runNft("delete table inet vt", { netns: a1.netns });
  await stop(proxy);
  assert.ok((result.failures["long:ECONNRESET"] ?? 0) > 0, JSON.stringify(result.failures));
});

test("new connections go through the proxies of both ends, on one node and across nodes", async () => {
  for (const [from, to] of [
    [world.pods.a1, world.pods.b1],
    [world.pods.a1, world.pods.a2],
  ] as const) {
    const proxies = [await world.program(from, "enrolment-proxy.ts"), await world.program(to, "enrolment-proxy.ts")];
    for (const pod of [from, to]) await nftRedirector.install(pod.netns, CAPTURE);
    const running = load(from, to, "--rate", "50");
    await delay(1000);
    const result = await running.stop();
    assert.deepEqual(result.failures, {});
    assert.ok(result.short.done > 20);
    const [client, server] = [await counts(proxies[0] as ChildProcess), await counts(proxies[1] as ChildProcess)];
    assert.ok(client.outbound >= result.short.done && client.inbound === 0, JSON.stringify(client));
    assert.ok(server.inbound >= result.short.done && server.outbound === 0, JSON.stringify(server));
    for (const pod of [from, to]) await nftRedirector.remove(pod.netns);
    for (const proxy of proxies) await stop(proxy);
  }
});

test("redirected connections go on when capturing stops, new ones go their own way, and the count finds the end", async () => {
  const { a1, b1 } = world.pods;
  const proxies = [await world.program(a1, "enrolment-proxy.ts"), await world.program(b1, "enrolment-proxy.ts")];
  for (const pod of [a1, b1]) await nftRedirector.install(pod.netns, CAPTURE);
  assert.equal(await nftRedirector.read(a1.netns), "capturing");
  const open = load(a1, b1, "--long", "5");
  await delay(500);
  for (const pod of [a1, b1]) await nftRedirector.keep(pod.netns);
  assert.equal(await nftRedirector.read(a1.netns), "kept");
  assert.deepEqual(
    [a1, b1].map((pod) => nftRedirector.countRedirected(pod.netns)),
    [5, 5],
  );
  const fresh = load(a1, b1, "--rate", "50");
  await delay(700);
  const [freshResult, openResult] = [await fresh.stop(), await open.stop()];
  assert.deepEqual([freshResult.failures, openResult.failures], [{}, {}]);
  assert.ok(freshResult.short.done > 20);
  assert.equal(openResult.long.alive, 5);
  assert.equal((await counts(proxies[0] as ChildProcess)).outbound, 5);
  await delay(200);
  assert.deepEqual(
    [a1, b1].map((pod) => nftRedirector.countRedirected(pod.netns)),
    [0, 0],
  );
  for (const pod of [a1, b1]) await nftRedirector.remove(pod.netns);
  assert.equal(await nftRedirector.read(a1.netns), "absent");
  assert.equal(world.exec(a1, "nft", "list", "ruleset"), "");
  assert.ok(!world.exec(a1, "ip", "rule").includes("0x111"));
  for (const proxy of proxies) await stop(proxy);
});

test("twin: taking the whole table away breaks them", async () => {
  const { a1, b1 } = world.pods;
  const proxy = await world.program(a1, "enrolment-proxy.ts");
  await nftRedirector.install(a1.netns, CAPTURE);
  const open = load(a1, b1, "--long", "5");
  await delay(500);
  await runNft(`delete table ${REDIRECTION_TABLE}`, { netns: a1.netns });
  await delay(700);
  const result = await open.stop();
  await nftRedirector.remove(a1.netns);
  await stop(proxy);
  assert.ok((result.failures["long:ECONNRESET"] ?? 0) > 0, JSON.stringify(result.failures));
});

test("ten flips of both ends under load reset nothing and lose no byte", { timeout: 60_000 }, async (context) => {
  const { a1, a2, b1 } = world.pods;
  const pods = [a1, a2, b1];
  const proxies = await Promise.all(pods.map(async (pod) => world.program(pod, "enrolment-proxy.ts")));
  const loads = [load(a1, b1, "--long", "20", "--rate", "100"), load(a1, a2, "--long", "20", "--rate", "100")];
  await delay(700);
  const tookMs: number[] = [];
  for (let flip = 0; flip < 10; flip++) {
    for (const pod of pods) {
      const startMs = performance.now();
      await nftRedirector.install(pod.netns, CAPTURE);
      tookMs.push(performance.now() - startMs);
    }
    await delay(300);
    for (const pod of pods) await nftRedirector.keep(pod.netns);
    await delay(300);
    const mayGo = pods.every((pod) => nftRedirector.countRedirected(pod.netns) === 0);
    if (mayGo) for (const pod of pods) await nftRedirector.remove(pod.netns);
  }
  const results = await Promise.all(loads.map(async (running) => running.stop()));
  const passed = await Promise.all(proxies.map(counts));
  for (const proxy of proxies) await stop(proxy);
  for (const pod of pods) await nftRedirector.remove(pod.netns);
  for (const result of results) {
    assert.deepEqual(result.failures, {});
    assert.equal(result.corrupt, 0);
    assert.equal(result.long.alive, 20);
    assert.ok(result.short.done > 300, JSON.stringify(result.short));
  }
  assert.ok(
    passed.every(({ outbound, inbound, failed }) => outbound + inbound > 100 && failed === 0),
    JSON.stringify(passed),
  );
  const median = tookMs.toSorted((a, b) => a - b)[tookMs.length / 2] ?? 0;
  context.diagnostic(
    `redirection of a pod installed in ${median.toFixed(1)} ms (median of ${tookMs.length}, under load)`,
  );
});
