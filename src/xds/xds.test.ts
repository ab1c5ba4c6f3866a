import assert from "node:assert/strict";
import { test } from "node:test";
import { createRouterTransport, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import fc from "fast-check";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { seededRandom } from "#base/random";
import { AggregatedDiscoveryService, type DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from "#proto";
import {
  ResourceCache,
  TYPE_ADDRESS,
  VERSION_KEY,
  XdsClient,
  XdsServer,
  relayUpdates,
  xdsMetrics,
  type CachedResource,
  type ResourceUpdate,
  type XdsClientOptions,
  type XdsServerOptions,
} from "./index.ts";

const clock = systemClock();
const log = silentLog();
const soon = (ms = 60_000): AbortSignal => AbortSignal.timeout(ms);

function resource(name: string, version = "1", aliases: readonly string[] = []): CachedResource {
  return { typeUrl: TYPE_ADDRESS, name, version, aliases, value: new TextEncoder().encode(`${name}@${version}`) };
}

async function until(what: () => boolean, ms = 60_000): Promise<void> {
  const end = performance.now() + ms;
  while (!what()) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${what.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

class Pair implements AsyncDisposable {
  readonly cache = new ResourceCache();
  readonly updates: ResourceUpdate[] = [];
  readonly view = new Map<string, string>();
  readonly server: XdsServer;
  readonly clients: XdsClient[] = [];

  constructor(options: Partial<XdsServerOptions> = {}) {
    this.server = new XdsServer({ cache: this.cache, log, ...options });
  }

  client(node: string, options: Partial<XdsClientOptions> = {}): XdsClient {
    const client = new XdsClient({
      transport: createRouterTransport(this.server.routes),
      node: { id: node, metadata: { NODE_NAME: node } },
      types: [{ typeUrl: TYPE_ADDRESS, mode: "wildcard" }],
      onUpdate: (update) => {
        this.updates.push(update);
        for (const { name, version } of update.upserts) this.view.set(name, version);
        for (const name of update.removes) this.view.delete(name);
      },
      reconnect: { initialMs: 1, maxMs: 5 },
      clock,
      random: seededRandom(1),
      log,
      ...options,
    });
    this.clients.push(client);
    return client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.clients) await client.drain(1000);
    this.server.close();
  }
}

test("a wildcard client gets everything first, then only what changes", async () => {
  await using pair = new Pair();
  pair.cache.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("a"), resource("b")], removes: [] });
  const client = pair.client("n1");
  await client.start(soon());
  await client.whenWarm(soon());
  assert.deepEqual(
    pair.updates.map(({ upserts }) => upserts.map(({ name }) => name)),
    [["a", "b"]],
  );
  assert.equal(client.connected, true);
  pair.cache.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("b", "2"), resource("a", "1")], removes: ["nothing"] });
  await until(() => pair.updates.length === 2);
  assert.deepEqual(
    pair.updates[1]?.upserts.map(({ name, version }) => [name, version]),
    [["b", "2"]],
  );
  assert.equal(new TextDecoder().decode(pair.updates[1]?.upserts[0]?.value), "b@2");
  pair.cache.remove(TYPE_ADDRESS, "a");
  await until(() => pair.updates.length === 3);
  assert.deepEqual(pair.updates[2]?.removes, ["a"]);
});

test("a client of an empty server becomes warm", async () => {
  await using pair = new Pair();
  const client = pair.client("n1");
  await client.start(soon());
  await client.whenWarm(soon());
  assert.equal(client.warm, true);
});

type Handler = (
  requests: AsyncIterable<DeltaDiscoveryRequest>,
  context: HandlerContext,
) => AsyncIterable<DeltaDiscoveryResponse>;

/** Follows one server after another under the same transport, as an address does. */
class Address {
  server: XdsServer;
  readonly transport;
  constructor(server: XdsServer) {
    this.server = server;
    this.transport = createRouterTransport((router) => {
      router.service(AggregatedDiscoveryService, {
        deltaAggregatedResources: (requests, context) => this.#handler()(requests, context),
      });
    });
  }

  #handler(): Handler {
    let handler: Handler | undefined;
    this.server.routes({
      service: (_: unknown, implementation: { deltaAggregatedResources: Handler }) => {
        handler = implementation.deltaAggregatedResources;
      },
    } as unknown as ConnectRouter); // takes the one handler that it registers
    assert.ok(handler);
    return handler;
  }
}

test("after a break only the differences come, and what vanished meanwhile is removed", async () => {
  await using pair = new Pair();
  pair.cache.apply({
    typeUrl: TYPE_ADDRESS,
    upserts: [resource("same"), resource("old"), resource("gone")],
    removes: [],
  });
  const address = new Address(pair.server);
  const client = pair.client("n1", { transport: address.transport });
  await client.start(soon());
  await client.whenWarm(soon());
  pair.updates.length = 0;
  pair.server.close();
  await until(() => !client.connected);
  pair.cache.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("old", "2"), resource("new")], removes: ["gone"] });
  const second = new XdsServer({ cache: pair.cache, log });
  address.server = second;
  await until(() => client.connected);
  await until(() => pair.updates.length > 0);
  assert.deepEqual(pair.updates[0]?.upserts.map(({ name }) => name).toSorted(), ["new", "old"]);
  assert.deepEqual(pair.updates[0]?.removes, ["gone"]);
  assert.deepEqual([...pair.view.keys()].toSorted(), ["new", "old", "same"]);
  second.close();
});

test("a server that is not ready says nothing, and the client's view stays as it was", async () => {
  await using pair = new Pair();
  pair.cache.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("a"), resource("b")], removes: [] });
  const address = new Address(pair.server);
  const client = pair.client("n1", { transport: address.transport });
  await client.start(soon());
  await client.whenWarm(soon());
  pair.server.close();
  let ready = false;
  const cold = new ResourceCache();
  const second = new XdsServer({ cache: cold, log, ready: () => ready, mayDeny: () => ready });
  address.server = second;
  await until(() => second.nodes.length === 1);
  const asked = client.find(TYPE_ADDRESS, "b", soon());
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(client.connected, false);
  assert.equal(pair.view.size, 2, "nothing was removed by a server that knows nothing");
  cold.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("a")], removes: [] });
  ready = true;
  second.recheck();
  assert.equal(await asked, undefined);
  assert.deepEqual([...pair.view.keys()], ["a"]);
  second.close();
});

test("a question is answered by name or alias, present or absent, and overlapping ones share an answer", async () => {
  await using pair = new Pair();
  pair.cache.set(resource("cluster//Pod/shop/cart", "1", ["/10.0.0.1"]));
  const client = pair.client("n1", { types: [{ typeUrl: TYPE_ADDRESS, mode: "on-demand" }] });
  await client.start(soon());
  const found = await Promise.all([
    client.find(TYPE_ADDRESS, "/10.0.0.1", soon()),
    client.find(TYPE_ADDRESS, "/10.0.0.1", soon()),
    client.find(TYPE_ADDRESS, "cluster//Pod/shop/cart", soon()),
  ]);
  assert.deepEqual(
    found.map((each) => each?.name),
    Array(3).fill("cluster//Pod/shop/cart"),
  );
  assert.equal(pair.view.get("cluster//Pod/shop/cart"), "1", "it was taken before the question was answered");
  assert.equal(await client.find(TYPE_ADDRESS, "/10.0.0.9", soon()), undefined);
  pair.cache.set(resource("unrelated"));
  pair.cache.set(resource("cluster//Pod/shop/cart", "2", ["/10.0.0.1"]));
  await until(() => pair.view.get("cluster//Pod/shop/cart") === "2");
  assert.equal(pair.view.has("unrelated"), false, "an on-demand client hears only of what it asked for");
  pair.cache.remove(TYPE_ADDRESS, "cluster//Pod/shop/cart");
  await until(() => pair.view.size === 0);
  await assert.rejects(client.find("type.googleapis.com/other", "x", soon()), { code: "XDS_UNKNOWN_TYPE" });
});

test("a wildcard client may ask, too, and a question answers even when nothing changed", async () => {
  await using pair = new Pair();
  pair.cache.set(resource("a", "1", ["/10.0.0.1"]));
  const client = pair.client("n1");
  await client.start(soon());
  await client.whenWarm(soon());
  for (let round = 0; round < 3; round++) {
    assert.equal((await client.find(TYPE_ADDRESS, "/10.0.0.1", soon()))?.name, "a");
    assert.equal(await client.find(TYPE_ADDRESS, "/10.0.0.2", soon()), undefined);
  }
  pair.cache.set(resource("b", "1", ["/10.0.0.2"]));
  assert.equal((await client.find(TYPE_ADDRESS, "/10.0.0.2", soon()))?.name, "b");
  for (const { removes } of pair.updates) assert.deepEqual(removes, [], "what was never held is not removed");
});

test("absence is not told while it cannot be known; the question is answered when it can", async () => {
  let mayDeny = false;
  await using pair = new Pair({ mayDeny: () => mayDeny });
  const client = pair.client("n1");
  await client.start(soon());
  await client.whenWarm(soon());
  await assert.rejects(client.find(TYPE_ADDRESS, "x", AbortSignal.timeout(30)), { code: "XDS_NO_ANSWER" });
  const later = client.find(TYPE_ADDRESS, "y", soon());
  const appears = client.find(TYPE_ADDRESS, "/10.0.0.3", soon());
  pair.cache.set(resource("z", "1", ["/10.0.0.3"]));
  assert.equal((await appears)?.name, "z");
  mayDeny = true;
  pair.server.recheck();
  assert.equal(await later, undefined);
});

test("nobody there: the question waits for the caller's deadline and is then refused, never answered", async () => {
  await using pair = new Pair();
  const nowhere = createRouterTransport(() => undefined);
  const client = pair.client("n1", { transport: nowhere });
  await client.start(soon());
  await assert.rejects(client.find(TYPE_ADDRESS, "x", AbortSignal.timeout(30)), { code: "XDS_NO_ANSWER" });
  assert.equal(client.connected, false);
  assert.equal(client.warm, false);
});

test("good resources of a response are in force, bad ones are refused by name, once, until they change", async () => {
  await using pair = new Pair();
  const client = pair.client("n1", {
    onUpdate: ({ upserts }) => {
      const bad = upserts.filter(({ version }) => version === "bad");
      for (const { name, version } of upserts) if (version !== "bad") pair.view.set(name, version);
      return bad.map(({ name }) => ({ name, reason: "the version is bad" }));
    },
  });
  pair.cache.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("good"), resource("a", "bad")], removes: [] });
  await client.start(soon());
  await client.whenWarm(soon());
  await until(() => pair.server.rejected(TYPE_ADDRESS).size === 1);
  assert.deepEqual([...pair.server.rejected(TYPE_ADDRESS)], [["a", "a: the version is bad"]]);
  assert.deepEqual([...pair.view.keys()], ["good"]);
  const target = { typeUrl: TYPE_ADDRESS, revision: pair.cache.revision };
  assert.deepEqual(await pair.server.whenAcknowledged({ ...target, name: "good" }, soon()), []);
  assert.deepEqual(await pair.server.whenAcknowledged({ ...target, name: "a" }, AbortSignal.timeout(20)), ["n1"]);
  await assert.rejects(client.find(TYPE_ADDRESS, "a", soon()), { code: "XDS_REJECTED", message: /the version is bad/ });
  pair.cache.set(resource("a", "2"));
  await until(() => pair.view.get("a") === "2");
  await until(() => pair.server.rejected(TYPE_ADDRESS).size === 0);
});

test("a receiver that throws refuses the whole update and keeps the stream", async () => {
  await using pair = new Pair();
  let broken = true;
  const client = pair.client("n1", {
    onUpdate: () => {
      if (broken) throw new Error("no room");
    },
  });
  pair.cache.set(resource("a"));
  await client.start(soon());
  await until(() => pair.server.rejected(TYPE_ADDRESS).get("a") === "a: no room");
  broken = false;
  pair.cache.set(resource("a", "2"));
  await until(() => pair.server.rejected(TYPE_ADDRESS).size === 0);
});

test("a change is acknowledged when every stream has taken it, not before", async () => {
  await using pair = new Pair();
  const slow = Promise.withResolvers<void>();
  const [fast, late] = [
    pair.client("fast"),
    pair.client("late", { onUpdate: ({ upserts }) => (upserts[0]?.version === "2" ? slow.promise : undefined) }),
  ];
  await Promise.all([fast.start(soon()), late.start(soon())]);
  await Promise.all([fast.whenWarm(soon()), late.whenWarm(soon())]);
  const revision = pair.cache.set(resource("a", "2"));
  const target = { typeUrl: TYPE_ADDRESS, revision, name: "a" };
  let behind: readonly string[] = ["fast", "late"];
  for (let i = 0; i < 1000 && behind.length > 1; i++) {
    behind = await pair.server.whenAcknowledged(target, AbortSignal.timeout(50));
  }
  assert.deepEqual(behind, ["late"]);
  assert.deepEqual(await pair.server.whenAcknowledged(target, AbortSignal.abort()), ["late"]);
  let done = false;
  const waiting = pair.server.whenAcknowledged(target, soon()).then((behind) => {
    done = true;
    return behind;
  });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(done, false);
  slow.resolve();
  assert.deepEqual(await waiting, []);
});

test("a stream that ends is no longer waited for; one that comes is", async () => {
  await using pair = new Pair();
  const stuck = new Promise<void>(() => undefined);
  const client = pair.client("stuck", { onUpdate: ({ upserts }) => (upserts.length > 0 ? stuck : undefined) });
  await client.start(soon());
  await client.whenWarm(soon());
  const revision = pair.cache.set(resource("a"));
  const target = { typeUrl: TYPE_ADDRESS, revision };
  const enough = new AbortController();
  const waiting = pair.server.whenAcknowledged(target, enough.signal);
  const second = pair.client("second", { onUpdate: () => stuck });
  await second.start(soon());
  await until(() => pair.server.nodes.length === 2);
  await client.drain(10);
  await until(() => pair.server.nodes.length === 1);
  enough.abort();
  assert.deepEqual(await waiting, ["second"]);
  await second.drain(10);
  await until(() => pair.server.nodes.length === 0);
  assert.deepEqual(await pair.server.whenAcknowledged(target, soon()), []);
});

test("a relay confirms upstream only after its own client has, and passes refusals on", async () => {
  await using above = new Pair();
  const middle = new ResourceCache();
  const below = new XdsServer({ cache: middle, log });
  const relay = above.client("agent", {
    onUpdate: relayUpdates({ cache: middle, server: below, clock, log }),
    pipeline: 8,
  });
  const gate = Promise.withResolvers<void>();
  const proxy = above.client("proxy", {
    transport: createRouterTransport(below.routes),
    onUpdate: async ({ upserts }) => {
      if (upserts.some(({ version }) => version === "slow")) await gate.promise;
      return upserts.filter(({ version }) => version === "bad").map(({ name }) => ({ name, reason: "unwanted" }));
    },
  });
  await Promise.all([relay.start(soon()), proxy.start(soon())]);
  await Promise.all([relay.whenWarm(soon()), proxy.whenWarm(soon())]);
  const slow = { typeUrl: TYPE_ADDRESS, revision: above.cache.set(resource("a", "slow")), name: "a" };
  assert.deepEqual(await above.server.whenAcknowledged(slow, AbortSignal.timeout(50)), ["agent"]);
  const bad = { typeUrl: TYPE_ADDRESS, revision: above.cache.set(resource("b", "bad")), name: "b" };
  gate.resolve();
  assert.deepEqual(await above.server.whenAcknowledged(slow, soon()), []);
  await until(() => above.server.rejected(TYPE_ADDRESS).has("b"));
  assert.deepEqual(await above.server.whenAcknowledged(bad, AbortSignal.timeout(50)), ["agent"]);
  below.close();
});

test("a relay whose client hangs confirms after its bound, so that one node cannot hold the others", async () => {
  await using above = new Pair();
  const middle = new ResourceCache();
  const below = new XdsServer({ cache: middle, log });
  const relay = above.client("agent", {
    onUpdate: relayUpdates({ cache: middle, server: below, clock, log, boundMs: 40 }),
  });
  const proxy = above.client("proxy", {
    transport: createRouterTransport(below.routes),
    onUpdate: ({ upserts }) => (upserts.length > 0 ? new Promise<void>(() => undefined) : undefined),
  });
  await Promise.all([relay.start(soon()), proxy.start(soon())]);
  await Promise.all([relay.whenWarm(soon()), proxy.whenWarm(soon())]);
  const began = performance.now();
  const target = { typeUrl: TYPE_ADDRESS, revision: above.cache.set(resource("a")) };
  assert.deepEqual(await above.server.whenAcknowledged(target, soon()), []);
  assert.ok(performance.now() - began >= 38);
  below.close();
});

test("a relay asks above for what it does not know, and says absent only when that was said above", async () => {
  await using above = new Pair();
  above.cache.set(resource("a", "1", ["/10.0.0.1"]));
  const middle = new ResourceCache();
  const relay = above.client("agent", {
    types: [{ typeUrl: TYPE_ADDRESS, mode: "on-demand" }],
    onUpdate: (update) => void middle.apply(update),
  });
  const below = new XdsServer({
    cache: middle,
    log,
    onDemand: (typeUrl, name, signal) => relay.find(typeUrl, name, signal),
  });
  const proxy = above.client("proxy", {
    transport: createRouterTransport(below.routes),
    types: [{ typeUrl: TYPE_ADDRESS, mode: "on-demand" }],
  });
  await Promise.all([relay.start(soon()), proxy.start(soon())]);
  assert.equal((await proxy.find(TYPE_ADDRESS, "/10.0.0.1", soon()))?.name, "a");
  assert.equal(await proxy.find(TYPE_ADDRESS, "/10.0.0.2", soon()), undefined);
  await relay.drain(100);
  await assert.rejects(proxy.find(TYPE_ADDRESS, "/10.0.0.3", AbortSignal.timeout(30)), { code: "XDS_NO_ANSWER" });
  below.close();
});

test("a client that is not authenticated gets no stream, and keeps trying", async () => {
  let open = false;
  await using pair = new Pair({
    authenticate: async () => {
      if (!open) throw new Error("no token");
      return "node-of-token";
    },
  });
  const client = pair.client("claims-another-name");
  await client.start(soon());
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(pair.server.nodes, []);
  open = true;
  await client.whenWarm(soon());
  assert.deepEqual(pair.server.nodes, ["node-of-token"]);
});

test("a stream that is slow gets the latest state, once", async () => {
  await using pair = new Pair();
  let seen: string[] = [];
  let gate = Promise.resolve();
  const client = pair.client("n1", {
    onUpdate: async ({ upserts }) => {
      await gate;
      seen.push(...upserts.map(({ version }) => version));
    },
  });
  await client.start(soon());
  await client.whenWarm(soon());
  const hold = Promise.withResolvers<void>();
  gate = hold.promise;
  for (let version = 1; version <= 500; version++) {
    pair.cache.set(resource("a", String(version)));
    if (version % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  hold.resolve();
  const target = { typeUrl: TYPE_ADDRESS, revision: pair.cache.revision };
  assert.deepEqual(await pair.server.whenAcknowledged(target, soon()), []);
  assert.equal(seen.at(-1), "500");
  assert.ok(seen.length <= 20, `${seen.length} versions were sent to a client that answered none`);
  seen = [];
});

test("whatever changes, breaks and refusals happen, in the end every client holds what the server holds", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.oneof(
          fc.record({
            act: fc.constant("set" as const),
            name: fc.constantFrom("a", "b", "c", "d"),
            version: fc.nat(5),
          }),
          fc.record({ act: fc.constant("remove" as const), name: fc.constantFrom("a", "b", "c", "d") }),
          fc.record({ act: fc.constant("break" as const) }),
          fc.record({ act: fc.constant("wait" as const) }),
        ),
        { maxLength: 30 },
      ),
      async (steps) => {
        await using pair = new Pair();
        const address = new Address(pair.server);
        const client = pair.client("n1", { transport: address.transport });
        await client.start(soon());
        for (const step of steps) {
          if (step.act === "set") pair.cache.set(resource(step.name, String(step.version)));
          else if (step.act === "remove") pair.cache.remove(TYPE_ADDRESS, step.name);
          else if (step.act === "wait") await new Promise((resolve) => setImmediate(resolve));
          else {
            address.server.close();
            address.server = new XdsServer({ cache: pair.cache, log });
          }
        }
        const target = { typeUrl: TYPE_ADDRESS, revision: pair.cache.revision };
        await until(() => address.server.nodes.length === 1);
        assert.deepEqual(await address.server.whenAcknowledged(target, soon()), []);
        const held = Object.fromEntries(pair.cache.list(TYPE_ADDRESS).map(({ name, version }) => [name, version]));
        assert.deepEqual(Object.fromEntries(pair.view), held);
        address.server.close();
      },
    ),
    { numRuns: 60 },
  );
});

test("what a receiver was working on when its stream broke is asked for again", async () => {
  await using pair = new Pair();
  const address = new Address(pair.server);
  const gate = Promise.withResolvers<void>();
  const seen: string[] = [];
  const client = pair.client("n1", {
    transport: address.transport,
    onUpdate: async ({ upserts }) => {
      const versions = upserts.map(({ version }) => version);
      seen.push(...versions);
      if (versions.includes("2")) await gate.promise;
    },
  });
  pair.cache.set(resource("a", "1"));
  await client.start(soon());
  await client.whenWarm(soon());
  pair.cache.set(resource("a", "2"));
  await until(() => seen.includes("2"));
  pair.server.close();
  await until(() => !client.connected);
  // The receiver may or may not have taken version 2. Going back to 1 must reach it all the same.
  pair.cache.set(resource("a", "1"));
  address.server = new XdsServer({ cache: pair.cache, log });
  gate.resolve();
  const target = { typeUrl: TYPE_ADDRESS, revision: pair.cache.revision };
  await until(() => address.server.nodes.length === 1);
  assert.deepEqual(await address.server.whenAcknowledged(target, soon()), []);
  assert.deepEqual(seen, ["1", "2", "1"]);
  address.server.close();
});

test("an update waits until its receiver is done with the one before, unless a pipeline is asked for", async () => {
  for (const pipeline of [1, 3]) {
    await using pair = new Pair();
    let running = 0;
    let most = 0;
    const client = pair.client("n1", {
      pipeline,
      onUpdate: async () => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setTimeout(resolve, 3));
        running--;
      },
    });
    await client.start(soon());
    await client.whenWarm(soon());
    for (let version = 0; version < 12; version++) {
      pair.cache.set(resource("a", String(version)));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await pair.server.whenAcknowledged({ typeUrl: TYPE_ADDRESS, revision: pair.cache.revision }, soon());
    assert.equal(most, pipeline);
  }
});

test("whatever a server sends, the client answers it and goes on", async () => {
  const text = fc.constantFrom("", "a", "b", TYPE_ADDRESS, "type.googleapis.com/other");
  const anyResource = fc.record({
    name: text,
    version: text,
    aliases: fc.array(text, { maxLength: 2 }),
    resource: fc.option(fc.record({ typeUrl: text, value: fc.uint8Array({ maxLength: 8 }) }), { nil: undefined }),
  });
  const anyResponse = fc.record({
    typeUrl: text,
    nonce: fc.string({ maxLength: 3 }),
    resources: fc.array(anyResource, { maxLength: 3 }),
    removedResources: fc.array(text, { maxLength: 2 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(anyResponse, { minLength: 1, maxLength: 5 }), async (responses) => {
      const answered: string[] = [];
      const done = Promise.withResolvers<void>();
      const transport = createRouterTransport((router) => {
        router.service(AggregatedDiscoveryService, {
          async *deltaAggregatedResources(requests) {
            yield* responses.map(({ resources, ...rest }) => ({
              ...rest,
              resources: resources.map(({ resource: any, ...fields }) => ({
                ...fields,
                ...(any && { resource: any }),
              })),
            }));
            for await (const { responseNonce, typeUrl, initialResourceVersions } of requests) {
              if (
                Object.keys(initialResourceVersions).length === 0 &&
                responseNonce === "" &&
                answered.length === 0 &&
                typeUrl === TYPE_ADDRESS &&
                first
              ) {
                first = false;
                continue;
              }
              answered.push(responseNonce);
              if (answered.length === responses.length) done.resolve();
            }
          },
        });
      });
      let first = true;
      const seen: string[] = [];
      const client = new XdsClient({
        transport,
        node: { id: "n" },
        types: [{ typeUrl: TYPE_ADDRESS, mode: "wildcard" }],
        onUpdate: ({ upserts }) => void seen.push(...upserts.map(({ typeUrl, name }) => `${typeUrl} ${name}`)),
        clock,
        random: seededRandom(1),
        log,
      });
      await client.start(soon());
      await done.promise;
      assert.deepEqual(answered.toSorted(), responses.map(({ nonce }) => nonce).toSorted());
      for (const each of seen) assert.match(each, /^type\.googleapis\.com\/istio\.workload\.Address .+/);
      await client.drain(500);
    }),
    { numRuns: 100 },
  );
});

test("a server counts its clients by the versions that they say, and takes nothing else for one", async () => {
  const metrics = new CellSet(xdsMetrics);
  await using pair = new Pair({ metrics });
  const counted = (): string[] =>
    metrics
      .snapshot()
      .filter(({ name, value }) => name === "veil_xds_client_versions" && value > 0)
      .map(({ labels, value }) => `${labels["version"]}: ${value}`)
      .toSorted();
  const versions = { n1: "0.1.0", n2: "0.2.0", n3: "0.2.0", n4: "<script>", n5: undefined };
  for (const [id, version] of Object.entries(versions)) {
    const metadata = version === undefined ? {} : { [VERSION_KEY]: version };
    await pair.client(id, { node: { id, metadata } }).start(soon());
  }
  await until(() => counted().join(" ") === "0.1.0: 1 0.2.0: 2 none: 2");
  await pair.clients[0]?.drain(1000);
  await until(() => counted().join(" ") === "0.2.0: 2 none: 2");
});

test("a client that knows a type more than its server hears that there is nothing of it, and gets the rest", async () => {
  await using pair = new Pair();
  pair.cache.apply({ typeUrl: TYPE_ADDRESS, upserts: [resource("a")], removes: [] });
  const types = [TYPE_ADDRESS, "type.googleapis.com/veil.later"].map((typeUrl) => ({
    typeUrl,
    mode: "wildcard" as const,
  }));
  const client = pair.client("n1", { types });
  await client.start(soon());
  await client.whenWarm(soon());
  assert.deepEqual([...pair.view.keys()], ["a"]);
});
