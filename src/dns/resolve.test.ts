import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip";
import { TYPE_A, TYPE_AAAA } from "./message.ts";
import { resolve, type Resolver } from "./resolve.ts";
import { dnsEndpoint, dnsResolver, dnsService, dnsTable, kubernetesService } from "./testing.ts";

const services = [
  dnsService("www.google.com", ["1.1.1.1"]),
  kubernetesService("productpage.ns1", ["9.9.9.9"]),
  kubernetesService("example.ns2", ["10.10.10.10"]),
  kubernetesService("nslocal.ns2", ["10.10.10.240"], { visibility: "namespace" }),
  kubernetesService("nslocalsame.ns1", ["10.10.10.241"], { visibility: "namespace" }),
  ...[
    ["ns2", 0],
    ["preferred-ns", 1],
    ["ns1", 2],
  ].map(([namespace, at]) => dnsService("everywhere.io", [`10.10.10.11${at}`], { namespace: String(namespace) })),
  dnsService("preferred.io", ["10.10.10.210"], { namespace: "ns2" }),
  dnsService("preferred.io", ["10.10.10.211"], { namespace: "preferred-ns" }),
  dnsService("canonical.svc", ["10.10.10.140"], { namespace: "ns2" }),
  dnsService("canonical.svc", ["10.10.10.141"], { namespace: "ns3", canonical: true }),
  dnsService("canonical.with.local", ["10.10.10.150"], { namespace: "ns1" }),
  dnsService("canonical.with.local", ["10.10.10.151"], { namespace: "ns2", canonical: true }),
  dnsService("details.ns2.svc.cluster.remote", ["11.11.11.11", "12.12.12.12", "13.13.13.13", "14.14.14.14"], {
    namespace: "ns2",
  }),
  dnsService("ipv4.localhost", ["2.2.2.2"]),
  dnsService("ipv6.localhost", ["2001:db8::ff00:42:8329"]),
  dnsService("dual.localhost", ["2.2.2.2", "2001:db8::ff00:42:8329"]),
  dnsService("*.wildcard", ["10.10.10.10"]),
  dnsService("*.b.wildcard", ["11.11.11.11"]),
  dnsService("*.svc.mesh.company.net", ["10.1.2.3"]),
  kubernetesService("nw2-only.ns1", [], {
    addresses: [{ network: "nw2", address: parseIp("20.20.20.20"), length: undefined }],
  }),
  kubernetesService("both-networks.ns1", [], {
    addresses: ["21.21.21.21", "22.22.22.22"].map((ip, at) => ({
      network: `nw${at + 1}`,
      address: parseIp(ip),
      length: undefined,
    })),
  }),
  kubernetesService("headless.ns1", []),
  kubernetesService("headless-ipv6.ns1", [], { ipFamilies: "ipv6" }),
  kubernetesService("empty.ns1", []),
  dnsService("headless.example.com", []),
  dnsService("range.example.com", [], { addresses: [{ network: "nw1", address: parseIp("10.8.0.0"), length: 16 }] }),
];
const endpoints = {
  "headless.ns1.svc.cluster.local": [
    dnsEndpoint(["30.30.30.30", "2001:db8::30"]),
    dnsEndpoint(["31.31.31.31", "2001:db8::31"]),
    dnsEndpoint(["34.34.34.34"], { healthy: false }),
  ],
  "headless-ipv6.ns1.svc.cluster.local": [dnsEndpoint(["33.33.33.33", "2001:db8::33"])],
  "headless.example.com": [dnsEndpoint(["32.32.32.32", "2001:db8::32"])],
};
const resolver = dnsResolver(dnsTable(services, endpoints), { preferredNamespace: "preferred-ns" });

/** `forward`, or the addresses in order, after the alias when there is one. */
function answerTo(name: string, type = TYPE_A, more: Partial<Resolver> = {}): string {
  const found = resolve(name, type, { ...resolver, ...more });
  if (found.kind === "forward") return "forward";
  const alias = found.strippedTo === undefined ? [] : [`=> ${name.split(".").slice(0, found.strippedTo).join(".")}`];
  return [...alias, ...found.addresses.toSorted()].join(" ");
}

const rows: readonly (readonly [said: string, name: string, expected: string, type?: number])[] = [
  ["a name outside that the mesh knows", "www.google.com", "1.1.1.1"],
  ["the same with a search domain: an alias", "www.google.com.ns1.svc.cluster.local", "=> www.google.com 1.1.1.1"],
  ["a name that nobody knows", "www.bing.com", "forward"],
  ["a service by its full name", "productpage.ns1.svc.cluster.local", "9.9.9.9"],
  ["a service by name and namespace", "productpage.ns1", "9.9.9.9"],
  ["a service by its name alone", "productpage", "9.9.9.9"],
  [
    "a short form with a search domain: an alias",
    "productpage.ns1.ns1.svc.cluster.local",
    "=> productpage.ns1 9.9.9.9",
  ],
  [
    "AAAA of an IPv4 service with a search domain",
    "productpage.ns1.ns1.svc.cluster.local",
    "=> productpage.ns1",
    TYPE_AAAA,
  ],
  ["a service of another namespace", "example.ns2", "10.10.10.10"],
  ["the same by its full name", "example.ns2.svc.cluster.local", "10.10.10.10"],
  ["the same up to svc", "example.ns2.svc", "10.10.10.10"],
  ["the same by its name alone", "example", "forward"],
  ["a service that is not to be seen from here", "nslocal.ns2.svc.cluster.local", "forward"],
  ["a service that is to be seen only from here", "nslocalsame.ns1.svc.cluster.local", "10.10.10.241"],
  ["a service of another cluster", "details.ns2.svc.cluster.remote", "11.11.11.11 12.12.12.12 13.13.13.13 14.14.14.14"],
  ["the same by name and namespace", "details.ns2", "forward"],
  ["A of a dual-stack service", "dual.localhost", "2.2.2.2"],
  ["AAAA of a dual-stack service", "dual.localhost", "2001:db8::ff00:42:8329", TYPE_AAAA],
  ["A of a service without IPv4: no records", "ipv6.localhost", ""],
  ["AAAA of a service without IPv6: no records", "ipv4.localhost", "", TYPE_AAAA],
  ["a wildcard", "foo.wildcard", "10.10.10.10"],
  ["the narrower wildcard", "a.b.wildcard", "11.11.11.11"],
  ["a wildcard below a domain", "foo.svc.mesh.company.net", "10.1.2.3"],
  ["a wildcard over two labels", "foo.foons.svc.mesh.company.net", "10.1.2.3"],
  ["a wildcard with a search domain: no alias", "foo.svc.mesh.company.net.ns1.svc.cluster.local", "10.1.2.3"],
  ["a service of another network: no records", "nw2-only.ns1.svc.cluster.local", ""],
  ["a service of both networks: this network's address", "both-networks.ns1.svc.cluster.local", "21.21.21.21"],
  ["a headless service: its healthy endpoints", "headless.ns1.svc.cluster.local", "30.30.30.30 31.31.31.31"],
  ["AAAA of a headless service", "headless.ns1.svc.cluster.local", "2001:db8::30 2001:db8::31", TYPE_AAAA],
  ["AAAA of a headless service of IPv6", "headless-ipv6.ns1.svc.cluster.local", "2001:db8::33", TYPE_AAAA],
  ["A of a headless service of IPv6: no records", "headless-ipv6.ns1.svc.cluster.local", ""],
  ["a headless service without endpoints: no records", "empty", ""],
  ["a pod of a headless service: the cluster's DNS knows it", "headless.pod0.ns1.svc.cluster.local", "forward"],
  ["the same in short", "headless.pod0.ns1", "forward"],
  ["a name outside without address", "headless.example.com", "forward"],
  ["a name outside with a prefix for an address", "range.example.com", "forward"],
  ["the preferred namespace, where the own has none", "preferred.io", "10.10.10.211"],
  ["the own namespace before all others", "everywhere.io", "10.10.10.112"],
  ["the canonical service, where the own namespace has none", "canonical.svc", "10.10.10.141"],
  ["the own namespace before the canonical service", "canonical.with.local", "10.10.10.150"],
];

for (const [said, name, expected, type] of rows) {
  test(`DNS: ${said}`, () => assert.equal(answerTo(name, type), expected));
}

test("DNS: without IPv6 there are no AAAA records", () => {
  assert.equal(answerTo("dual.localhost", TYPE_AAAA, { ipv6: false }), "");
  assert.equal(answerTo("dual.localhost", TYPE_A, { ipv6: false }), "2.2.2.2");
});

test("DNS: unhealthy endpoints are told where the service allows them", () => {
  const loadBalancing = { mode: "unspecified", routingPreference: [], allowUnhealthy: true } as const;
  const table = dnsTable([kubernetesService("headless.ns1", [], { loadBalancing })], endpoints);
  assert.equal(answerTo("headless", TYPE_A, { table }), "30.30.30.30 31.31.31.31 34.34.34.34");
});

test("DNS: every address comes first now and then", () => {
  const first = new Set<string>();
  for (let i = 0; i < 100; i++) {
    const found = resolve("details.ns2.svc.cluster.remote", TYPE_A, resolver);
    if (found.kind === "answer") first.add(found.addresses[0] ?? "");
  }
  assert.equal(first.size, 4);
});
