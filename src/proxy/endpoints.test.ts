import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseIp } from "#base/ip";
import { seededRandom } from "#base/random";
import type { Service, Workload } from "#model/workload";
import { chooseAddress, chooseEndpoint } from "./endpoints.ts";
import { testService, testWorkload } from "./testing.ts";

const place = (region: string, zone: string, node: string): Partial<Workload> => ({
  locality: { region, zone, subzone: "" },
  node,
});
const east: Partial<Workload> = {
  network: "east",
  networkGateway: {
    destination: { kind: "address", network: "east", address: parseIp("198.51.100.1") },
    hboneMtlsPort: 15_008,
  },
};
const source = testWorkload("client", "10.1.0.1", place("r1", "z1", "n1"));

function choose(balancing: Partial<Service["loadBalancing"]>, endpoints: Workload[], unit = (): number => 0): string {
  const web = testService("web", "10.96.0.1");
  const service = { ...web, loadBalancing: { ...web.loadBalancing, ...balancing } };
  const request = { service, servicePort: 80, requested: parseIp("10.96.0.1"), source, sourceNetwork: "" };
  const chosen = chooseEndpoint(request, endpoints, unit);
  return typeof chosen === "string" ? chosen : chosen.workload.name;
}

describe("chooseEndpoint", () => {
  const near = testWorkload("near", "10.1.0.2", place("r1", "z1", "n2"));
  const region = testWorkload("region", "10.1.0.3", place("r1", "z2", "n3"));
  const far = testWorkload("far", "10.1.0.4", place("r2", "z3", "n4"));
  const zoneOnly = testWorkload("zone-only", "10.1.0.5", place("r2", "z1", "n5"));

  it("keeps the longest row of matching scopes when it fails over", () => {
    const failover = { mode: "failover", routingPreference: ["region", "zone"] } as const;
    assert.equal(choose(failover, [far, region, near]), "near");
    assert.equal(choose(failover, [far, region]), "region");
    assert.equal(choose(failover, [zoneOnly]), "zone-only", "nothing matches: still used");
    assert.equal(choose(failover, [zoneOnly, region]), "region", "a later scope alone is no row");
  });

  it("lets a network that comes first outweigh the rest without ending the row", () => {
    const failover = { mode: "failover", routingPreference: ["network", "region", "zone"] } as const;
    const remoteNear = testWorkload("remote-near", "10.1.0.6", { ...place("r1", "z1", "n1"), ...east });
    assert.equal(choose(failover, [remoteNear, far]), "far");
    const remoteFar = testWorkload("remote-far", "10.1.0.7", { ...place("r9", "z9", "n9"), ...east });
    assert.equal(choose(failover, [remoteFar, remoteNear]), "remote-near");
  });

  it("excludes what does not match every scope when it is strict", () => {
    const strict = { mode: "strict", routingPreference: ["node"] } as const;
    assert.equal(choose(strict, [near, far]), "no_endpoint");
    assert.equal(choose(strict, [near, testWorkload("here", "10.1.0.8", place("r1", "z1", "n1"))]), "here");
  });

  it("spreads by capacity and never uses capacity 0", () => {
    const random = seededRandom(1);
    const heavy = testWorkload("heavy", "10.1.0.2", { capacity: 3 });
    const light = testWorkload("light", "10.1.0.3");
    const never = testWorkload("never", "10.1.0.4", { capacity: 0 });
    const counts = { heavy: 0, light: 0, never: 0 };
    for (let i = 0; i < 4000; i++) {
      const name = choose({}, [never, heavy, light], () => random.unit());
      if (name === "heavy" || name === "light" || name === "never") counts[name]++;
    }
    assert.equal(counts.never, 0);
    assert.ok(Math.abs(counts.heavy - 3000) < 150, `heavy was chosen ${counts.heavy} times of 4000`);
    assert.equal(choose({}, [never]), "no_endpoint");
  });

  it("prefers the port of the workload over that of the service, and needs one", () => {
    const web = testService("web", "10.96.0.1", { ports: [{ servicePort: 80, targetPort: 0 }] });
    const named = testWorkload("named", "10.1.0.2", {
      services: { "shop/web.shop.svc.cluster.local": [{ servicePort: 80, targetPort: 3000 }] },
    });
    const request = { service: web, servicePort: 80, requested: parseIp("10.96.0.1"), source, sourceNetwork: "" };
    const chosen = chooseEndpoint(request, [near, named], () => 0.99);
    assert.deepEqual(typeof chosen === "string" ? chosen : chosen.port, 3000);
    assert.equal(
      chooseEndpoint({ ...request, servicePort: 81 }, [named], () => 0),
      "no_such_port",
    );
  });
});

describe("chooseAddress", () => {
  const dual = testWorkload("dual", "10.1.0.2", { addresses: [parseIp("fd00::2"), parseIp("10.1.0.2")] });
  it("keeps the requested address, else its family, within what the service allows", () => {
    assert.equal(chooseAddress(dual, parseIp("fd00::2")), "fd00::2");
    assert.equal(chooseAddress(dual, parseIp("10.96.0.1")), "10.1.0.2");
    assert.equal(chooseAddress(dual, parseIp("fd00::9")), "fd00::2");
    assert.equal(chooseAddress(dual, parseIp("fd00::9"), "ipv4"), "10.1.0.2");
    assert.equal(chooseAddress(testWorkload("v4", "10.1.0.3"), parseIp("10.96.0.1"), "ipv6"), undefined);
  });
});
