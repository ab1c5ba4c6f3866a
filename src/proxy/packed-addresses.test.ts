import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { IpAddress } from "#base/ip";
import { addressName, type Address, type Service, type Workload } from "#model/workload";
import { hashKey, keysOf, packAddresses, recordsOf, seedOf, servicesOf, viewPacket } from "./packed-addresses.ts";
import { testService, testWorkload } from "./testing.ts";

const text = fc.string({ unit: "grapheme", maxLength: 20 });
const ip = fc.ipV4().map((found) => found as IpAddress); // canonical already
const gateway = fc.record({
  destination: fc.record({ kind: fc.constant("hostname" as const), namespace: text, hostname: text }),
  hboneMtlsPort: fc.nat(65_535),
});
const port = fc.record({ servicePort: fc.nat(65_535), targetPort: fc.nat(65_535) });

const workload: fc.Arbitrary<Workload> = fc
  .record({
    uid: text,
    namespace: text,
    hostname: text,
    network: text,
    addresses: fc.array(ip, { maxLength: 3 }),
    services: fc.dictionary(text, fc.array(port, { maxLength: 2 }), { maxKeys: 3, noNullPrototype: true }),
    waypoint: fc.option(gateway, { nil: undefined }),
    healthy: fc.boolean(),
    hostNetwork: fc.boolean(),
    capacity: fc.nat(),
    tunnelProtocol: fc.constantFrom("none", "hbone"),
  })
  .map((more) => testWorkload("w", "10.0.0.1", more as Partial<Workload>));

const service: fc.Arbitrary<Service> = fc
  .record({
    name: text,
    namespace: text,
    hostname: text,
    addresses: fc.array(fc.record({ network: text, address: ip, length: fc.constantFrom(undefined, 16) })),
    subjectAltNames: fc.array(text, { maxLength: 3 }),
    visibility: fc.constantFrom("public", "namespace"),
  })
  .map(({ name, ...more }) => testService(name, undefined, more as Partial<Service>));

/** Without fields that are undefined, as two spellings of the same. */
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe("packed addresses", () => {
  it("are the same addresses when they are read again, with their keys and services", () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(workload, service), { maxLength: 8 }), (addresses: readonly Address[]) => {
        const packet = viewPacket(packAddresses(addresses));
        const records = [...recordsOf(packet)];
        assert.deepEqual(
          records.map((record) => plain(record.decode())),
          addresses.map(plain),
        );
        for (const [i, record] of records.entries()) {
          const address = addresses[i] ?? assert.fail();
          const hashes = (kind: Parameters<typeof hashKey>[1], key: string): number =>
            hashKey(seedOf(packet), kind, key);
          assert.equal(Buffer.from(record.name).toString(), Buffer.from(addressName(address)).toString());
          assert.deepEqual(
            [...record.keys],
            keysOf(address).map(([kind, key]) => hashes(kind, key)),
          );
          assert.deepEqual(
            [...record.services],
            servicesOf(address).map((key) => hashes("endpoints", key)),
          );
          assert.equal(record.isEnrolled, address.kind === "workload" && address.tunnelProtocol === "hbone");
        }
      }),
    );
  });

  it("are apart on the host's network, and are not found by a prefix", () => {
    const kinds = (address: Address): string =>
      keysOf(address)
        .map(([kind]) => kind)
        .join(" ");
    assert.equal(kinds(testWorkload("a", "10.0.0.1")), "name ip");
    assert.equal(
      kinds(testWorkload("a", "10.0.0.1", { hostNetwork: true, hostname: "a.b" })),
      "name hostIp workloadHost",
    );
    const prefix = { network: "", address: "10.0.0.0" as IpAddress, length: 8 };
    assert.equal(kinds(testService("a", undefined, { addresses: [prefix] })), "name serviceHost");
    assert.equal(kinds(testService("a", "10.0.0.1")), "name vip serviceHost");
  });
});
