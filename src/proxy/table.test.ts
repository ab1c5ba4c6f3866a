import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { parseCidr, parseIp } from "#base/ip";
import { addressName, type Address, type Workload } from "#model/workload";
import { WorkloadTable } from "./table.ts";
import { testService, testWorkload } from "./testing.ts";

const ip = parseIp("10.96.0.1");

function tableOf(...addresses: Address[]): WorkloadTable {
  const table = new WorkloadTable();
  table.apply({ upserts: addresses, removes: [], old: true }, 0);
  return table;
}

const names = (endpoints: Iterable<Workload>): string[] => [...endpoints].map(({ name }) => name).toSorted();

describe("WorkloadTable", () => {
  it("keeps endpoints that come before their service", () => {
    const table = tableOf(testWorkload("a", "10.1.0.1", { services: { "shop/web.shop.svc.cluster.local": [] } }));
    assert.deepEqual(
      table.all().staged.map(([name]) => name),
      ["shop/web.shop.svc.cluster.local"],
    );
    const web = testService("web", "10.96.0.1");
    table.apply({ upserts: [web], removes: [], old: false }, 0);
    assert.deepEqual(names(table.endpoints(web)), ["a"]);
    assert.deepEqual(
      table.all().staged.map(([name]) => name),
      [],
    );
    table.apply({ upserts: [], removes: [addressName(web)], old: false }, 0);
    assert.deepEqual(
      table.all().staged.map(([name]) => name),
      ["shop/web.shop.svc.cluster.local"],
    );
  });

  it("forgets endpoints that leave the service or go away", () => {
    const web = testService("web", "10.96.0.1");
    const a = testWorkload("a", "10.1.0.1", { services: { [addressName(web)]: [] } });
    const table = tableOf(web, a, { ...a, uid: "b", name: "b" });
    assert.deepEqual(names(table.endpoints(web)), ["a", "b"]);
    table.apply({ upserts: [{ ...a, services: {} }], removes: ["b"], old: false }, 0);
    assert.deepEqual(names(table.endpoints(web)), []);
  });

  it("applies removals before upserts of one change", () => {
    const web = testService("web", "10.96.0.1");
    const table = tableOf(web);
    table.apply({ upserts: [web], removes: [addressName(web)], old: false }, 0);
    assert.equal(table.findServiceByVip("", ip, "shop")?.name, "web");
  });

  it("prefers the client's namespace, then the canonical service, for a shared address", () => {
    const table = tableOf(
      testService("x", "10.96.0.1", { namespace: "one", canonical: false }),
      testService("y", "10.96.0.1", { namespace: "two" }),
    );
    assert.equal(table.findServiceByVip("", ip, "one")?.name, "x");
    assert.equal(table.findServiceByVip("", ip, "two")?.name, "y");
    assert.equal(table.findServiceByVip("", ip, "three")?.name, "y");
  });

  it("finds prefixes after exact addresses: own namespace before length, length before canonical", () => {
    const prefix = (name: string, text: string, namespace = "shop"): Address => {
      const { address, length } = parseCidr(text);
      return testService(name, undefined, { namespace, addresses: [{ network: "", address, length }] });
    };
    const table = tableOf(
      prefix("wide", "10.96.0.0/16"),
      prefix("narrow", "10.96.0.0/24"),
      prefix("own", "10.96.0.0/8", "mine"),
      prefix("six", "::/0"),
      testService("exact", "10.96.0.1"),
      testService("hidden", "10.96.0.2", { namespace: "secret", visibility: "namespace" }),
    );
    assert.equal(table.findServiceByVip("", ip, "shop")?.name, "exact");
    assert.equal(
      table.findServiceByVip("", parseIp("10.96.0.2"), "shop")?.name,
      "narrow",
      "hidden exact falls through",
    );
    assert.equal(table.findServiceByVip("", parseIp("10.96.0.2"), "secret")?.name, "hidden");
    assert.equal(table.findServiceByVip("", parseIp("10.96.9.1"), "shop")?.name, "wide");
    assert.equal(table.findServiceByVip("", parseIp("10.96.9.1"), "mine")?.name, "own");
    assert.equal(table.findServiceByVip("", parseIp("11.0.0.1"), "shop"), undefined);
    assert.equal(table.findServiceByVip("east", parseIp("10.96.9.1"), "shop"), undefined);
    table.apply({ upserts: [], removes: ["shop/narrow.shop.svc.cluster.local"], old: false }, 0);
    assert.equal(table.findServiceByVip("", parseIp("10.96.0.2"), "shop")?.name, "wide");
  });

  it("is the same on every thread that gets the same packets, however often they are packed anew", () => {
    const [main, thread] = [new WorkloadTable(), new WorkloadTable()];
    const put = (upserts: readonly Address[], removes: readonly string[] = []): void => {
      const { change } = main.pack({ upserts, removes, old: false });
      for (const table of [main, thread]) table.apply(change, 7);
    };
    const web = testService("web", "10.96.0.1");
    const pods = Array.from({ length: 600 }, (_, i) =>
      testWorkload(`w${i}`, `10.1.${i >> 8}.${i & 255}`, { services: { [addressName(web)]: [] } }),
    );
    put([web]);
    for (const pod of pods) put([pod]); // one packet each, as they come one by one
    for (const pod of pods.slice(0, 100)) put([], [pod.uid]);
    let packedAnew = 0;
    for (let part = main.wasteful(500); part.length > 0; part = main.wasteful(500)) {
      packedAnew += part.length;
      put(part);
    }
    assert.ok(packedAnew >= 300, `${packedAnew} of 501 packed anew`);
    for (const table of [main, thread]) {
      assert.equal(table.size, 501);
      assert.equal([...table.endpoints(web)].length, 500);
      assert.equal(table.findWorkloadByIp("", parseIp("10.1.0.99")), undefined);
      assert.equal(table.findWorkloadByIp("", parseIp("10.1.2.0"))?.name, "w512");
      assert.equal(table.enrolledSinceMs(pods[599]?.uid ?? ""), 7);
    }
    put([{ ...(pods[599] ?? assert.fail()), healthy: false }]);
    assert.equal([...thread.endpoints(web)].filter(({ healthy }) => !healthy).length, 1, "a list is made anew");
  });

  it("takes the last of two addresses of one name in one packet", () => {
    const a = testWorkload("a", "10.1.0.1");
    const table = tableOf(a, { ...a, node: "other" });
    assert.equal(table.size, 1);
    assert.equal(table.findWorkload(a.uid)?.node, "other");
    table.apply({ upserts: [], removes: [a.uid], old: false }, 0);
    assert.equal(table.size, 0);
  });

  it("equals a plain list on any sequence of changes", () => {
    const address = fc.record({
      uid: fc.constantFrom("c//Pod/a", "c//Pod/b", "entry"),
      last: fc.integer({ min: 1, max: 3 }),
      service: fc.constantFrom("s/1", "s/2"),
      hbone: fc.boolean(),
    });
    const step = fc.oneof(address, fc.record({ remove: fc.constantFrom("c//Pod/a", "c//Pod/b", "entry", "s/none") }));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        const table = new WorkloadTable();
        const plain = new Map<string, Workload>();
        for (const one of steps) {
          if ("remove" in one) {
            table.apply({ upserts: [], removes: [one.remove], old: false }, 0);
            plain.delete(one.remove);
          } else {
            const workload = testWorkload("w", `10.0.0.${one.last}`, {
              uid: one.uid,
              services: { [one.service]: [] },
              tunnelProtocol: one.hbone ? "hbone" : "none",
            });
            table.apply({ upserts: [workload], removes: [], old: false }, 0);
            plain.set(one.uid, workload);
          }
        }
        for (const last of [1, 2, 3]) {
          const owners = [...plain.values()].filter(({ addresses }) => addresses[0] === `10.0.0.${last}`);
          const found = table.findWorkloadByIp("", parseIp(`10.0.0.${last}`));
          assert.equal(found === undefined, owners.length === 0);
          if (owners.some(({ uid }) => uid.includes("//Pod/"))) assert.match(found?.uid ?? "", /Pod/);
        }
        for (const hostname of ["1", "2"]) {
          const service = testService("x", undefined, { namespace: "s", hostname });
          const expected = [...plain.values()].filter((workload) => `s/${hostname}` in workload.services);
          assert.equal([...table.endpoints(service)].length, expected.length);
        }
        assert.equal(table.size, plain.size);
      }),
    );
  });
});
