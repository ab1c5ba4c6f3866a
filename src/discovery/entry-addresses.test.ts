import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { objectKey, type ServiceEntry } from "#kube";
import { EntryAddresses } from "./entry-addresses.ts";

type Spec = NonNullable<ServiceEntry["spec"]>;

function entry(
  name: string,
  spec: Spec,
  more: { created?: string; labels?: Record<string, string> } = {},
): ServiceEntry {
  const { created = "2026-01-01T00:00:00Z", labels = {} } = more;
  return {
    metadata: { name, namespace: "shop", creationTimestamp: created, labels },
    spec: { hosts: [`${name}.example.com`], resolution: "DNS", ...spec },
  };
}

function withAddresses(one: ServiceEntry, ...values: readonly string[]): ServiceEntry {
  return { ...one, status: { addresses: values.map((value) => ({ value, host: one.spec?.hosts?.[0] ?? "" })) } };
}

/** Addresses of one host, as they were decided. */
function given(addresses: EntryAddresses, host: string): readonly string[] {
  return addresses
    .take()
    .verdicts.flatMap((verdict) => verdict.addresses.filter((one) => one.host === host).map(({ value }) => value));
}

function book(...entries: readonly ServiceEntry[]): EntryAddresses {
  const addresses = new EntryAddresses();
  for (const one of entries) addresses.set(objectKey(one), one);
  return addresses;
}

test("every host without an address gets one of each family, the same on every replica and each time", () => {
  const api = entry("api", { hosts: ["api.example.com", "www.example.com", "*.example.com"] });
  const [verdict] = book(api).take().verdicts;
  assert.deepEqual(
    verdict?.addresses.map(({ host }) => host),
    ["api.example.com", "api.example.com", "www.example.com", "www.example.com"],
  );
  for (const [index, { value }] of (verdict?.addresses ?? []).entries()) {
    assert.match(value, index % 2 === 0 ? /^240\.240\.\d+\.\d+$/ : /^2001:2::[\da-f]{1,4}$/);
  }
  assert.equal(new Set(verdict?.addresses.map(({ value }) => value)).size, 4);
  assert.deepEqual(book(entry("other", {}), api).take().verdicts[0], verdict);
});

test("nothing is given where it could not be used or is not wanted, and taken back where it was", () => {
  const none = [
    entry("none", { resolution: "NONE" }),
    entry("own", { addresses: ["10.1.2.3"] }),
    entry("out", {}, { labels: { "networking.istio.io/enable-autoallocate-ip": "False" } }),
    entry("wild", { hosts: ["*.example.com"] }),
  ];
  assert.deepEqual(book(...none).take().verdicts, []);
  const before = none.map((one) => withAddresses(one, "240.240.0.9", "2001:2::9"));
  assert.deepEqual(
    book(...before)
      .take()
      .verdicts.map((verdict) => verdict.addresses),
    [[], [], [], []],
  );
  const dynamic = entry("dynamic", { hosts: ["*.example.com"], resolution: "DYNAMIC_DNS" });
  assert.equal(given(book(dynamic), "*.example.com").length, 2);
});

test("what was given stays, whoever gave it; a new host gets its own, one that is gone loses its", () => {
  const api = withAddresses(entry("api", {}), "240.240.77.1", "2001:2::7:7");
  const addresses = book(api);
  assert.deepEqual(addresses.take().verdicts, []);
  const grown = { ...api, spec: { ...api.spec, hosts: ["www.example.com", "api.example.com"] } };
  addresses.set("shop/api", grown);
  const [verdict] = addresses.take().verdicts;
  assert.equal(verdict?.addresses.length, 4);
  assert.deepEqual(
    verdict?.addresses.slice(2).map(({ value }) => value),
    ["240.240.77.1", "2001:2::7:7"],
  );
  addresses.set("shop/api", { ...api, spec: { ...api.spec, hosts: ["www.example.com"] } });
  const [moved] = addresses.take().verdicts;
  assert.deepEqual(moved?.addresses, verdict?.addresses.slice(0, 2), "a host that comes back has what it had");
});

test("an address is one entry's: its author's who wrote it down, or else the oldest one's", () => {
  const old = withAddresses(entry("old", {}), "240.240.5.5");
  const young = withAddresses(entry("young", {}, { created: "2026-01-02T00:00:00Z" }), "240.240.5.5");
  const addresses = book(young, old);
  const moved = given(addresses, "young.example.com");
  assert.ok(moved.length === 2 && !moved.includes("240.240.5.5"));
  addresses.set("shop/young", withAddresses(young, ...moved));
  assert.deepEqual(addresses.take().verdicts, []);

  addresses.set("shop/author", entry("author", { addresses: ["240.240.5.5"] }, { created: "2026-01-03T00:00:00Z" }));
  const again = given(addresses, "old.example.com");
  assert.ok(again.length === 2 && !again.includes("240.240.5.5") && !moved.some((ip) => again.includes(ip)));
});

test("two replicas that decide at the same time end with an address for each host, and write no more", () => {
  const change = fc.record({
    name: fc.integer({ min: 0, max: 5 }),
    kind: fc.integer({ min: 0, max: 3 }),
    replica: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 20 }), (changes) => {
      const store = new Map<string, ServiceEntry>();
      const replicas = [new EntryAddresses(), new EntryAddresses()];
      const put = (one: ServiceEntry): void => {
        store.set(objectKey(one), one);
        for (const replica of replicas) replica.set(objectKey(one), one);
      };
      /** A write is refused when the object is another one by now. */
      const write = (replica: EntryAddresses | undefined): number => {
        const verdicts = replica?.take().verdicts ?? [];
        for (const { entry: of, addresses } of verdicts) {
          if (store.get(objectKey(of)) === of) put({ ...of, status: { addresses } });
        }
        return verdicts.length;
      };
      for (const { name, kind, replica } of changes) {
        const key = `shop/e${name}`;
        if (kind === 0) {
          store.delete(key);
          for (const each of replicas) each.set(key, undefined);
        } else {
          // Two kinds claim the same address: as if written by a replica that had not seen the other.
          const made = entry(`e${name}`, kind === 1 ? {} : { hosts: [`e${name}.a`, `e${name}.b`] });
          put(kind === 3 ? withAddresses(made, "240.240.9.9") : made);
        }
        write(replicas[replica ? 1 : 0]);
      }
      let rounds = 0;
      while (write(replicas[0]) + write(replicas[1]) > 0) assert.ok(rounds++ < 20, "it goes on and on");
      const all = [...store.values()].flatMap((one) => one.status?.addresses?.map(({ value }) => value) ?? []);
      assert.equal(new Set(all).size, all.length);
      for (const one of store.values()) {
        const hosts = new Set(one.status?.addresses?.map(({ host }) => host));
        assert.deepEqual(hosts, new Set(one.spec?.hosts));
      }
    }),
    { numRuns: 300 },
  );
});
