import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import type { StoreEvent } from "./event-log.ts";
import type { KubeObject } from "./object.ts";
import { Store } from "./store.ts";
import type { ObjectKey } from "./stored-object.ts";

function key(name: string, namespace = "ns", resource = "pods"): ObjectKey {
  return { resource, namespace, name };
}

function object(name: string, value: unknown = 1): KubeObject {
  return { apiVersion: "v1", kind: "Pod", metadata: { name, namespace: "ns", uid: name }, value };
}

describe("store", () => {
  let folder = "";
  let open: Store[] = [];

  const openStore = (options: { maxEvents?: number } = {}): Store => {
    const store = new Store({ path: join(folder, "state.db"), log: silentLog(), ...options });
    open.push(store);
    return store;
  };

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "vt-apiserver-store-"));
    open = [];
  });

  afterEach(() => {
    for (const store of open) store.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it("keeps what was acknowledged when it is opened again, with revisions that only grow", async () => {
    const store = openStore();
    await store.write((transaction) => transaction.put(key("a"), object("a")));
    await store.write((transaction) => transaction.put(key("b"), object("b")));
    await store.write((transaction) => transaction.remove(key("b")));
    const revision = store.revision;
    store.close();
    const again = openStore();
    assert.equal(again.revision, revision);
    assert.deepEqual(
      again.list("pods").map((stored) => stored.key.name),
      ["a"],
    );
    const stored = await again.write((transaction) => transaction.put(key("c"), object("c")));
    assert.equal(stored.revision, revision + 1);
    assert.equal(stored.object.metadata.resourceVersion, String(revision + 1));
  });

  it("lets one writer of a batch fail without the others", async () => {
    const store = openStore();
    const results = await Promise.allSettled([
      store.write((transaction) => transaction.put(key("a"), object("a"))),
      store.write((transaction) => {
        transaction.put(key("b"), object("b"));
        throw new Error("refused");
      }),
      store.write((transaction) => transaction.put(key("c"), object("c"))),
    ]);
    assert.deepEqual(
      results.map((result) => result.status),
      ["fulfilled", "rejected", "fulfilled"],
    );
    assert.equal(store.get(key("b")), undefined);
    assert.deepEqual(
      store.list("pods").map((stored) => stored.revision),
      [2, 3],
    );
  });

  it("shows a write what earlier writes of its batch did", async () => {
    const store = openStore();
    const first = store.write((transaction) => transaction.put(key("a"), object("a")));
    const second = store.write((transaction) => {
      assert.ok(transaction.get(key("a")));
      transaction.remove(key("a"));
      assert.equal(transaction.get(key("a")), undefined);
      assert.deepEqual(transaction.list("pods"), []);
    });
    await Promise.all([first, second]);
    assert.equal(store.get(key("a")), undefined);
  });

  it("keeps nothing of a dry run and gives its result", async () => {
    const store = openStore();
    const stored = await store.write((transaction) => transaction.put(key("a"), object("a")), { dryRun: true });
    assert.equal(stored.key.name, "a");
    assert.equal(store.get(key("a")), undefined);
    assert.equal(store.revision, 1);
  });

  it("tells listeners every change, in order, with the version before", async () => {
    const store = openStore();
    const seen: StoreEvent[] = [];
    const stop = store.subscribe("pods", (event) => void seen.push(event));
    await store.write((transaction) => transaction.put(key("a"), object("a", 1)));
    await store.write((transaction) => transaction.put(key("a"), object("a", 2)));
    await store.write((transaction) => transaction.remove(key("a")));
    stop();
    await store.write((transaction) => transaction.put(key("b"), object("b")));
    assert.deepEqual(
      seen.map(({ type, object: stored, previous }) => [type, stored.revision, previous?.revision]),
      [
        ["ADDED", 2, undefined],
        ["MODIFIED", 3, 2],
        ["DELETED", 4, 3],
      ],
    );
  });

  it("replays changes after a restart, and says when they are forgotten", async () => {
    const store = openStore({ maxEvents: 8 });
    for (let index = 0; index < 6; index++)
      await store.write((transaction) => transaction.put(key("a"), object("a", index)));
    store.close();
    const again = openStore({ maxEvents: 8 });
    assert.deepEqual(
      again.eventsSince("pods", 4)?.map(({ object: stored, previous }) => [stored.revision, previous?.revision]),
      [
        [5, 4],
        [6, 5],
        [7, 6],
      ],
    );
    for (let index = 0; index < 10; index++)
      await again.write((transaction) => transaction.put(key("a"), object("a", index)));
    assert.equal(again.eventsSince("pods", 3), undefined);
    assert.deepEqual(again.eventsSince("pods", again.revision), []);
    again.close();
    assert.equal(openStore({ maxEvents: 8 }).eventsSince("pods", 3), undefined, "still forgotten after a restart");
  });

  it("rewinds lists as an obvious copy of every version says", async () => {
    const store = openStore();
    const names = ["a", "b", "c"];
    const operations = fc.array(fc.record({ name: fc.constantFrom(...names), remove: fc.boolean() }), {
      minLength: 1,
      maxLength: 12,
    });
    const snapshots = new Map<number, string[]>([[store.revision, []]]);
    await fc.assert(
      fc.asyncProperty(operations, async (steps) => {
        for (const { name, remove } of steps) {
          await store.write((transaction) => {
            if (remove) transaction.remove(key(name));
            else transaction.put(key(name), object(name));
          });
          snapshots.set(
            store.revision,
            store.list("pods").map((stored) => stored.text),
          );
        }
        for (const [revision, texts] of snapshots) {
          assert.deepEqual(
            store.listAt("pods", revision)?.map((stored) => stored.text),
            texts,
            `at revision ${revision}`,
          );
        }
      }),
      { numRuns: 20 },
    );
  });

  it("refuses a second opener", () => {
    openStore();
    assert.throws(
      () => openStore(),
      (error) => error instanceof CodedError && error.code === "APISERVER_DATA_LOCKED",
    );
  });

  it("refuses a file that is no database, and leaves it as it is", () => {
    const path = join(folder, "state.db");
    writeFileSync(path, "precious, but not a database ".repeat(100));
    const before = readFileSync(path);
    assert.throws(
      () => openStore(),
      (error) =>
        error instanceof CodedError && error.code === "APISERVER_DATA_UNREADABLE" && error.message.includes(path),
    );
    assert.deepEqual(readFileSync(path), before);
  });

  it("rejects writes after it was closed", async () => {
    const store = openStore();
    store.close();
    await assert.rejects(
      store.write(() => 1),
      { code: "APISERVER_STORE_FAILED" },
    );
  });
});
