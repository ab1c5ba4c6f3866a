import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import fc from "fast-check";
import { DeltaDiscoveryRequestSchema, type DeltaDiscoveryRequest } from "#proto";
import { ResourceCache, TYPE_ADDRESS, type CachedResource } from "./cache.ts";
import { MAX_ABSENT_NAMES, MAX_NAMES_PER_RESPONSE, MAX_UNACKNOWLEDGED, Subscription } from "./subscription.ts";

function resource(name: string, version = "1", aliases: readonly string[] = []): CachedResource {
  return { typeUrl: TYPE_ADDRESS, name, version, aliases, value: new Uint8Array() };
}

function request(init: MessageInitShape<typeof DeltaDiscoveryRequestSchema> = {}): DeltaDiscoveryRequest {
  return create(DeltaDiscoveryRequestSchema, { typeUrl: TYPE_ADDRESS, ...init });
}

const WILDCARD = request();
const ON_DEMAND = request({ resourceNamesSubscribe: ["*"], resourceNamesUnsubscribe: ["*"] });

/** A cache and one stream's subscription to it, with the nonces counted. */
function following(first: DeltaDiscoveryRequest, filled: readonly CachedResource[] = []) {
  const cache = new ResourceCache();
  cache.apply({ typeUrl: TYPE_ADDRESS, upserts: filled, removes: [] });
  const subscription = new Subscription(cache, TYPE_ADDRESS, first);
  cache.onChange((change) => subscription.note(change));
  let nonce = 0;
  const take = (
    mayDeny = true,
  ): { told: string[]; removed: readonly string[]; unanswered: readonly string[] } | undefined => {
    const { batch, unanswered } = subscription.take(String(nonce + 1), mayDeny);
    if (batch !== undefined) nonce++;
    if (batch === undefined && unanswered.length === 0) return undefined;
    return { told: batch?.resources.map(({ name }) => name) ?? [], removed: batch?.removed ?? [], unanswered };
  };
  const acknowledge = (refusal?: string): boolean => subscription.acknowledge(String(nonce), refusal);
  return { cache, subscription, take, acknowledge };
}

test("the first response always comes, even when there is nothing to tell; the next only with news", () => {
  const { take, acknowledge, cache } = following(WILDCARD);
  assert.deepEqual(take(), { told: [], removed: [], unanswered: [] });
  acknowledge();
  assert.equal(take(), undefined);
  cache.set(resource("a"));
  assert.deepEqual(take()?.told, ["a"]);
});

test("versions that the client brings are not sent again; what it has and we do not is removed", () => {
  const first = request({ initialResourceVersions: { same: "1", old: "0", gone: "1" } });
  const { take } = following(first, [resource("same"), resource("old"), resource("new")]);
  assert.deepEqual(take(), { told: ["old", "new"], removed: ["gone"], unanswered: [] });
});

test("an on-demand client that comes back gets no copy of what it has, and hears of its changes", () => {
  const first = request({
    resourceNamesSubscribe: ["*", "a", "b", "gone"],
    resourceNamesUnsubscribe: ["*"],
    initialResourceVersions: { a: "1", b: "0", gone: "1" },
  });
  const { take, cache, acknowledge } = following(first, [resource("a"), resource("b"), resource("c")]);
  assert.deepEqual(take(), { told: ["b"], removed: ["gone"], unanswered: [] });
  acknowledge();
  cache.set(resource("a", "2"));
  cache.set(resource("c", "2"));
  assert.deepEqual(take()?.told, ["a"]);
  cache.set(resource("gone", "2"));
  assert.deepEqual(take()?.told, ["gone"], "a name that was absent is told when it appears");
});

test("a change that is still to be told is not held, nor one that waits for its answer", () => {
  const { cache, subscription, take, acknowledge } = following(WILDCARD);
  assert.equal(subscription.holds(0), false, "nothing was said yet");
  take();
  acknowledge();
  assert.equal(subscription.holds(cache.revision), true);
  const revision = cache.set(resource("a"));
  assert.equal(subscription.holds(revision), false);
  take();
  assert.equal(subscription.holds(revision), false);
  assert.equal(subscription.acknowledge("stale", undefined), false);
  assert.equal(subscription.holds(revision), false);
  assert.equal(acknowledge(), true);
  assert.equal(subscription.holds(revision), true);
});

test("a large change goes in several responses, and is held when the last is acknowledged", () => {
  const { cache, subscription, take, acknowledge } = following(WILDCARD);
  take();
  acknowledge();
  const upserts = Array.from({ length: MAX_NAMES_PER_RESPONSE + 1 }, (_, i) => resource(`r${i}`));
  const revision = cache.apply({ typeUrl: TYPE_ADDRESS, upserts, removes: [] });
  assert.equal(take()?.told.length, MAX_NAMES_PER_RESPONSE);
  acknowledge();
  assert.equal(subscription.holds(revision), false);
  assert.equal(take()?.told.length, 1);
  acknowledge();
  assert.equal(subscription.holds(revision), true);
});

test("a client that does not answer is sent a bounded number of responses; then changes are merged", () => {
  const { cache, take, subscription } = following(WILDCARD);
  let sent = 0;
  for (let version = 1; version <= 100; version++) {
    cache.set(resource("a", String(version)));
    if (take() !== undefined) sent++;
  }
  assert.equal(sent, MAX_UNACKNOWLEDGED);
  subscription.acknowledge(String(sent), undefined);
  assert.deepEqual(take()?.told, ["a"]);
});

test("one acknowledgement covers the responses before it", () => {
  const { cache, subscription, take } = following(WILDCARD);
  take();
  cache.set(resource("a"));
  take();
  const revision = cache.set(resource("b"));
  take();
  subscription.acknowledge("3", undefined);
  assert.equal(subscription.holds(revision), true);
  assert.equal(subscription.acknowledge("2", undefined), false);
});

test("a refusal names what it refuses; one that names nothing refuses all of its response", () => {
  const { cache, subscription, take, acknowledge } = following(WILDCARD, [
    resource("a"),
    resource("ab"),
    resource("c"),
  ]);
  take();
  acknowledge("ab: too long; ");
  assert.deepEqual([...subscription.rejected.keys()], ["ab"]);
  cache.set(resource("ab", "2"));
  cache.set(resource("c", "2"));
  take();
  acknowledge("no room");
  assert.deepEqual([...subscription.rejected.keys()].toSorted(), ["ab", "c"]);
  cache.remove(TYPE_ADDRESS, "ab");
  take();
  acknowledge();
  assert.deepEqual([...subscription.rejected.keys()], ["c"]);
});

test("an absent name is answered at once when it may be denied, otherwise when it can be", () => {
  const { cache, subscription, take } = following(ON_DEMAND);
  take();
  subscription.subscribe(request({ resourceNamesSubscribe: ["x", "/10.0.0.1"] }));
  assert.deepEqual(take(false), { told: [], removed: [], unanswered: ["x", "/10.0.0.1"] });
  assert.equal(take(false), undefined, "an open question is not repeated by itself");
  cache.set(resource("y", "1", ["/10.0.0.1"]));
  assert.deepEqual(take(false)?.told, ["y"], "an open question is answered when something appears under its alias");
  subscription.settle("x");
  subscription.settle("never asked");
  assert.deepEqual(take(false)?.removed, ["x"]);
  subscription.subscribe(request({ resourceNamesSubscribe: ["z"] }));
  take(false);
  subscription.reopen();
  assert.deepEqual(take(true)?.removed, ["z"]);
});

test("asking again is answering again, and taking a name back ends its news", () => {
  const { cache, subscription, take } = following(ON_DEMAND, [resource("a")]);
  take();
  for (let round = 0; round < 3; round++) {
    subscription.subscribe(request({ resourceNamesSubscribe: ["a"] }));
    assert.deepEqual(take()?.told, ["a"]);
  }
  subscription.subscribe(request({ resourceNamesUnsubscribe: ["a"] }));
  cache.set(resource("a", "2"));
  assert.equal(take(), undefined);
});

test("a client may turn to the wildcard later", () => {
  const { cache, subscription, take } = following(ON_DEMAND, [resource("a"), resource("b")]);
  take();
  subscription.subscribe(request({ resourceNamesSubscribe: ["*"] }));
  assert.deepEqual(take()?.told, ["a", "b"]);
  cache.set(resource("c"));
  assert.deepEqual(take()?.told, ["c"]);
});

test("a client that asks for names that do not exist takes no more memory than the limit allows", () => {
  const { cache, subscription, take, acknowledge } = following(ON_DEMAND);
  take();
  acknowledge();
  for (let i = 0; i <= MAX_ABSENT_NAMES; i++) {
    subscription.subscribe(request({ resourceNamesSubscribe: [`x${i}`] }));
    take();
    acknowledge();
  }
  cache.set(resource("x0"));
  assert.equal(take(), undefined, "the oldest was forgotten");
  cache.set(resource("x1"));
  assert.deepEqual(take()?.told, ["x1"]);
});

const name = fc.constantFrom("a", "b", "c", "/1", "/2", "*");
const anyRequest = fc
  .record({
    resourceNamesSubscribe: fc.array(name, { maxLength: 3 }),
    resourceNamesUnsubscribe: fc.array(name, { maxLength: 3 }),
    initialResourceVersions: fc.dictionary(name, fc.constantFrom("", "1", "2"), { maxKeys: 3 }),
    responseNonce: fc.constantFrom("", "1", "2", "3", "9"),
  })
  .map(request);

test("any requests in any order: the subscription stays consistent and follows what it was told to follow", () => {
  const step = fc.oneof(
    fc.record({
      act: fc.constant("request" as const),
      request: anyRequest,
      refusal: fc.option(fc.string(), { nil: undefined }),
    }),
    fc.record({
      act: fc.constant("set" as const),
      name: fc.constantFrom("a", "b", "c"),
      version: fc.nat(3),
      alias: fc.constantFrom("/1", "/2"),
    }),
    fc.record({ act: fc.constant("remove" as const), name: fc.constantFrom("a", "b", "c") }),
    fc.record({ act: fc.constant("take" as const), mayDeny: fc.boolean() }),
  );
  fc.assert(
    fc.property(anyRequest, fc.array(step, { maxLength: 40 }), (first, steps) => {
      const { cache, subscription, take, acknowledge } = following(first);
      for (const each of steps) {
        if (each.act === "set") cache.set(resource(each.name, String(each.version), [each.alias]));
        else if (each.act === "remove") cache.remove(TYPE_ADDRESS, each.name);
        else if (each.act === "take") take(each.mayDeny);
        else {
          subscription.subscribe(each.request);
          subscription.acknowledge(each.request.responseNonce, each.refusal);
        }
      }
      for (let i = 0; i <= MAX_UNACKNOWLEDGED + 1; i++) {
        take(true);
        acknowledge();
      }
      assert.equal(take(true), undefined, "everything is said in the end");
      assert.equal(subscription.holds(cache.revision), true);
    }),
    { numRuns: 500 },
  );
});
