import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { formatHostPort, parseIp } from "#base/ip";
import { parseSpiffeId } from "#model/spiffe-id";
import type { Address, GatewayAddress, Service, Workload } from "#model/workload";
import { testAddress, testPod, testService, testView, testWorkload } from "./testing.ts";
import { decideInbound, type TunnelRequest } from "./verdict.ts";

const at = (address: string): GatewayAddress => ({
  destination: { kind: "address", network: "", address: parseIp(address) },
  hboneMtlsPort: 15_008,
});
const named = (hostname: string): GatewayAddress => ({
  destination: { kind: "hostname", namespace: "shop", hostname },
  hboneMtlsPort: 15_008,
});
const inService = (name: string) => ({ services: { [`shop/${name}.shop.svc.cluster.local`]: [] } });

const client = testWorkload("client", "10.1.0.1");
const server = testWorkload("server", "10.1.0.2", inService("web"));
const waypoint = testWorkload("waypoint", "10.1.0.9", inService("wp"));
const web = testService("web", "10.96.0.1");
const wp = testService("wp", "10.96.0.9");
const HOST = "web.shop.svc.cluster.local";
const proxyTunnel: Workload["applicationTunnel"] = { protocol: "proxy", port: 15_088 };

interface Question extends Partial<TunnelRequest> {
  readonly with?: readonly Address[];
  readonly to?: string;
  readonly view?: Parameters<typeof testView>[1];
}

/** What happens to a CONNECT for `authority` on a session to a pod, in one line. */
function ask(podName: "server" | "waypoint", authority: string, question: Question = {}): string {
  const { with: more = [], to = podName === "server" ? "10.1.0.2" : "10.1.0.9", view, ...request } = question;
  const verdict = decideInbound(
    testPod(podName),
    {
      peer: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
      remote: testAddress("10.1.0.1:4000"),
      local: testAddress(`${to.includes(":") ? `[${to}]` : to}:15008`),
      authority,
      ...request,
    },
    testView([client, server, waypoint, web, wp, ...more], view),
  );
  if (verdict.kind === "wait" || verdict.kind === "ask") return verdict.kind;
  if (verdict.kind === "refuse") return `refuse ${verdict.status} ${verdict.reason}`;
  const { target, sourceIp, proxyTo } = verdict;
  const header = proxyTo === undefined ? "" : ` PROXY ${formatHostPort(proxyTo.ip, proxyTo.port)}`;
  return `${formatHostPort(target.ip, target.port)} from ${sourceIp ?? "self"}${header}`;
}

describe("a tunnel to a pod that is no waypoint", () => {
  it("is for the pod's own address, or for a service of the pod", () => {
    assert.equal(ask("server", "10.1.0.2:8080"), "10.1.0.2:8080 from 10.1.0.1");
    assert.equal(ask("server", `${HOST}:80`), "10.1.0.2:8080 from 10.1.0.1");
  });

  it("is refused for anybody else's address", () => {
    assert.equal(ask("server", "10.1.0.1:8080"), "refuse 400 bad_request");
    assert.equal(ask("waypoint", "10.1.0.1:8080"), "refuse 400 bad_request");
    assert.equal(ask("server", "10.96.0.1:80"), "refuse 400 bad_request");
  });
});

describe("a tunnel to a waypoint that its own proxy serves", () => {
  const rows: readonly [string, Partial<Workload>, Partial<Service>, string, string][] = [
    // What names the waypoint, on the workload, on the service; what is asked for; what happens.
    ["a workload names it by its address", { waypoint: at("10.1.0.9") }, {}, "10.1.0.2:8080", "10.1.0.9:8080"],
    ["a workload names its service's address", { waypoint: at("10.96.0.9") }, {}, "10.1.0.2:8080", "10.1.0.9:8080"],
    ["a workload names its service", { waypoint: named(wp.hostname) }, {}, "10.1.0.2:8080", "10.1.0.9:8080"],
    ["a service names it by its address", {}, { waypoint: at("10.1.0.9") }, "10.96.0.1:8080", "10.1.0.9:8080"],
    ["a service names its service's address", {}, { waypoint: at("10.96.0.9") }, "10.96.0.1:8080", "10.1.0.9:8080"],
    ["a service names its service", {}, { waypoint: named(wp.hostname) }, "10.96.0.1:8080", "10.1.0.9:8080"],
    [
      "a service names it as one of several by weight",
      {},
      { weightedWaypoints: [{ waypoint: at("10.1.0.9"), weight: 0 }] },
      "10.96.0.1:80",
      "10.1.0.9:80",
    ],
    [
      "a service names it, and is asked for by hostname",
      {},
      { waypoint: at("10.1.0.9") },
      `${HOST}:80`,
      "10.1.0.9:8080",
    ],
  ];
  for (const [name, workload, service, authority, target] of rows) {
    it(`reaches it: ${name}`, () => {
      const world = [
        { ...server, ...workload },
        { ...web, ...service },
      ];
      assert.equal(ask("waypoint", authority, { with: world }), `${target} from 10.1.0.1`);
    });
  }

  it("is refused for what is attached otherwise", () => {
    const service = { with: [{ ...web, waypoint: at("10.1.0.9") }] };
    const workload = { with: [{ ...server, waypoint: at("10.1.0.9") }] };
    assert.equal(ask("waypoint", "10.1.0.2:8080", service), "refuse 400 bad_request");
    assert.equal(ask("waypoint", "10.96.0.1:8080", workload), "refuse 400 bad_request");
    assert.equal(ask("waypoint", `${HOST}:80`, workload), "refuse 503 no_healthy_upstream");
    const other = { with: [{ ...server, waypoint: at("10.1.0.1") }] };
    assert.equal(ask("waypoint", "10.1.0.2:8080", other), "refuse 400 bad_request");
    const nobody = { with: [{ ...server, waypoint: named("nobody.example") }] };
    assert.equal(ask("waypoint", "10.1.0.2:8080", nobody), "refuse 400 bad_request");
  });

  it("is refused for the proxy's own ports", () => {
    const world = { with: [{ ...server, waypoint: at("10.1.0.9") }] };
    assert.equal(ask("waypoint", "10.1.0.2:15008", world), "refuse 503 self_call");
  });
});

describe("a tunnel to a waypoint with an application tunnel", () => {
  const tunnelled = (tunnel: Workload["applicationTunnel"], more: readonly Address[] = []): Question => ({
    with: [{ ...waypoint, applicationTunnel: tunnel }, ...more],
  });

  it("goes to the tunnel's port on loopback, with a header that names what was dialled", () => {
    const workload = tunnelled(proxyTunnel, [{ ...server, waypoint: at("10.96.0.9") }]);
    assert.equal(ask("waypoint", "10.1.0.2:8080", workload), "127.0.0.1:15088 from self PROXY 10.1.0.2:8080");
    const service = tunnelled(proxyTunnel, [{ ...web, waypoint: at("10.96.0.9") }]);
    assert.equal(ask("waypoint", "10.96.0.1:80", service), "127.0.0.1:15088 from self PROXY 10.96.0.1:80");
  });

  it("takes any address: the application decides", () => {
    assert.equal(
      ask("waypoint", "192.0.2.1:443", tunnelled(proxyTunnel)),
      "127.0.0.1:15088 from self PROXY 192.0.2.1:443",
    );
  });

  it("names a service by an address of this network, of IPv4 where there is one", () => {
    const address = (network: string, ip: string): Service["addresses"][number] => ({
      network,
      address: parseIp(ip),
      length: undefined,
    });
    const where = (addresses: Service["addresses"], ports = web.ports): string =>
      ask("waypoint", `${HOST}:80`, tunnelled(proxyTunnel, [{ ...web, addresses, ports }]));
    const all = [address("east", "10.96.9.9"), address("", "fd00:96::1"), address("", "10.96.0.1")];
    assert.equal(where(all), "127.0.0.1:15088 from self PROXY 10.96.0.1:80");
    assert.equal(where(all.slice(0, 2)), "127.0.0.1:15088 from self PROXY [fd00:96::1]:80");
    assert.equal(where(all.slice(0, 1)), "127.0.0.1:15088 from self PROXY 10.96.9.9:80");
    assert.equal(where([]), "refuse 503 no_healthy_upstream");
    const byName = [{ servicePort: 80, targetPort: 0 }];
    assert.equal(where(all, byName), "127.0.0.1:15088 from self PROXY 10.96.0.1:80");
  });

  it("is on IPv6 where the session is", () => {
    const world = tunnelled(proxyTunnel);
    assert.equal(
      ask("waypoint", "[fd00::2]:80", { ...world, to: "fd00::9" }),
      "[::1]:15088 from self PROXY [fd00::2]:80",
    );
  });

  it("keeps the port that was asked for when the tunnel names none", () => {
    const world = tunnelled({ protocol: "proxy", port: 0 });
    assert.equal(ask("waypoint", "10.1.0.2:8080", world), "127.0.0.1:8080 from self PROXY 10.1.0.2:8080");
  });

  it("without a protocol only changes the port", () => {
    const world = tunnelled({ protocol: "none", port: 15_088 });
    assert.equal(ask("waypoint", "10.1.0.2:8080", world), "10.1.0.9:15088 from 10.1.0.1");
  });

  it("is refused for the proxy's own ports, whatever the tunnel's port is", () => {
    assert.equal(ask("waypoint", "10.1.0.2:15006", tunnelled(proxyTunnel)), "refuse 503 self_call");
  });
});

describe("the source that an application sees", () => {
  it("is the proxy where original sources are off", () => {
    assert.equal(ask("server", "10.1.0.2:8080", { view: { originalSource: false } }), "10.1.0.2:8080 from self");
  });
});

describe("what is known of a tunnel's source", () => {
  const sourceOf = (forwardedNetwork: string | undefined): string | undefined => {
    const request = {
      peer: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
      remote: testAddress("10.1.0.1:4000"),
      local: testAddress("10.1.0.2:15008"),
      authority: "10.1.0.2:8080",
      forwardedNetwork,
    };
    const verdict = decideInbound(testPod("server"), request, testView([client, server], { network: "" }));
    return verdict.kind === "connect" ? verdict.source?.name : "refused";
  };

  it("is the workload at its address, but for what came through a gateway", () => {
    assert.equal(sourceOf(undefined), "client");
    assert.equal(sourceOf(""), "client");
    assert.equal(sourceOf("east"), undefined);
  });
});

describe("the service of a tunnel", () => {
  const label = (forwardedHost: string | undefined, authority: string, more: Partial<Workload>): string | undefined => {
    const request = {
      peer: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
      remote: testAddress("10.1.0.1:4000"),
      local: testAddress("10.1.0.2:15008"),
      authority,
      forwardedHost,
    };
    const other = testService("other", undefined, { ports: [{ servicePort: 80, targetPort: 9090 }] });
    const verdict = decideInbound(testPod("server"), request, testView([{ ...server, ...more }, web, other]));
    return verdict.kind === "connect" ? verdict.service?.name : "refused";
  };
  const both = { services: { ...inService("web").services, ...inService("other").services } };

  it("is the one that the client has dialled, where the pod belongs to it", () => {
    assert.equal(label(HOST, "10.1.0.2:1", both), "web");
    assert.equal(label("other.shop.svc.cluster.local", "10.1.0.2:8080", both), "other");
    assert.equal(label("other.shop.svc.cluster.local", "10.1.0.2:1", inService("web")), undefined);
  });

  it("is else one that leads to the port, also by a port of the endpoint's own", () => {
    assert.equal(label(undefined, "10.1.0.2:9090", both), "other");
    const own = { services: { ...both.services, [`shop/${HOST}`]: [{ servicePort: 80, targetPort: 3000 }] } };
    assert.equal(label(undefined, "10.1.0.2:3000", own), "web");
    assert.equal(label(undefined, "10.1.0.2:1", both), undefined);
  });
});
