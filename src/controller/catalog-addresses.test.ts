import assert from "node:assert/strict";
import { test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { istioNetworkingResources, KubeClient } from "#kube";
import { decodeAddress } from "#proto";
import { ResourceCache, TYPE_ADDRESS } from "#xds";
import { FakeApi } from "../kube/testing.ts";
import { Catalog } from "./catalog.ts";
import { aloneInLead } from "./testing.ts";

const clock = systemClock();
const cluster = { clusterId: "Kubernetes", network: "", trustDomain: "cluster.local", clusterDomain: "cluster.local" };
const ENTRIES = "/apis/networking.istio.io/v1/namespaces/shop/serviceentries";

test("two replicas give a ServiceEntry its addresses, once, and publish them", async () => {
  const api = await FakeApi.start();
  const shared = { clock, random: systemRandom, log: silentLog() };
  const client = new KubeClient({ config: api.config, ...shared });
  const caches = [new ResourceCache(), new ResourceCache()];
  const catalogs = caches.map(
    (cache) => new Catalog({ client, leader: aloneInLead(client), cluster, cache, ...shared }),
  );
  try {
    await Promise.all(catalogs.map((catalog) => catalog.start(AbortSignal.timeout(20_000))));
    const spec = { hosts: ["api.example.com"], resolution: "DNS", ports: [{ number: 443, name: "tls" }] };
    api.put(ENTRIES, { metadata: { name: "api", namespace: "shop" }, spec });
    const published = (cache: ResourceCache): readonly string[] => {
      const found = cache.get(TYPE_ADDRESS, "shop/api.example.com");
      const address = found && decodeAddress(found.value);
      return address?.kind === "service" ? address.addresses.map((one) => one.address) : [];
    };
    for (let left = 2_000; left > 0 && !caches.every((cache) => published(cache).length === 2); left--)
      await sleep(clock, 5);
    const { status } = await client.get(istioNetworkingResources.serviceEntries, "api", "shop");
    const written = status?.addresses?.map(({ value }) => value);
    for (const cache of caches) assert.deepEqual(published(cache), written);
    assert.match(written?.join(" ") ?? "", /^240\.240\.\d+\.\d+ 2001:2::[\da-f]+$/);
    const seen = api.requests.filter((line) => line.startsWith("PATCH")).length;
    await sleep(clock, 100);
    assert.ok(
      seen <= 2 && api.requests.filter((line) => line.startsWith("PATCH")).length === seen,
      "written again and again",
    );
  } finally {
    await Promise.all(catalogs.map((catalog) => catalog.drain(0)));
    client.close();
    await api.stop();
  }
});
