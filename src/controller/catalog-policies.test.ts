import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { sleep, systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { securityKinds, type AuthorizationPolicy } from "#discovery";
import { KubeClient } from "#kube";
import { decodeAddress } from "#proto";
import { ResourceCache, TYPE_ADDRESS, TYPE_AUTHORIZATION } from "#xds";
import { FakeApi } from "../kube/testing.ts";
import { Catalog } from "./catalog.ts";
import { aloneInLead } from "./testing.ts";

const GROUP = "security.istio.io";
const POLICIES = `/apis/${GROUP}/v1/namespaces/shop/authorizationpolicies`;
const POD = "Kubernetes//Pod/shop/cart";

const clock = systemClock();

function policy(name: string, spec: AuthorizationPolicy["spec"]): object {
  return { metadata: { name, namespace: "shop", generation: 1 }, spec };
}

describe("a catalog of an API", () => {
  const cache = new ResourceCache();
  let api: FakeApi;
  let client: KubeClient;
  let catalog: Catalog;

  const soon = async (what: string, look: () => boolean | Promise<boolean>): Promise<void> => {
    for (let left = 2_000; left > 0; left--) {
      if (await look()) return;
      await sleep(clock, 5);
    }
    assert.fail(`waited for ${what}`);
  };
  const published = (): string[] => [...cache.names(TYPE_AUTHORIZATION)].toSorted();
  const listed = (): readonly string[] => {
    const pod = cache.get(TYPE_ADDRESS, POD);
    const address = pod && decodeAddress(pod.value);
    return address?.kind === "workload" ? address.authorizationPolicies : ["no workload"];
  };
  const condition = async (name: string): Promise<string> => {
    const { status } = await client.get(securityKinds.authorizationPolicies, name, "shop");
    const found = status?.conditions?.find(({ type }) => type === "ZtunnelAccepted");
    return `${found?.status} ${found?.reason} ${found?.message}`;
  };

  before(async () => {
    api = await FakeApi.start();
    const log = silentLog();
    const shared = { clock, random: systemRandom, log };
    client = new KubeClient({ config: api.config, ...shared });
    const names = {
      clusterId: "Kubernetes",
      network: "",
      trustDomain: "cluster.local",
      clusterDomain: "cluster.local",
    };
    catalog = new Catalog({ client, leader: aloneInLead(client), cluster: names, cache, ...shared });
    api.put("/api/v1/namespaces/shop/pods", {
      metadata: { name: "cart", namespace: "shop", labels: { app: "cart" } },
      spec: { containers: [] },
      status: { phase: "Running", podIP: "10.1.0.1" },
    });
    await catalog.start(AbortSignal.timeout(20_000));
  });
  after(async () => {
    await catalog.drain(0);
    client.close();
    await api.stop();
  });

  it("that has no policies is complete without", () => {
    assert.deepEqual([catalog.complete, catalog.fresh, published(), listed()], [true, true, [], []]);
  });

  it("tells workloads their policies, and writes what is enforced", async () => {
    api.put(POLICIES, policy("own", { selector: { matchLabels: { app: "cart" } }, action: "DENY", rules: [{}] }));
    await soon("the policy", () => published().join() === "shop/own");
    await soon("the workload's list", () => listed().join() === "shop/own");
    await soon("the status", async () => (await condition("own")).startsWith("True Accepted"));
    const peers = `/apis/${GROUP}/v1/namespaces/shop/peerauthentications`;
    api.put(peers, { metadata: { name: "strict", namespace: "shop" }, spec: { mtls: { mode: "STRICT" } } });
    const strict = "istio-system/istio_converted_static_strict";
    await soon("the static policy in the list", () => listed().join() === `${strict},shop/own`);
    api.remove(`${peers}/strict`);
    await soon("the static policy gone", () => published().join() === "shop/own" && listed().join() === "shop/own");
  });

  it("says on the object what is not enforced, and leaves other conditions alone", async () => {
    const http = policy("http", { action: "DENY", rules: [{ to: [{ operation: { paths: ["/x"] } }] }] });
    api.put(POLICIES, { ...http, status: { conditions: [{ type: "Other", status: "True" }] } });
    await soon("the status", async () => (await condition("http")).includes("NO EFFECT"));
    assert.match(await condition("http"), /^True UnsupportedValue .*HTTP \(paths\)/);
    const { status } = await client.get(securityKinds.authorizationPolicies, "http", "shop");
    assert.deepEqual(
      status?.conditions?.map(({ type }) => type),
      ["Other", "ZtunnelAccepted"],
    );
    api.put(POLICIES, policy("audit", { action: "AUDIT" }));
    await soon("the status", async () => (await condition("audit")).startsWith("False UnsupportedValue action AUDIT"));
    await sleep(clock, 100);
    const writes = api.requests.filter((line) => line.startsWith("PATCH") && line.endsWith("/http/status"));
    assert.equal(writes.length, 1, "what is there is not written again");
  });

  it("withdraws what is deleted", async () => {
    for (const name of ["own", "http", "audit"]) api.remove(`${POLICIES}/${name}`);
    await soon("no policies", () => published().length === 0 && listed().length === 0);
  });
});
