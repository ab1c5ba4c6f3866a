import assert from "node:assert/strict";
import { test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { KubeClient, resources } from "#kube";
import { FakeApi } from "../kube/testing.ts";
import type { LeaderClient } from "./leader-client.ts";
import { TrustBundles } from "./trust-bundles.ts";

const clock = systemClock();
const ROOTS = "the roots";

test("a bundle that somebody changes is corrected, and one that they change again and again is left to them", async () => {
  const api = await FakeApi.start();
  const shared = { log: silentLog(), clock, random: seededRandom(1) };
  const client = new KubeClient({ config: api.config, ...shared });
  const leader: Pick<LeaderClient, "leading" | "onLeading" | "create" | "patch"> = {
    leading: true,
    onLeading: () => () => {},
    create: client.create.bind(client),
    patch: client.patch.bind(client),
  };
  const foreign: string[] = [];
  const bundles = new TrustBundles({
    ...shared,
    client,
    leader,
    bundleName: "roots",
    authority: { trustBundlePem: ROOTS, onTrustBundle: () => () => {} },
    onForeign: (namespace) => foreign.push(namespace),
  });
  try {
    await client.create(resources.namespaces, { metadata: { name: "shop" } });
    await bundles.start(new AbortController().signal);
    const at = { namespace: "shop", name: "roots" };
    const text = async (): Promise<string | undefined> =>
      (await client.find(resources.configMaps, at))?.data?.["root-cert.pem"];
    const settled = async (): Promise<boolean> => foreign.length > 0 || (await text()) === ROOTS;
    let changes = 0;
    do {
      while (!(await settled())) await sleep(clock, 5);
      changes++;
      await client.patch(resources.configMaps, at, {
        type: "merge",
        body: { data: { "root-cert.pem": `theirs ${changes}` } },
      });
      while (!(await settled())) await sleep(clock, 5);
    } while (foreign.length === 0 && changes < 50);
    assert.deepEqual(foreign, ["shop"]);
    assert.equal(changes, 6);
    assert.equal(await text(), "theirs 6");
  } finally {
    await bundles.drain(0);
    client.close();
    await api.stop();
  }
});
