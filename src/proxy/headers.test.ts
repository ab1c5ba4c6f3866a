import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { seededRandom } from "#base/random";
import {
  findTraceId,
  formatBaggage,
  formatForwarded,
  newTraceparent,
  parseBaggage,
  parseForwardedHost,
} from "./headers.ts";
import { testAddress, testService, testWorkload } from "./testing.ts";

describe("headers of a tunnel", () => {
  it("writes baggage in upstream's order and leaves empty values out", () => {
    const workload = testWorkload("cart-1", "10.1.0.1", {
      workloadType: "deployment",
      workloadName: "cart",
      canonicalName: "cart",
      canonicalRevision: "",
      locality: { region: "r1", zone: "z1", subzone: "" },
    });
    assert.equal(
      formatBaggage(workload),
      "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,cloud.region=r1,cloud.availability_zone=z1",
    );
  });

  it("reads back what it wrote", () => {
    const workload = testWorkload("cart-1", "10.1.0.1");
    assert.deepEqual(parseBaggage(formatBaggage(workload)), {
      cluster: "Kubernetes",
      namespace: "shop",
      workloadType: "pod",
      workloadName: "cart-1",
      service: "cart-1",
      revision: "latest",
    });
  });

  it("never throws on anything that a peer may send", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 6000 }), (text) => {
        parseBaggage(text);
        const host = parseForwardedHost(text);
        if (host !== undefined) assert.match(host, /^[\x21-\x7e]+$/);
      }),
    );
  });

  it("quotes the client and names the service in forwarded", () => {
    const client = testAddress("[fd00::1]:4000");
    assert.equal(formatForwarded(client, undefined), 'for="[fd00::1]:4000"');
    const text = formatForwarded(testAddress("10.1.0.1:4000"), testService("web", undefined));
    assert.equal(text, 'for="10.1.0.1:4000";host=web.shop.svc.cluster.local');
    assert.equal(parseForwardedHost(text), "web.shop.svc.cluster.local");
  });

  for (const [text, host] of [
    ['for="1.2.3.4:5";HOST="web"', "web"],
    ["host=", undefined],
    ["host=wéb", undefined],
    ["host=10.0.0.1", undefined],
    ["for=x", undefined],
  ] as const) {
    it(`reads ${JSON.stringify(text)} as ${host ?? "no host"}`, () => {
      assert.equal(parseForwardedHost(text), host);
    });
  }

  it("makes a traceparent of 55 characters, and takes the trace of one that is well formed", () => {
    const made = newTraceparent(seededRandom(1));
    assert.match(made, /^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
    assert.equal(findTraceId(made), made.slice(3, 35));
    const id = "0af7651916cd43dd8448eb211c80319c";
    assert.equal(findTraceId(`00-${id.toUpperCase()}-b7ad6b7169203331-01`), id);
    for (const wrong of [undefined, "", made.slice(1), `${made}0`, made.replace("-", "_"), "x".repeat(55)]) {
      assert.equal(findTraceId(wrong), undefined, wrong);
    }
  });

  it("reads baggage with empty values as absent, and lines that were joined as one", () => {
    const empty = parseBaggage("k8s.cluster.name=,k8s.namespace.name=,k8s.deployment.name=,service.name=,x");
    assert.ok(Object.values(empty).every((value) => value === undefined));
    const joined = parseBaggage("k8s.cluster.name=K1, k8s.namespace.name=N1, k8s.job.name=J1,service.version=V1");
    assert.deepEqual(
      [joined.cluster, joined.namespace, joined.workloadName, joined.revision, joined.service],
      ["K1", "N1", "J1", "V1", undefined],
    );
    assert.ok(Object.values(parseBaggage("")).every((value) => value === undefined));
  });
});
