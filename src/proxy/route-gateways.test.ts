import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseIp } from "#base/ip";
import type { Address, GatewayAddress, Service, Workload } from "#model/workload";
import { decideOutbound } from "./route.ts";
import { routeLine, testAddress, testPod, testService, testView, testWorkload } from "./testing.ts";

const id = (account: string): string => `spiffe://cluster.local/ns/shop/sa/${account}`;
const at = (address: string, hboneMtlsPort = 15_008, network = ""): GatewayAddress => ({
  destination: { kind: "address", network, address: parseIp(address) },
  hboneMtlsPort,
});
const named = (hostname: string, hboneMtlsPort = 15_008): GatewayAddress => ({
  destination: { kind: "hostname", namespace: "shop", hostname },
  hboneMtlsPort,
});
const of = (...services: string[]): Partial<Workload> => ({
  services: Object.fromEntries(services.map((name) => [`shop/${name}.shop.svc.cluster.local`, []])),
});
const failover = (scope: "network"): Service["loadBalancing"] => ({
  mode: "failover",
  routingPreference: [scope],
  allowUnhealthy: false,
});

const client = testWorkload("client", "10.1.0.1");
const server = testWorkload("server", "10.1.0.2", of("web"));
const waypoint = testWorkload("waypoint", "10.1.0.9", of("wp"));
const web = testService("web", "10.96.0.1", { subjectAltNames: [id("far")] });
const wp = testService("wp", "10.96.0.9", { ports: [{ servicePort: 15_008, targetPort: 15_008 }] });

/** Where the client (or another pod) gets, with these addresses. */
function route(
  to: string,
  addresses: readonly Address[],
  more: Parameters<typeof testView>[1] & { from?: string } = {},
) {
  const { from = "client", ...view } = more;
  return routeLine(decideOutbound(testPod(from), testAddress(to), testView([client, ...addresses], view)));
}

describe("a connection through a waypoint", () => {
  it("goes to the waypoint that the service names by the address of its service", () => {
    const routes = route("10.96.0.1:80", [{ ...web, waypoint: at("10.96.0.9") }, wp, waypoint]);
    assert.equal(routes, `tunnel 10.1.0.9:15008 10.96.0.1:80 ${id("waypoint")}`);
  });

  it("goes to a waypoint that is a workload known by its hostname", () => {
    const lone = testWorkload("lone", "10.1.0.8", { hostname: "lone.example" });
    const routes = route("10.1.0.2:80", [{ ...server, waypoint: named("lone.example") }, lone]);
    assert.equal(routes, `tunnel 10.1.0.8:15008 10.1.0.2:80 ${id("lone")}`);
  });

  it("accepts also the identities that the waypoint's service names", () => {
    const service = { ...wp, subjectAltNames: [id("other")] };
    const routes = route("10.96.0.1:80", [{ ...web, waypoint: at("10.96.0.9") }, service, waypoint]);
    assert.equal(routes, `tunnel 10.1.0.9:15008 10.96.0.1:80 ${id("waypoint")} ${id("other")}`);
  });

  it("uses the waypoint for what a service passes through, too", () => {
    const outside = testService("outside", "192.0.2.1", {
      waypoint: at("10.1.0.9"),
      loadBalancing: { mode: "passthrough", routingPreference: [], allowUnhealthy: true },
    });
    assert.equal(route("192.0.2.1:443", [outside, waypoint]), `tunnel 10.1.0.9:15008 192.0.2.1:443 ${id("waypoint")}`);
  });

  it("is refused when the waypoint's service has no usable workload", () => {
    const down = { ...waypoint, healthy: false };
    const routes = route("10.96.0.1:80", [{ ...web, waypoint: named(wp.hostname) }, wp, down]);
    assert.equal(routes, "refuse waypoint_unavailable");
  });

  it("needs no such port of the waypoint's service when the waypoint has an application tunnel", () => {
    const http = testService("wp", "10.96.0.9");
    const routes = (tunnel: Workload["applicationTunnel"]): string =>
      route("10.96.0.1:80", [
        { ...web, waypoint: named(wp.hostname) },
        http,
        { ...waypoint, applicationTunnel: tunnel },
      ]);
    assert.equal(routes(undefined), "refuse waypoint_unavailable");
    assert.equal(routes({ protocol: "proxy", port: 15_088 }), `tunnel 10.1.0.9:15008 10.96.0.1:80 ${id("waypoint")}`);
  });

  it("follows the port that the waypoint's service maps", () => {
    const service = { ...wp, ports: [{ servicePort: 15_008, targetPort: 25_008 }] };
    const routes = route("10.96.0.1:80", [{ ...web, waypoint: named(wp.hostname) }, service, waypoint]);
    assert.equal(routes, `tunnel 10.1.0.9:25008 10.96.0.1:80 ${id("waypoint")}`);
  });

  it("prefers the caller's family for a waypoint's hostname, and keeps an address as it is", () => {
    const dual = { ...waypoint, addresses: [parseIp("10.1.0.9"), parseIp("fd00::9")] };
    const target = testWorkload("six", "fd00::2");
    const routes = (gateway: GatewayAddress): string =>
      route("[fd00::2]:80", [{ ...target, waypoint: gateway }, wp, dual]);
    assert.equal(routes(named(wp.hostname)), `tunnel fd00::9:15008 [fd00::2]:80 ${id("waypoint")}`);
    assert.equal(routes(at("10.1.0.9")), `tunnel 10.1.0.9:15008 [fd00::2]:80 ${id("waypoint")}`);
  });

  it("does not pass the waypoint of the source", () => {
    const routes = route("10.1.0.2:80", [{ ...client, waypoint: at("10.1.0.9") }, server, waypoint]);
    assert.equal(routes, `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`);
  });

  it("does not pass a service's waypoint that was dialled by the pod's address", () => {
    const routes = route("10.1.0.2:80", [{ ...web, waypoint: at("10.1.0.9") }, server, waypoint]);
    assert.equal(routes, `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`);
  });

  it("ends when any workload of the waypoint dials: to the workload, and to the service", () => {
    const second = testWorkload("second", "10.1.0.10", of("wp"));
    const world = [
      { ...web, waypoint: named(wp.hostname) },
      { ...server, waypoint: named(wp.hostname) },
      wp,
      waypoint,
      second,
    ];
    for (const from of ["waypoint", "second"]) {
      assert.equal(route("10.1.0.2:80", world, { from }), `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`);
      assert.match(route("10.96.0.1:80", world, { from }), /^tunnel 10\.1\.0\.2:15008 10\.1\.0\.2:8080 /);
    }
  });

  it("shares connections between weighted waypoints, and falls back where none has a weight", () => {
    const canary = testWorkload("canary", "10.1.0.11");
    const world = (weights: readonly [number, number]): Address[] => [
      {
        ...web,
        waypoint: at("10.1.0.9"),
        weightedWaypoints: [
          { waypoint: at("10.1.0.9"), weight: weights[0] },
          { waypoint: at("10.1.0.11"), weight: weights[1] },
        ],
      },
      waypoint,
      canary,
    ];
    const target = (weights: readonly [number, number], unit: number): string =>
      route("10.96.0.1:80", world(weights), { unit: () => unit }).split(" ")[1] ?? "";
    assert.equal(target([80, 20], 0.79), "10.1.0.9:15008");
    assert.equal(target([80, 20], 0.81), "10.1.0.11:15008");
    assert.equal(target([0, 100], 0), "10.1.0.11:15008");
    assert.equal(target([0, 0], 0.99), "10.1.0.9:15008");
  });
});

describe("a connection to another network", () => {
  const east = (more: Partial<Workload> = {}): Workload =>
    testWorkload("far-pods", "10.1.0.50", {
      addresses: [],
      network: "east",
      networkGateway: at("198.51.100.1", 15_009, "east"),
      ...of("web"),
      ...more,
    });
  const gateway = testWorkload("gateway", "198.51.100.1", { network: "east", tunnelProtocol: "none" });
  const throughGateway = `tunnel 198.51.100.1:15009 web.shop.svc.cluster.local:80 ${id("gateway")} (inner from "": ${id("far")})`;

  it("is a tunnel in a tunnel: the gateway by its identity, the far end by those that the service names", () => {
    assert.equal(route("10.96.0.1:80", [web, east(), gateway]), throughGateway);
  });

  it("finds the gateway by the hostname of its service, with the service's ports and names", () => {
    const service = testService("gw", undefined, {
      ports: [{ servicePort: 15_009, targetPort: 15_008 }],
      subjectAltNames: [id("gw-2")],
    });
    const routes = route("10.96.0.1:80", [
      web,
      east({ networkGateway: named(service.hostname, 15_009) }),
      service,
      { ...gateway, ...of("gw") },
    ]);
    assert.equal(
      routes,
      `tunnel 198.51.100.1:15008 web.shop.svc.cluster.local:80 ${id("gateway")} ${id("gw-2")} (inner from "": ${id("far")})`,
    );
  });

  it("is how a waypoint on another network is reached, by the identities of the waypoint's service", () => {
    const routes = route("10.96.0.1:80", [
      { ...web, waypoint: named(wp.hostname) },
      { ...wp, subjectAltNames: [id("far-waypoint")] },
      east({ ...of("wp") }),
      gateway,
    ]);
    assert.equal(
      routes,
      `tunnel 198.51.100.1:15009 web.shop.svc.cluster.local:80 ${id("gateway")} (inner from "": ${id("far-waypoint")})`,
    );
  });

  it("is taken only when no endpoint here is healthy, where the service prefers its network", () => {
    const service = { ...web, loadBalancing: failover("network") };
    assert.match(
      route("10.96.0.1:80", [service, east(), gateway, server]),
      /^tunnel 10\.1\.0\.2:15008 10\.1\.0\.2:8080/,
    );
    assert.equal(route("10.96.0.1:80", [service, east(), gateway, { ...server, healthy: false }]), throughGateway);
  });

  it("is refused without a gateway, with an unknown one, and when nobody is named who may answer", () => {
    assert.equal(route("10.96.0.1:80", [web, east({ networkGateway: undefined })]), "refuse no_healthy_upstream");
    assert.equal(route("10.96.0.1:80", [web, east()]), "refuse no_healthy_upstream");
    const nobody = { ...web, subjectAltNames: [] };
    assert.equal(route("10.96.0.1:80", [nobody, east(), gateway]), "refuse wrong_identity");
  });

  it("is refused for a waypoint that is on another network when no service was dialled", () => {
    const routes = route("10.1.0.2:80", [
      { ...server, waypoint: named(wp.hostname) },
      wp,
      east({ ...of("wp") }),
      gateway,
    ]);
    assert.equal(routes, "refuse no_healthy_upstream");
  });

  it("never uses the gateway of its own network", () => {
    const here = east({ network: "" });
    assert.equal(route("10.96.0.1:80", [web, here, gateway]), "refuse no_healthy_upstream");
  });
});

describe("a connection to a workload that has a hostname and no address", () => {
  const external = testWorkload("external", "192.0.2.1", {
    addresses: [],
    hostname: "api.example.com",
    tunnelProtocol: "none",
    ...of("web"),
  });

  it("is held while the name is looked up", () => {
    assert.equal(route("10.96.0.1:80", [web, external]), "resolve api.example.com");
  });

  it("goes to one of the addresses, of the caller's family when there is one", () => {
    const resolved = () => [parseIp("2001:db8::7"), parseIp("192.0.2.7"), parseIp("192.0.2.8")];
    const go = (to: string, unit: number): string => route(to, [web, external], { resolved, unit: () => unit });
    assert.equal(go("10.96.0.1:80", 0), "plain 192.0.2.7:8080 destination_not_enrolled");
    assert.equal(go("10.96.0.1:80", 0.99), "plain 192.0.2.8:8080 destination_not_enrolled");
    const only6 = { resolved: () => [parseIp("2001:db8::7")] };
    assert.equal(route("10.96.0.1:80", [web, external], only6), "plain 2001:db8::7:8080 destination_not_enrolled");
  });

  it("is refused when the name has no address", () => {
    assert.equal(route("10.96.0.1:80", [web, external], { resolved: () => [] }), "refuse no_healthy_upstream");
  });

  it("is a tunnel when an enrolled pod is behind the name: never in clear", () => {
    const routes = route("10.96.0.1:80", [web, external, testWorkload("pod", "10.1.0.7")], {
      resolved: () => [parseIp("10.1.0.7")],
    });
    assert.equal(routes, `tunnel 10.1.0.7:15008 10.1.0.7:8080 ${id("pod")} ${id("far")}`);
  });
});

describe("a connection that others have described by address", () => {
  it("is a tunnel when an endpoint's address is that of an enrolled pod", () => {
    const manual = testWorkload("manual", "10.1.0.7", {
      uid: "Kubernetes/discovery.k8s.io/EndpointSlice/shop/manual/10.1.0.7",
      tunnelProtocol: "none",
      hostNetwork: true,
      ...of("web"),
    });
    const routes = route("10.96.0.1:80", [web, manual, testWorkload("pod", "10.1.0.7")]);
    assert.equal(routes, `tunnel 10.1.0.7:15008 10.1.0.7:8080 ${id("pod")} ${id("far")}`);
    assert.equal(route("10.96.0.1:80", [web, manual]), "plain 10.1.0.7:8080 destination_not_enrolled");
  });

  it("is a tunnel when a service that passes through covers an enrolled pod", () => {
    const covering = testService("all", undefined, {
      addresses: [{ network: "", address: parseIp("10.0.0.0"), length: 8 }],
      loadBalancing: { mode: "passthrough", routingPreference: [], allowUnhealthy: true },
    });
    assert.equal(route("10.1.0.2:80", [covering, server]), `tunnel 10.1.0.2:15008 10.1.0.2:80 ${id("server")}`);
    assert.equal(route("10.5.5.5:80", [covering]), "ask /10.5.5.5");
    const outside = { ...covering, addresses: [{ network: "", address: parseIp("192.0.2.0"), length: 24 }] };
    assert.equal(route("192.0.2.9:80", [outside]), "plain 192.0.2.9:80 destination_outside");
  });
});
