import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { startApi, until, type ApiWorld } from "./apiserver-world.ts";

describe("kill -9", () => {
  let api: ApiWorld;
  let maps = "";
  before(async () => {
    api = await startApi("crash");
    assert.ok(api.own, "this suite kills its server; unset VEIL_TEST_KUBECONFIG for it");
    maps = `/api/v1/namespaces/${api.namespace}/configmaps`;
  });
  after(async () => api[Symbol.asyncDispose]());

  it("loses nothing that was acknowledged, at any moment", async (t) => {
    /** What the server acknowledged last for each name: a value, or that it is gone. */
    const acknowledged = new Map<string, string | undefined>();
    /** What was asked for and not answered: it may or may not have happened. */
    const open = new Map<string, string | undefined>();
    let writes = 0;
    const writer = async (id: number, stopped: () => boolean): Promise<void> => {
      for (let round = 0; !stopped(); round++) {
        const name = `w${id}-${round % 7}`;
        const exists = acknowledged.get(name) !== undefined;
        const value = exists && round % 5 === 4 ? undefined : `${id}-${round}-${"x".repeat(500)}`;
        open.set(name, value);
        const body = { metadata: { name }, data: { value } };
        const call =
          value === undefined
            ? api.client.call("DELETE", `${maps}/${name}`)
            : exists
              ? api.client.call("PUT", `${maps}/${name}`, { body })
              : api.client.call("POST", maps, { body });
        const { code } = await call.catch(() => ({ code: 0 }));
        if (code === 0) return;
        if (code < 300) acknowledged.set(name, value);
        open.delete(name);
        writes++;
      }
    };
    for (let kill = 0; kill < 8; kill++) {
      let dead = false;
      const writers = Array.from({ length: 8 }, async (_, id) => writer(id, () => dead));
      const enough = writes + 30;
      await until(async () => writes >= enough, "a load of writes");
      await new Promise((resolve) => setTimeout(resolve, kill * 37));
      api.kill();
      dead = true;
      await Promise.all(writers);
      await api.restart();
      const { body } = await api.client.call("GET", maps);
      const found = new Map<string, string>(
        body.items.map((item: { metadata: { name: string }; data?: { value: string } }) => [
          item.metadata.name,
          item.data?.value,
        ]),
      );
      for (const [name, value] of acknowledged) {
        const possible = open.has(name) ? [value, open.get(name)] : [value];
        assert.ok(
          possible.includes(found.get(name)),
          `${name} is ${found.get(name)?.slice(0, 20)}, acknowledged was ${value?.slice(0, 20)}`,
        );
      }
      for (const [name] of open) {
        const value = found.get(name);
        if (value === undefined) acknowledged.delete(name);
        else acknowledged.set(name, value);
      }
      open.clear();
    }
    t.diagnostic(`${writes} acknowledged writes, 8 kills`);
  });

  it("lets watches resume across it", async () => {
    const { body } = await api.client.call("GET", maps);
    await api.client.call("POST", maps, { body: { metadata: { name: "before" } } });
    await api.killAndRestart();
    await api.client.call("POST", maps, { body: { metadata: { name: "after" } } });
    const watch = api.client.watch(`${maps}?watch=true&resourceVersion=${body.metadata.resourceVersion}`);
    const names = [await watch.next(), await watch.next()].map(({ object }) => object.metadata.name);
    watch.close();
    assert.deepEqual(names, ["before", "after"]);
  });

  it("keeps the authority and the tokens", async () => {
    const { body } = await api.client.call(
      "POST",
      `/api/v1/namespaces/${api.namespace}/serviceaccounts/default/token`,
      { body: { spec: { audiences: ["a"] } } },
    );
    await api.killAndRestart();
    const review = await api.client.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {
      body: { spec: { token: body.status.token, audiences: ["a"] } },
    });
    assert.equal(review.body.status.authenticated, true);
  });

  it("an authority that cannot be read stops the start and stays as it is", async () => {
    api.kill();
    const path = join(api.dataDir, "pki/ca.key");
    const good = readFileSync(path);
    writeFileSync(path, "damaged");
    await assert.rejects(api.restart(), new RegExp(`ca\\.(crt|key)[\\s\\S]*APISERVER_DATA_UNREADABLE`));
    assert.equal(readFileSync(path, "utf8"), "damaged");
    writeFileSync(path, good);
    await api.restart();
    assert.equal((await api.client.call("GET", maps)).code, 200);
  });
});
