import assert from "node:assert/strict";
import { test } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { KubeClient, resources } from "#kube";
import { FakeApi } from "../kube/testing.ts";
import { followTrustBundle } from "./controller-link.ts";
import type { AgentOptions } from "./options.ts";

const clock = systemClock();

test("the roots are those of Veil's own name, beside which somebody else's do not count", async () => {
  const api = await FakeApi.start();
  const shared = { log: silentLog(), clock, random: seededRandom(1) };
  const client = new KubeClient({ config: api.config, ...shared });
  const put = async (name: string, roots: string): Promise<void> => {
    const metadata = { name, namespace: "veil-system" };
    await client.create(resources.configMaps, { metadata, data: { "root-cert.pem": roots } });
  };
  const seen: string[] = [];
  const until = async (roots: string): Promise<void> => {
    while (seen.at(-1) !== roots) await sleep(clock, 5);
  };
  const options = { ...shared, client, namespace: "veil-system", trustBundle: "istio-ca-root-cert" };
  const bundle = followTrustBundle(options as AgentOptions, (roots) => seen.push(roots)); // what it looks at
  try {
    await put("istio-ca-root-cert", "of an older controller, or Istio's");
    await Promise.all(bundle.informers.map((informer) => informer.start(new AbortController().signal)));
    await until("of an older controller, or Istio's");
    await put("veil-ca-root-cert", "Veil's");
    await until("Veil's");
    await client.patch(
      resources.configMaps,
      { name: "istio-ca-root-cert", namespace: "veil-system" },
      { type: "merge", body: { data: { "root-cert.pem": "Istio's new ones" } } },
    );
    await sleep(clock, 50);
    assert.equal(bundle.current(), "Veil's");
    assert.ok(!seen.includes("Istio's new ones"));
  } finally {
    await Promise.all(bundle.informers.map((informer) => informer.drain(0)));
    client.close();
    await api.stop();
  }
});
