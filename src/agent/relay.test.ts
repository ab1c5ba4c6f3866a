import assert from "node:assert/strict";
import { test } from "node:test";
import { createRouterTransport } from "@connectrpc/connect";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { seededRandom } from "#base/random";
import { ResourceCache, TYPE_ADDRESS, XdsClient, xdsMetrics, XdsServer } from "#xds";
import { createRelay } from "./controller-link.ts";

const [clock, random, log] = [systemClock(), seededRandom(1), silentLog()];

test("a proxy that follows a type more than its agent is told that there is nothing of it, and gets the rest", async () => {
  const cache = new ResourceCache();
  const above = new XdsServer({ cache, log });
  const value = new TextEncoder().encode("a");
  cache.apply({
    typeUrl: TYPE_ADDRESS,
    upserts: [{ typeUrl: TYPE_ADDRESS, name: "a", version: "1", aliases: [], value }],
    removes: [],
  });
  const instance = { ip: "192.0.2.1", pod: "agent", version: "0.1.0" };
  const relay = createRelay(
    { clock, random, log, node: "node1", namespace: "veil-system", instance },
    { transport: createRouterTransport(above.routes), cells: new CellSet(xdsMetrics), onConnected: () => {} },
  );
  const held: string[] = [];
  const proxy = new XdsClient({
    transport: createRouterTransport(relay.server.routes),
    node: { id: "proxy", metadata: {} },
    types: [TYPE_ADDRESS, "type.googleapis.com/veil.later"].map((typeUrl) => ({ typeUrl, mode: "wildcard" })),
    onUpdate: ({ upserts }) => void held.push(...upserts.map(({ name }) => name)),
    clock,
    random,
    log,
  });
  const patience = AbortSignal.timeout(60_000);
  await proxy.start(patience);
  await relay.client.start(patience);
  await proxy.whenWarm(patience);
  assert.deepEqual(held, ["a"]);
  await proxy.drain(1_000);
  await relay.client.drain(1_000);
  for (const server of [relay.server, above]) server.close();
});
