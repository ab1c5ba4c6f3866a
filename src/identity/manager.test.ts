import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { seededRandom } from "#base/random";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import { createCsr, createKeyPair, formatCertificates, parseCertificates } from "#x509";
import { CertificateManager } from "./manager.ts";
import { identityMetrics } from "./metrics.ts";
import { FakeIssuer, until } from "./testing.ts";

const NOW = Date.UTC(2026, 0, 1);
const HOUR = 3_600_000;
const idOf = (name: string): SpiffeId => parseSpiffeId(`spiffe://cluster.local/ns/shop/sa/${name}`);
const cart = idOf("cart");
/** Lets an attempt that has just begun come to its end: it makes a key on another thread first. */
async function settle(): Promise<void> {
  for (let i = 0; i < 8; i++) await createKeyPair();
}

const refusal = new CodedError("IDENTITY_REFUSED", "not now");

function setUp(seed = 1) {
  const clock = new FakeClock(NOW);
  const issuer = new FakeIssuer(() => clock.now());
  const cells = new CellSet(identityMetrics);
  const manager = new CertificateManager({ issuer, clock, random: seededRandom(seed), log: silentLog(), cells });
  const stateOf = (id = cart) => manager.state(id);
  const ready = (id = cart) => until(() => stateOf(id)?.kind === "ready", `${id} ready`);
  const failed = (id = cart) => until(() => stateOf(id)?.failure !== undefined, `${id} failed`);
  return { clock, issuer, manager, cells, ready, failed, stateOf };
}

test("a held identity is fetched once, shared by all who hold it, and its key is that of its certificate", async () => {
  const { manager, issuer, ready } = setUp();
  const holds = [manager.hold(cart, "warmup"), manager.hold(cart, "realtime"), manager.hold(cart, "background")];
  await ready();
  assert.equal(issuer.asked.length, 1);
  const identity = manager.find(cart);
  assert.equal(identity?.id, cart);
  assert.equal(identity.notAfterMs, NOW + 24 * HOUR);
  assert.equal(identity.rootsPem, await issuer.root());
  assert.match(identity.keyPem, /BEGIN PRIVATE KEY/);
  for (const hold of holds) hold[Symbol.dispose]();
});

test("a certificate is renewed with a new key before half its life, and not before 45 hundredths of it", async () => {
  for (const seed of [1, 2, 3]) {
    const { manager, issuer, clock, ready } = setUp(seed);
    manager.hold(cart, "realtime");
    await ready();
    const first = manager.find(cart);
    await clock.advance(24 * HOUR * 0.45 - 1);
    assert.equal(issuer.asked.length, 1);
    await clock.advance(24 * HOUR * 0.05 + 1);
    await until(() => manager.find(cart)?.chainPem !== first?.chainPem, "renewed");
    assert.notEqual(manager.find(cart)?.keyPem, first?.keyPem);
    assert.equal(issuer.asked.length, 2);
  }
});

test("renewals of certificates issued together are spread", async () => {
  const { manager, issuer, clock } = setUp();
  const ids = Array.from({ length: 40 }, (_, i) => idOf(`a${i}`));
  for (const id of ids) manager.hold(id, "warmup");
  await until(() => ids.every((id) => manager.find(id) !== undefined), "all ready");
  await clock.advance(24 * HOUR * 0.45);
  const perStep: number[] = [];
  for (let step = 0; step < 10; step++) {
    const before = issuer.asked.length;
    await clock.advance(24 * HOUR * 0.005);
    await settle();
    perStep.push(issuer.asked.length - before);
  }
  assert.ok(Math.max(...perStep) <= 12, `in tenths of the window: ${perStep.join(" ")}`);
});

test("a failed renewal keeps the certificate to its end, tries again with growing pauses, and then fails closed", async () => {
  const { manager, issuer, clock, ready, failed, stateOf } = setUp();
  manager.hold(cart, "realtime");
  await ready();
  const first = manager.find(cart);
  const failures = new Set<string | undefined>();
  manager.onChange(() => failures.add(stateOf()?.failure?.code));
  issuer.failure = refusal;
  await clock.advance(12 * HOUR);
  await failed();
  assert.equal(manager.find(cart), first);
  assert.equal(stateOf()?.kind, "ready");
  const tries = issuer.asked.length;
  for (let minutes = 0; minutes < 60; minutes += 0.5) {
    await clock.advance(30_000);
    await settle();
  }
  const inAnHour = issuer.asked.length - tries;
  assert.ok(inAnHour >= 20 && inAnHour <= 40, `${inAnHour} tries in an hour, at most 150 s apart`);
  await clock.advance(12 * HOUR);
  await until(() => stateOf()?.kind === "pending", "expired");
  assert.equal(manager.find(cart), undefined);
  assert.ok(failures.has("IDENTITY_EXPIRED") && failures.has("IDENTITY_REFUSED"), [...failures].join(" "));
  issuer.failure = undefined;
  await clock.advance(180_000);
  await ready();
});

test("the first retry comes after about a second, and at once when the authority is known to be back", async () => {
  const { manager, issuer, clock, failed, ready } = setUp();
  issuer.failure = refusal;
  manager.hold(cart, "realtime");
  await failed();
  await clock.advance(1200);
  await until(() => issuer.asked.length === 2, "second try");
  for (let i = 0; i < 10; i++) {
    await clock.advance(150_000);
    await settle();
  }
  issuer.failure = undefined;
  const before = issuer.asked.length;
  manager.retryNow();
  await clock.advance(1000);
  await ready();
  assert.equal(issuer.asked.length, before + 1);
});

test("at most eight requests are in flight, pods that wait go before prefetches and renewals, and none is lost", async () => {
  const { manager, issuer } = setUp();
  const gate = Promise.withResolvers<void>();
  issuer.gate = gate.promise;
  const slow = Array.from({ length: 20 }, (_, i) => idOf(`w${i}`));
  for (const id of slow) manager.hold(id, "warmup");
  const urgent = idOf("urgent");
  const upgraded = slow[19] ?? urgent;
  manager.hold(urgent, "realtime");
  manager.hold(upgraded, "realtime");
  await until(() => issuer.asked.length === 8, "eight in flight");
  gate.resolve();
  await until(() => [...slow, urgent].every((id) => manager.find(id) !== undefined), "all ready");
  assert.equal(issuer.mostInFlight, 8);
  assert.deepEqual(issuer.asked.slice(8, 10).toSorted(), [urgent, upgraded].toSorted());
  assert.equal(issuer.asked.length, 21);
});

test("an identity that nobody holds is kept for a while and then forgotten with its key", async () => {
  const { manager, issuer, clock, ready, stateOf } = setUp();
  const hold = manager.hold(cart, "realtime");
  await ready();
  hold[Symbol.dispose]();
  hold[Symbol.dispose]();
  await clock.advance(9_000);
  manager.hold(cart, "realtime")[Symbol.dispose]();
  assert.equal(issuer.asked.length, 1, "a proxy that comes back finds it");
  await clock.advance(10_000);
  assert.equal(stateOf(), undefined);
  const held = manager.hold(cart, "realtime");
  await ready();
  manager.forget(cart);
  assert.ok(manager.find(cart), "what is held is not forgotten");
  held[Symbol.dispose]();
  manager.forget(cart);
  assert.equal(stateOf(), undefined);
});

test("waiting ends with the certificate, with the reason of the failure, or with the end of the role", async () => {
  const { manager, issuer, clock, failed } = setUp();
  const got = await manager.fetch(cart, AbortSignal.timeout(60_000));
  assert.equal(got.id, cart);
  issuer.failure = refusal;
  const till = idOf("till");
  const giveUp = new AbortController();
  const waiting = manager.fetch(till, giveUp.signal);
  await failed(till);
  giveUp.abort(new Error("too late"));
  await assert.rejects(
    waiting,
    (error: unknown) => error instanceof CodedError && error.code === "IDENTITY_NOT_READY" && error.cause === refusal,
  );
  const last = manager.fetch(idOf("last"), new AbortController().signal);
  await manager.drain();
  await assert.rejects(last, { code: "IDENTITY_NOT_READY" });
  assert.throws(() => manager.hold(cart, "realtime"), { code: "IDENTITY_STOPPED" });
  await clock.advance(HOUR);
});

test("an answer for another identity, another key, without roots, or of another authority is refused and tried again", async () => {
  const { manager, issuer, clock, failed, ready, stateOf } = setUp();
  const stranger = new FakeIssuer(() => clock.now());
  const strangersRoot = await stranger.root();
  const otherCsr = await createCsr(await createKeyPair(), cart);
  const [otherKeysLeaf = ""] = await issuer.issue(otherCsr, cart, new AbortController().signal);
  let otherLeaf = "";
  issuer.alter = (chain) => {
    otherLeaf = chain[0] ?? "";
    return chain;
  };
  manager.hold(idOf("other"), "realtime");
  await ready(idOf("other"));
  const cases: [alter: (chain: string[]) => string[], why: RegExp][] = [
    [([, root = ""]) => [otherLeaf, root], /expected was/],
    [([, root = ""]) => [otherKeysLeaf, root], /is not that of the certificate/],
    [([leaf = ""]) => [leaf], /no PEM block/],
    [() => [], /no PEM block/],
    [([leaf = ""]) => [leaf, strangersRoot], /was not signed by/],
    [([leaf = "", root = ""]) => [leaf.slice(0, 200), root], /damaged/],
  ];
  for (const [alter, why] of cases) {
    const before = issuer.asked.length;
    issuer.alter = alter;
    if (stateOf() === undefined) manager.hold(cart, "realtime");
    else await clock.advance(180_000);
    await until(() => issuer.asked.length > before && issuer.inFlight === 0, "tried");
    await failed();
    await until(() => why.test(stateOf()?.failure?.message ?? ""), String(why));
    assert.equal(stateOf()?.failure?.code, "IDENTITY_BAD_ANSWER");
  }
  issuer.alter = (chain) => chain;
  await clock.advance(180_000);
  await ready();
});

test("a node's clock within two minutes of the authority's works; beyond that the reason is named", async () => {
  for (const [skewMs, code] of [
    [-119_000, undefined],
    [119_000, undefined],
    [-121_000, "IDENTITY_CLOCK_BEHIND"],
    [25 * HOUR, "IDENTITY_CLOCK_AHEAD"],
  ] as const) {
    const clock = new FakeClock(NOW + skewMs);
    const issuer = new FakeIssuer(() => NOW);
    const manager = new CertificateManager({ issuer, clock, random: seededRandom(1), log: silentLog() });
    manager.hold(cart, "realtime");
    await until(() => manager.find(cart) !== undefined || manager.state(cart)?.failure !== undefined, "judged");
    assert.equal(manager.state(cart)?.failure?.code, code, `skew ${skewMs}`);
    await manager.drain();
  }
});

test("a new trust bundle reaches every identity without a new certificate", async () => {
  const { manager, issuer, ready } = setUp();
  manager.hold(cart, "realtime");
  await ready();
  const before = manager.find(cart);
  const changes: SpiffeId[] = [];
  manager.onChange((id) => changes.push(id));
  const second = await new FakeIssuer(() => NOW).root();
  manager.updateTrustBundle((before?.rootsPem ?? "") + second);
  assert.deepEqual(changes, [cart]);
  assert.equal(parseCertificates(manager.find(cart)?.rootsPem ?? "", "roots").length, 2);
  assert.equal(manager.find(cart)?.keyPem, before?.keyPem);
  assert.equal(issuer.asked.length, 1);
  assert.throws(() => manager.updateTrustBundle(""), { code: "X509_PEM" });
  manager.hold(idOf("till"), "realtime");
  await ready(idOf("till"));
  for (const id of [cart, idOf("till")]) {
    const roots = parseCertificates(manager.find(id)?.rootsPem ?? "", "roots");
    assert.equal(roots.length, 2, "an authority that knows one root only does not take the other away");
  }
  assert.equal(
    formatCertificates(parseCertificates(manager.find(cart)?.rootsPem ?? "", "roots")),
    (before?.rootsPem ?? "") + second,
  );
});

test("when the root of the certificates at hand is withdrawn it is trusted no more at once, and new certificates are fetched", async () => {
  const { manager, issuer, clock, ready } = setUp();
  manager.hold(cart, "realtime");
  await ready();
  const before = manager.find(cart);
  const [old, next] = [await issuer.root(), await issuer.replaceRoot()];
  manager.updateTrustBundle(old + next);
  assert.equal(issuer.asked.length, 1, "a root that was added asks for nothing new");
  manager.updateTrustBundle(next);
  assert.equal(manager.find(cart)?.rootsPem, next);
  assert.equal(manager.find(cart)?.chainPem, before?.chainPem);
  await clock.advance(1000);
  await until(() => manager.find(cart)?.chainPem !== before?.chainPem, "a new certificate");
  assert.equal(issuer.asked.length, 2);
});

test("metrics tell how many identities are ready and when the first ends; no state of the manager prints a key", async () => {
  const { manager, cells, issuer, ready, failed } = setUp();
  manager.hold(cart, "realtime");
  await ready();
  issuer.failure = refusal;
  manager.hold(idOf("till"), "realtime");
  await failed(idOf("till"));
  const values = Object.fromEntries(
    cells.snapshot().map(({ name, labels, value }) => [[name, ...Object.values(labels)].join(" "), value]),
  );
  assert.equal(values["veil_identity_certificates ready"], 1);
  assert.equal(values["veil_identity_certificates failed"], 1);
  assert.equal(values["veil_identity_fetches_total IDENTITY_REFUSED"], 1);
  assert.equal(values["veil_identity_earliest_end_seconds"], (NOW + 24 * HOUR) / 1000);
  assert.ok(!inspect(manager, { depth: 10, showHidden: true }).includes("PRIVATE KEY"));
});
