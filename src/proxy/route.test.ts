import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { formatHostPort, parseIp } from "#base/ip";
import type { Service } from "#model/workload";
import { decideOutbound } from "./route.ts";
import { routeLine, testAddress, testPod, testService, testView, testWorkload } from "./testing.ts";

const client = testWorkload("client", "10.1.0.1");
const server = testWorkload("server", "10.1.0.2", { services: { "shop/web.shop.svc.cluster.local": [] } });
const plain = testWorkload("plain", "10.1.0.3", {
  tunnelProtocol: "none",
  services: { "shop/old.shop.svc.cluster.local": [] },
});
const web = testService("web", "10.96.0.1");
const old = testService("old", "10.96.0.2");
const waypoint = testWorkload("waypoint", "10.1.0.9");
const gateway = {
  destination: { kind: "address", network: "", address: parseIp("10.1.0.9") },
  hboneMtlsPort: 15008,
} as const;
const all = [client, server, plain, web, old, waypoint];

const id = (account: string): string => `spiffe://cluster.local/ns/shop/sa/${account}`;

interface Row {
  readonly name: string;
  readonly to: string;
  readonly expect: string;
  readonly with?: Parameters<typeof testView>[0];
  readonly view?: Parameters<typeof testView>[1];
}

const dual = { ...server, addresses: [parseIp("10.1.0.2"), parseIp("fd00::2")] };

/** A service of these families with a workload of both: where its IPv4 address leads, and its IPv6 address. */
function dualRows(ipFamilies: Service["ipFamilies"], from4: string, from6: string): readonly Row[] {
  const addresses = ["10.96.0.1", "fd00:96::1"].map((ip) => ({ network: "", address: parseIp(ip), length: undefined }));
  const row = (to: string, target: string): Row => ({
    name: `a service of the families "${ipFamilies}" by ${to}`,
    to: `${to}:80`,
    with: [dual, { ...web, addresses, ipFamilies }],
    expect: `tunnel ${target}:15008 ${formatHostPort(target, 8080)} ${id("server")}`,
  });
  return [row("10.96.0.1", from4), row("[fd00:96::1]", from6)];
}

const rows: readonly Row[] = [
  {
    name: "an enrolled pod by address",
    to: "10.1.0.2:8080",
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")}`,
  },
  { name: "a pod that is not enrolled", to: "10.1.0.3:8080", expect: "plain 10.1.0.3:8080 destination_not_enrolled" },
  {
    name: "a service with an enrolled endpoint: the target port behind it",
    to: "10.96.0.1:80",
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")}`,
  },
  {
    name: "a service with an endpoint that is not enrolled",
    to: "10.96.0.2:80",
    expect: "plain 10.1.0.3:8080 destination_not_enrolled",
  },
  { name: "a service without this port", to: "10.96.0.1:81", expect: "refuse no_healthy_upstream" },
  {
    name: "a service without endpoints",
    to: "10.96.0.3:80",
    with: [testService("empty", "10.96.0.3")],
    expect: "refuse no_healthy_upstream",
  },
  {
    name: "a service whose endpoints are all unhealthy",
    to: "10.96.0.1:80",
    with: [{ ...server, healthy: false }],
    expect: "refuse no_healthy_upstream",
  },
  {
    name: "a service that takes unhealthy endpoints",
    to: "10.96.0.1:80",
    with: [
      { ...server, healthy: false },
      { ...web, loadBalancing: { ...web.loadBalancing, allowUnhealthy: true } },
    ],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")}`,
  },
  {
    name: "a service that names further identities",
    to: "10.96.0.1:80",
    with: [{ ...web, subjectAltNames: [id("other"), "not an id"] }],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")} ${id("other")}`,
  },
  {
    name: "a service that passes through",
    to: "10.96.0.1:80",
    with: [{ ...web, loadBalancing: { ...web.loadBalancing, mode: "passthrough" } }],
    expect: "plain 10.96.0.1:80 destination_outside",
  },
  {
    name: "a service hidden from the client's namespace is unknown",
    to: "10.96.0.4:80",
    with: [testService("x", "10.96.0.4", { namespace: "else", visibility: "namespace" })],
    expect: "ask /10.96.0.4",
  },
  { name: "an address outside the cluster", to: "192.0.2.1:443", expect: "plain 192.0.2.1:443 destination_outside" },
  { name: "an unknown address inside the cluster", to: "10.5.5.5:80", expect: "ask /10.5.5.5" },
  {
    name: "an address that the control plane does not know",
    to: "10.5.5.5:80",
    view: { isAbsent: (name) => name === "/10.5.5.5" },
    expect: "plain 10.5.5.5:80 destination_not_enrolled",
  },
  {
    name: "an address of the cluster before the first snapshot",
    to: "10.1.0.3:80",
    view: { synced: false },
    expect: "wait",
  },
  {
    name: "an address outside before the first snapshot",
    to: "192.0.2.1:443",
    view: { synced: false },
    expect: "plain 192.0.2.1:443 destination_outside",
  },
  {
    name: "an address known only on another network",
    to: "10.1.0.7:80",
    with: [testWorkload("far", "10.1.0.7", { network: "east" })],
    expect: "ask /10.1.0.7",
  },
  {
    name: "a service whose only endpoint is on another network",
    to: "10.96.0.5:80",
    with: [
      testService("far", "10.96.0.5"),
      testWorkload("far", "10.1.0.7", { network: "east", services: { "shop/far.shop.svc.cluster.local": [] } }),
    ],
    expect: "refuse no_healthy_upstream",
  },
  { name: "the pod's own outbound port", to: "10.1.0.1:15001", expect: "refuse self_call" },
  { name: "the proxy's port on loopback", to: "127.0.0.1:15001", expect: "refuse self_call" },
  { name: "the proxy's port on IPv6 loopback", to: "[::1]:15006", expect: "refuse self_call" },
  { name: "another port on loopback", to: "127.0.0.1:80", expect: "plain 127.0.0.1:80 destination_outside" },
  {
    name: "another pod's tunnel port is tunnelled (and refused there)",
    to: "10.1.0.2:15008",
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:15008 ${id("server")}`,
  },
  {
    name: "the pod itself by its service",
    to: "10.96.0.6:80",
    with: [testService("self", "10.96.0.6"), { ...client, services: { "shop/self.shop.svc.cluster.local": [] } }],
    expect: `tunnel 10.1.0.1:15008 10.1.0.1:8080 ${id("client")}`,
  },
  {
    name: "a workload behind a waypoint",
    to: "10.1.0.2:8080",
    with: [{ ...server, waypoint: gateway }],
    expect: `tunnel 10.1.0.9:15008 10.1.0.2:8080 ${id("waypoint")}`,
  },
  {
    name: "a service behind a waypoint",
    to: "10.96.0.1:80",
    with: [{ ...web, waypoint: gateway }],
    expect: `tunnel 10.1.0.9:15008 10.96.0.1:80 ${id("waypoint")}`,
  },
  {
    name: "a waypoint named by the hostname of its service",
    to: "10.96.0.1:80",
    with: [
      {
        ...web,
        waypoint: {
          destination: { kind: "hostname", namespace: "shop", hostname: "wp.shop.svc.cluster.local" },
          hboneMtlsPort: 15008,
        },
      },
      testService("wp", "10.96.0.9", { ports: [{ servicePort: 15008, targetPort: 15008 }] }),
      { ...waypoint, services: { "shop/wp.shop.svc.cluster.local": [] } },
    ],
    expect: `tunnel 10.1.0.9:15008 10.96.0.1:80 ${id("waypoint")}`,
  },
  {
    name: "a waypoint that nobody knows",
    to: "10.96.0.1:80",
    with: [
      { ...web, waypoint: { ...gateway, destination: { ...gateway.destination, address: parseIp("10.1.0.99") } } },
    ],
    expect: "refuse waypoint_unavailable",
  },
  {
    name: "the waypoint itself reaches its workload directly",
    to: "10.1.0.2:8080",
    with: [
      { ...server, waypoint: { ...gateway, destination: { ...gateway.destination, address: parseIp("10.1.0.1") } } },
    ],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")}`,
  },
  {
    name: "a workload on the host's network by its node's address: that is the node's, and nobody is asked",
    to: "10.1.0.8:80",
    with: [testWorkload("host", "10.1.0.8", { hostNetwork: true })],
    expect: "plain 10.1.0.8:80 destination_not_enrolled",
  },
  {
    name: "a workload on the host's network through a service",
    to: "10.96.0.8:80",
    with: [
      testService("onhost", "10.96.0.8"),
      testWorkload("host", "10.1.0.8", {
        hostNetwork: true,
        tunnelProtocol: "none",
        services: { "shop/onhost.shop.svc.cluster.local": [] },
      }),
    ],
    expect: "plain 10.1.0.8:8080 destination_not_enrolled",
  },
  {
    name: "a workload without a valid identity is refused, not reached in clear",
    to: "10.1.0.8:80",
    with: [testWorkload("odd", "10.1.0.8", { serviceAccount: "a b" })],
    expect: "refuse wrong_identity",
  },
  {
    name: "an address with two owners: the pod that is enrolled wins",
    to: "10.1.0.2:80",
    with: [testWorkload("ghost", "10.1.0.2", { tunnelProtocol: "none" })],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`,
  },
  {
    name: "an enrolled pod of the same node",
    to: "10.1.0.2:8080",
    with: [{ ...server, node: client.node }],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")}`,
  },
  {
    name: "an enrolled pod of another node",
    to: "10.1.0.2:8080",
    with: [{ ...server, node: "node2" }],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:8080 ${id("server")}`,
  },
  {
    name: "a pod of the same node that is not enrolled",
    to: "10.1.0.3:8080",
    with: [{ ...plain, node: client.node }],
    expect: "plain 10.1.0.3:8080 destination_not_enrolled",
  },
  {
    name: "a pod of another node that is not enrolled",
    to: "10.1.0.3:8080",
    with: [{ ...plain, node: "node2" }],
    expect: "plain 10.1.0.3:8080 destination_not_enrolled",
  },
  ...dualRows("automatic", "10.1.0.2", "fd00::2"),
  ...dualRows("dual", "10.1.0.2", "fd00::2"),
  ...dualRows("ipv4", "10.1.0.2", "10.1.0.2"),
  ...dualRows("ipv6", "fd00::2", "fd00::2"),
  {
    name: "a workload with two addresses by its IPv4 address",
    to: "10.1.0.2:80",
    with: [dual],
    expect: `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`,
  },
  {
    name: "a workload with two addresses by its IPv6 address",
    to: "[fd00::2]:80",
    with: [dual],
    expect: `tunnel fd00::2:15008 [fd00::2]:80 ${id("server")}`,
  },
  {
    name: "IPv6",
    to: "[fd00::2]:80",
    with: [testWorkload("six", "fd00::2")],
    expect: `tunnel fd00::2:15008 [fd00::2]:80 ${id("six")}`,
  },
];

describe("decideOutbound", () => {
  for (const row of rows) {
    it(row.name, () => {
      const view = testView([...all, ...(row.with ?? [])], row.view);
      assert.equal(routeLine(decideOutbound(testPod("client"), testAddress(row.to), view)), row.expect);
    });
  }

  it("decides for a pod that the control plane does not know yet", () => {
    const route = decideOutbound(testPod("stranger"), testAddress("10.1.0.2:80"), testView(all));
    assert.equal(routeLine(route), `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`);
  });
});
