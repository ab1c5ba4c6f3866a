import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { startApi, type ApiWorld } from "./apiserver-world.ts";

describe("watch and list", () => {
  let api: ApiWorld;
  let maps = "";
  before(async () => {
    api = await startApi("watch");
    maps = `/api/v1/namespaces/${api.namespace}/configmaps`;
  });
  after(async () => api[Symbol.asyncDispose]());

  const create = async (name: string, labels: Record<string, string> = {}): Promise<string> => {
    const { code, body } = await api.client.call("POST", maps, { body: { metadata: { name, labels } } });
    assert.equal(code, 201, JSON.stringify(body));
    return body.metadata.resourceVersion;
  };
  const label = async (name: string, labels: Record<string, string | null>): Promise<void> => {
    const { code } = await api.client.call("PATCH", `${maps}/${name}`, {
      type: "application/merge-patch+json",
      body: { metadata: { labels } },
    });
    assert.equal(code, 200);
  };
  const revision = async (): Promise<string> => (await api.client.call("GET", maps)).body.metadata.resourceVersion;

  it("shows creation, change and deletion, in order", async () => {
    const watch = api.client.watch(
      `${maps}?watch=true&resourceVersion=${await revision()}&fieldSelector=metadata.name=seen`,
    );
    await watch.code;
    await create("unseen");
    await create("seen");
    await label("seen", { a: "1" });
    await api.client.call("DELETE", `${maps}/seen`);
    const events = [await watch.next(), await watch.next(), await watch.next()];
    watch.close();
    assert.deepEqual(
      events.map((event) => [event.type, event.object.metadata.name]),
      [
        ["ADDED", "seen"],
        ["MODIFIED", "seen"],
        ["DELETED", "seen"],
      ],
    );
    const revisions = events.map((event) => Number(event.object.metadata.resourceVersion));
    assert.deepEqual(
      revisions,
      revisions.toSorted((a, b) => a - b),
    );
  });

  it("shows an object that comes under a selector as added and one that leaves it as deleted", async () => {
    await create("moving");
    const watch = api.client.watch(`${maps}?watch=true&resourceVersion=${await revision()}&labelSelector=in%3Dyes`);
    await watch.code;
    await label("moving", { in: "yes" });
    await label("moving", { in: "yes", other: "1" });
    await label("moving", { in: null });
    const types = [await watch.next(), await watch.next(), await watch.next()].map(({ type }) => type);
    watch.close();
    assert.deepEqual(types, ["ADDED", "MODIFIED", "DELETED"]);
  });

  it("resumes at a revision without a gap and without a repetition", async () => {
    const start = await revision();
    for (const name of ["r1", "r2", "r3"]) await create(name);
    const first = api.client.watch(`${maps}?watch=true&resourceVersion=${start}`);
    const one = await first.next();
    first.close();
    const second = api.client.watch(`${maps}?watch=true&resourceVersion=${one.object.metadata.resourceVersion}`);
    const names = [one, await second.next(), await second.next()].map(({ object }) => object.metadata.name);
    second.close();
    assert.deepEqual(names, ["r1", "r2", "r3"]);
  });

  it("begins with what there is, and says where that ends", async (t) => {
    await create("initial");
    const query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    const watch = api.client.watch(`${maps}?${query}`);
    const names: string[] = [];
    for (let event = await watch.next(); ; event = await watch.next()) {
      if (!api.own && event.type === "ERROR") {
        assert.match(event.object.message, /RequestWatchProgress is disabled/);
        t.diagnostic("a real server can with etcd 3.4.25 and newer only");
        watch.close();
        return;
      }
      if (event.type === "BOOKMARK") {
        assert.equal(event.object.metadata.annotations["k8s.io/initial-events-end"], "true");
        break;
      }
      names.push(event.object.metadata.name);
    }
    watch.close();
    assert.ok(names.includes("initial"));
  });

  it("ends when its time is over", async () => {
    const watch = api.client.watch(`${maps}?watch=true&timeoutSeconds=1&resourceVersion=${await revision()}`);
    assert.equal(await watch.next(), undefined);
  });

  it("refuses a revision that nobody gave out", async () => {
    const { code, body } = await api.client.call("GET", `${maps}?watch=true&resourceVersion=abc`);
    assert.equal(code, api.own ? 400 : 500, JSON.stringify(body));
  });

  it("answers 410 for a revision that is too old", async (t) => {
    if (!api.own) {
      t.diagnostic("a real server keeps five minutes of changes: not waited for");
      return;
    }
    const start = await create("old");
    for (let round = 0; round < 26; round++) {
      await Promise.all(Array.from({ length: 100 }, async (_, index) => label("old", { n: `${round}-${index}` })));
    }
    const { code, body } = await api.client.call("GET", `${maps}?watch=true&resourceVersion=${start}`);
    assert.deepEqual([code, body.reason], [410, "Expired"]);
  });

  it("pages through one consistent state, whatever happens meanwhile", async () => {
    for (const name of ["p1", "p2", "p3", "p4", "p5"]) await create(name, { page: "1" });
    const query = "labelSelector=page%3D1&limit=2";
    const one = (await api.client.call("GET", `${maps}?${query}`)).body;
    assert.equal(one.metadata.remainingItemCount ?? 3, 3);
    await api.client.call("DELETE", `${maps}/p4`);
    await create("p3a", { page: "1" });
    const names: string[] = one.items.map((item: { metadata: { name: string } }) => item.metadata.name);
    for (let token = one.metadata.continue; token !== undefined;) {
      const next = (await api.client.call("GET", `${maps}?${query}&continue=${encodeURIComponent(token)}`)).body;
      assert.equal(next.metadata.resourceVersion, one.metadata.resourceVersion);
      names.push(...next.items.map((item: { metadata: { name: string } }) => item.metadata.name));
      token = next.metadata.continue;
    }
    assert.deepEqual(names, ["p1", "p2", "p3", "p4", "p5"]);
  });

  it("tells a change as it comes", async (t) => {
    const watch = api.client.watch(`${maps}?watch=true&resourceVersion=${await revision()}&labelSelector=timed`);
    await watch.code;
    const delays: number[] = [];
    for (let index = 0; index < 30; index++) {
      const start = performance.now();
      const created = create(`timed-${index}`, { timed: "1" });
      await watch.next();
      delays.push(performance.now() - start);
      await created;
    }
    watch.close();
    const median = delays.toSorted((a, b) => a - b)[15] ?? 0;
    t.diagnostic(`create to event: median ${median.toFixed(1)} ms`);
    assert.ok(median < 1_000, `median ${median} ms`); // milliseconds; but also a busy machine must pass
  });
});
