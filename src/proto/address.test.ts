import assert from "node:assert/strict";
import { test } from "node:test";
import { create, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { bytesToIp, parseIp } from "#base/ip";
import type { Address, GatewayAddress, Service, ServicePort, Workload } from "#model/workload";
import { decodeAddress, encodeAddress, MAX_ADDRESS_BYTES } from "./address.ts";
import { AddressSchema, type ServiceSchema, type WorkloadSchema } from "./gen/istio/workload/workload_pb.js";

const label = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$/);
const ip = fc
  .oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.uint8Array({ minLength: 16, maxLength: 16 }))
  .map(bytesToIp);
const port: fc.Arbitrary<ServicePort> = fc.record({
  servicePort: fc.integer({ min: 1, max: 65535 }),
  targetPort: fc.integer({ min: 0, max: 65535 }),
});
const someGateway: fc.Arbitrary<GatewayAddress> = fc.record({
  destination: fc.oneof(
    fc.record({ kind: fc.constant("hostname" as const), namespace: label, hostname: label }),
    fc.record({ kind: fc.constant("address" as const), network: label, address: ip }),
  ),
  hboneMtlsPort: fc.integer({ min: 0, max: 65535 }),
});
const gateway = fc.option(someGateway, { nil: undefined });
const text = fc.string({ unit: "grapheme", maxLength: 12 });

const workload: fc.Arbitrary<Workload> = fc.record({
  kind: fc.constant("workload" as const),
  uid: fc.string({ unit: "grapheme-ascii", minLength: 1 }),
  name: label,
  namespace: label,
  addresses: fc.array(ip, { maxLength: 3 }),
  hostname: text,
  network: text,
  tunnelProtocol: fc.constantFrom("none" as const, "hbone" as const),
  trustDomain: label,
  serviceAccount: label,
  waypoint: gateway,
  networkGateway: gateway,
  node: text,
  canonicalName: text,
  canonicalRevision: text,
  workloadType: fc.constantFrom("deployment" as const, "cronjob" as const, "pod" as const, "job" as const),
  workloadName: text,
  nativeTunnel: fc.boolean(),
  services: fc.dictionary(
    fc.tuple(label, label).map(([namespace, host]) => `${namespace}/${host}`),
    fc.array(port, { maxLength: 3 }),
  ),
  authorizationPolicies: fc.array(text, { maxLength: 3 }),
  healthy: fc.boolean(),
  clusterId: text,
  locality: fc.record({ region: text, zone: text, subzone: text }),
  hostNetwork: fc.boolean(),
  capacity: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  applicationTunnel: fc.option(
    fc.record({
      protocol: fc.constantFrom("none" as const, "proxy" as const),
      port: fc.integer({ min: 0, max: 65535 }),
    }),
    { nil: undefined },
  ),
});

const service: fc.Arbitrary<Service> = fc.record({
  kind: fc.constant("service" as const),
  name: label,
  namespace: label,
  hostname: label,
  addresses: fc.array(
    fc.record({ network: label, address: ip, length: fc.option(fc.integer({ min: 0, max: 32 }), { nil: undefined }) }),
  ),
  ports: fc.array(port, { maxLength: 3 }),
  subjectAltNames: fc.array(text, { maxLength: 3 }),
  waypoint: gateway,
  weightedWaypoints: fc.array(fc.record({ waypoint: someGateway, weight: fc.nat(100) }), { maxLength: 2 }),
  loadBalancing: fc.record({
    mode: fc.constantFrom("unspecified" as const, "strict" as const, "failover" as const, "passthrough" as const),
    routingPreference: fc.array(fc.constantFrom("region" as const, "node" as const, "network" as const)),
    allowUnhealthy: fc.boolean(),
  }),
  ipFamilies: fc.constantFrom("automatic" as const, "ipv4" as const, "ipv6" as const, "dual" as const),
  canonical: fc.boolean(),
  visibility: fc.constantFrom("public" as const, "namespace" as const),
});

const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

test("an address that was encoded is read back as it was", () => {
  fc.assert(
    fc.property(fc.oneof<fc.Arbitrary<Address>[]>(workload, service), (address) => {
      assert.deepEqual(plain(decodeAddress(encodeAddress(address))), plain(address));
    }),
  );
});

test("the order of keys does not change the bytes, so equal workloads have equal versions", () => {
  fc.assert(
    fc.property(workload, (value) => {
      const turned = { ...value, services: Object.fromEntries(Object.entries(value.services).toReversed()) };
      assert.deepEqual(encodeAddress(turned), encodeAddress(value));
    }),
  );
});

test("any bytes are an address or refused with a code of ours", () => {
  const refused = (bytes: Uint8Array): void => {
    try {
      const address = decodeAddress(bytes);
      assert.deepEqual(plain(decodeAddress(encodeAddress(address))), plain(address));
    } catch (error) {
      assert.ok(error instanceof CodedError && error.code.startsWith("ADDRESS_"), String(error));
    }
  };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), refused), { numRuns: 500 });
  const damaged = fc
    .tuple(fc.oneof<fc.Arbitrary<Address>[]>(workload, service), fc.nat(), fc.nat(255), fc.nat(8))
    .map(([address, at, value, cut]) => {
      const bytes = encodeAddress(address);
      bytes[at % bytes.length] = value;
      return bytes.subarray(0, bytes.length - cut);
    });
  fc.assert(fc.property(damaged, refused), { numRuns: 1000 });
});

test("each kind of bad address has its own code and names the object", () => {
  const ofWorkload = (value: MessageInitShape<typeof WorkloadSchema>): Uint8Array =>
    toBinary(AddressSchema, create(AddressSchema, { type: { case: "workload", value: { uid: "u", ...value } } }));
  const ofService = (value: MessageInitShape<typeof ServiceSchema>): Uint8Array =>
    toBinary(
      AddressSchema,
      create(AddressSchema, { type: { case: "service", value: { namespace: "n", hostname: "h", ...value } } }),
    );
  const cases: [string, Uint8Array, RegExp][] = [
    ["ADDRESS_TOO_LARGE", new Uint8Array(MAX_ADDRESS_BYTES + 1), /1048577 bytes/],
    ["ADDRESS_MALFORMED", Uint8Array.of(0x0a, 0xff), /cannot be read/],
    ["ADDRESS_EMPTY", new Uint8Array(0), /neither/],
    ["ADDRESS_NAME", ofWorkload({ uid: "", namespace: "n", name: "p" }), /"n\/p"/],
    ["ADDRESS_NAME", ofService({ hostname: "" }), /"n\/"/],
    ["ADDRESS_IP", ofWorkload({ addresses: [new Uint8Array(3)] }), /"u": addresses\[0\].*3 bytes/],
    [
      "ADDRESS_PREFIX",
      ofService({ addresses: [{ address: new Uint8Array(4), length: 33 }] }),
      /"n\/h": addresses\[0\]/,
    ],
    ["ADDRESS_PORT", ofService({ ports: [{ servicePort: 65536, targetPort: 1 }] }), /65536/],
    ["ADDRESS_PORT", ofService({ ports: [{ servicePort: 0, targetPort: 1 }] }), /port 0/],
    ["ADDRESS_SERVICE_KEY", ofWorkload({ services: { x: { ports: [] } } }), /key "x"/],
    ["ADDRESS_IDENTITY", ofWorkload({ tunnelProtocol: 1, namespace: "a/b" }), /"u"/],
    ["ADDRESS_IDENTITY", ofWorkload({ tunnelProtocol: 1, namespace: "a", trustDomain: "TD" }), /TD/],
    ["ADDRESS_GATEWAY", ofWorkload({ waypoint: { hboneMtlsPort: 1 } }), /waypoint/],
    ["ADDRESS_GATEWAY", ofService({ weightedWaypoints: [{ weight: 1 }] }), /weighted_waypoints\[0\]/],
    ["ADDRESS_ENUM", ofWorkload({ applicationTunnel: { protocol: 7 as 0 } }) /* likewise */, /application_tunnel.*7/],
    ["ADDRESS_ENUM", ofWorkload({ tunnelProtocol: 7 as 0 }) /* a value of a later version */, /tunnel_protocol.*7/],
    ["ADDRESS_ENUM", ofService({ loadBalancing: { routingPreference: [0] } }), /routing_preference/],
    ["ADDRESS_LEGACY_TUNNEL", ofWorkload({ tunnelProtocol: 2 }), /LEGACY/],
  ];
  for (const [code, bytes, message] of cases) assert.throws(() => decodeAddress(bytes), { code, message });
});

test("what istiod leaves out on the wire has its defaults", () => {
  const bytes = toBinary(
    AddressSchema,
    create(AddressSchema, { type: { case: "workload", value: { uid: "u", addresses: [Uint8Array.of(10, 0, 0, 1)] } } }),
  );
  const address = decodeAddress(bytes);
  assert.ok(address.kind === "workload");
  assert.equal(address.trustDomain, "cluster.local");
  assert.equal(address.serviceAccount, "default");
  assert.equal(address.capacity, 1);
  assert.equal(address.healthy, true);
  assert.equal(address.tunnelProtocol, "none");
  assert.deepEqual(address.addresses, [parseIp("10.0.0.1")]);
});
