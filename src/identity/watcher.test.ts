import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { createClient, createRouterTransport, type ConnectRouter } from "@connectrpc/connect";
import fc from "fast-check";
import { FakeClock, systemClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { seededRandom, systemRandom } from "#base/random";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import { WatchRequestSchema, WorkloadCertificates, type WatchRequest } from "#proto";
import { RpcServer, rpcTransport } from "#rpc";
import { acceptUpdate } from "./accept.ts";
import { CertificateManager } from "./manager.ts";
import { FakeIssuer } from "./testing.ts";
import { workloadCertificatesRoutes } from "./watch-service.ts";
import { CertificateWatcher } from "./watcher.ts";

const idOf = (name: string): SpiffeId => parseSpiffeId(`spiffe://cluster.local/ns/shop/sa/${name}`);
const cart = idOf("cart");
const till = idOf("till");
const directory = mkdtempSync(join(tmpdir(), "vt-identity-"));
after(() => rmSync(directory, { recursive: true }));
const never = new AbortController().signal;
let sockets = 0;

/** An agent on a real Unix socket, which can be stopped and started anew, and a proxy that watches it. */
function setUp() {
  const unix = join(directory, `agent-${sockets++}.sock`);
  const clock = systemClock();
  const issuer = new FakeIssuer(() => clock.now());
  const log = silentLog();
  const startAgent = async () => {
    const manager = new CertificateManager({ issuer, clock, random: systemRandom, log });
    const server = new RpcServer({ name: "agent", listen: { unix }, routes: workloadCertificatesRoutes(manager), log });
    await server.start(never);
    const stop = async (): Promise<void> => {
      await server.drain(0);
      await manager.drain();
    };
    return { manager, stop };
  };
  const transport = rpcTransport({ target: `unix://${unix}` });
  const watcher = new CertificateWatcher({ transport, clock, random: seededRandom(1), log });
  return { issuer, startAgent, watcher };
}

const soon = (): AbortSignal => AbortSignal.timeout(60_000);

async function eventually(done: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 60_000;
  while (!done()) {
    assert.ok(performance.now() < end, `it did not happen: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("the proxy gets what it wants over the agent's socket, with its key, and is told of later changes", async () => {
  const { startAgent, watcher } = setUp();
  const agent = await startAgent();
  await watcher.start(never);
  watcher.want([cart]);
  const identity = await watcher.wait(cart, soon());
  assert.deepEqual(identity, agent.manager.find(cart));
  watcher.want([cart, till]);
  assert.equal((await watcher.wait(till, soon())).id, till);
  const second = await new FakeIssuer(() => new Date().getTime()).root();
  agent.manager.updateTrustBundle(identity.rootsPem + second);
  await eventually(() => watcher.get(cart)?.rootsPem.includes(second) === true, "new roots arrive");
  assert.ok(watcher.connected);
  await watcher.drain();
  await agent.stop();
});

test("the proxy starts before the agent, survives its restart, keeps what it has meanwhile, and gets what is new after", async () => {
  const { issuer, startAgent, watcher } = setUp();
  await watcher.start(never);
  watcher.want([cart]);
  const waiting = watcher.wait(cart, soon());
  let agent = await startAgent();
  const before = await waiting;
  await agent.stop();
  await eventually(() => !watcher.connected, "the loss is noticed");
  assert.equal(watcher.get(cart), before);
  watcher.want([cart, till]);
  agent = await startAgent();
  assert.equal((await watcher.wait(till, soon())).id, till);
  await eventually(() => watcher.get(cart)?.chainPem !== before.chainPem, "the new agent's certificate arrives");
  assert.ok(issuer.asked.length >= 3);
  await watcher.drain();
  await agent.stop();
});

test("what is no longer wanted is dropped by the proxy at once and by the agent's stream", async () => {
  const { startAgent, watcher } = setUp();
  const agent = await startAgent();
  await watcher.start(never);
  watcher.want([cart, till]);
  await watcher.wait(cart, soon());
  await watcher.wait(till, soon());
  watcher.want([till]);
  assert.equal(watcher.get(cart), undefined);
  await eventually(() => {
    agent.manager.forget(cart);
    return agent.manager.state(cart) === undefined;
  }, "the agent may forget it");
  assert.ok(watcher.get(till));
  agent.manager.forget(till);
  assert.ok(agent.manager.find(till), "what the stream holds is not forgotten");
  await watcher.drain();
  await eventually(() => {
    agent.manager.forget(till);
    return agent.manager.state(till) === undefined;
  }, "a closed stream holds nothing");
  await agent.stop();
});

test("waiting in vain ends with the agent's own reason, and asks for an identity that nobody else wants", async () => {
  const { issuer, startAgent, watcher } = setUp();
  const agent = await startAgent();
  await watcher.start(never);
  issuer.failure = new CodedError("IDENTITY_REFUSED", "CA_NOT_ON_NODE: no such pod here");
  const giveUp = new AbortController();
  const waiting = watcher.wait(cart, giveUp.signal);
  await eventually(() => watcher.failure(cart) !== undefined, "the failure arrives");
  giveUp.abort();
  await assert.rejects(waiting, (error: unknown) => {
    assert.ok(error instanceof CodedError && error.code === "IDENTITY_NOT_READY" && error.cause instanceof CodedError);
    assert.deepEqual([error.cause.code, error.cause.message], ["IDENTITY_REFUSED", "CA_NOT_ON_NODE: no such pod here"]);
    return true;
  });
  assert.equal(watcher.failure(cart), undefined, "nobody wants it any more");
  await watcher.drain();
  await assert.rejects(watcher.wait(cart, soon()), { code: "IDENTITY_NOT_READY" });
  await agent.stop();
});

test("of several wanted identities the unreadable ones are answered with why, and the others are served", async () => {
  const clock = systemClock();
  const manager = new CertificateManager({
    issuer: new FakeIssuer(() => clock.now()),
    clock,
    random: systemRandom,
    log: silentLog(),
  });
  const client = createClient(WorkloadCertificates, createRouterTransport(workloadCertificatesRoutes(manager)));
  const done = Promise.withResolvers<void>();
  async function* requests(): AsyncGenerator<WatchRequest> {
    yield create(WatchRequestSchema, { identities: ["", "http://x/", cart, "spiffe://cluster.local/ns/../x"] });
    await done.promise;
  }
  const answers = new Map<string, string | undefined>();
  for await (const { identity, state } of client.watch(requests())) {
    answers.set(identity, state.case === "failure" ? state.value.code : state.case);
    if (answers.size === 4) done.resolve();
  }
  assert.deepEqual(Object.fromEntries(answers), {
    "": "SPIFFE_ID_EMPTY",
    "http://x/": "SPIFFE_ID_SCHEME",
    "spiffe://cluster.local/ns/../x": "SPIFFE_ID_PATH",
    [cart]: "certificate",
  });
  await manager.drain();
});

test("a certificate that the proxy cannot use leaves the one before in place, and the reason is known", async () => {
  const clock = systemClock();
  const good = new FakeIssuer(() => clock.now());
  const manager = new CertificateManager({ issuer: good, clock, random: systemRandom, log: silentLog() });
  manager.hold(cart, "realtime");
  const { chainPem, keyPem, rootsPem } = await manager.fetch(cart, soon());
  manager.hold(till, "realtime");
  const other = await manager.fetch(till, soon());
  const times = { notBeforeMs: 0n, notAfterMs: 0n };
  const update = (value: { chainPem: string; keyPem: string; rootsPem: string }) => ({
    identity: cart,
    state: { case: "certificate" as const, value: { ...value, ...times } },
  });
  const next = Promise.withResolvers<void>();
  const routes = (router: ConnectRouter): void => {
    router.service(WorkloadCertificates, {
      async *watch() {
        yield {
          identity: "spiffe://cluster.local/ns/nobody/sa/asked",
          state: update({ chainPem, keyPem, rootsPem }).state,
        };
        yield update({ chainPem, keyPem, rootsPem });
        yield update({ chainPem, keyPem: other.keyPem, rootsPem });
        await next.promise;
      },
    });
  };
  const watcher = new CertificateWatcher({
    transport: createRouterTransport(routes),
    clock,
    random: systemRandom,
    log: silentLog(),
  });
  watcher.want([cart]);
  await watcher.start(never);
  await eventually(() => watcher.failure(cart) !== undefined, "the bad update is noticed");
  assert.equal(watcher.failure(cart)?.code, "IDENTITY_BAD_UPDATE");
  assert.equal(watcher.get(cart)?.chainPem, chainPem);
  next.resolve();
  await watcher.drain();
  await manager.drain();
});

test("a certificate is not used beyond its end, though the agent is gone", async () => {
  const clock = new FakeClock(Date.UTC(2026, 0, 1));
  const issuer = new FakeIssuer(() => clock.now());
  const manager = new CertificateManager({ issuer, clock, random: systemRandom, log: silentLog() });
  const transport = createRouterTransport(workloadCertificatesRoutes(manager));
  const watcher = new CertificateWatcher({ transport, clock, random: systemRandom, log: silentLog() });
  watcher.want([cart]);
  await watcher.start(never);
  const identity = await watcher.wait(cart, soon());
  await manager.drain();
  await clock.advance(86_400_000 - 1);
  assert.equal(watcher.get(cart), identity);
  await clock.advance(1);
  assert.equal(watcher.get(cart), undefined);
  await watcher.drain();
});

test("no update from the agent makes anything but an identity or a refusal with our code", () => {
  const text = fc.string({ unit: "binary", maxLength: 200 });
  fc.assert(
    fc.property(fc.record({ chainPem: text, keyPem: text, rootsPem: text }), (update) => {
      assert.throws(() => acceptUpdate(update, { id: cart, nowMs: 0 }), { code: "IDENTITY_BAD_UPDATE" });
    }),
  );
});
