import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseCidr } from "#base/ip";
import { parseSpiffeId } from "#model/spiffe-id";
import type { PolicyChange } from "#policy";
import { exactly, testPolicy } from "../policy/testing.ts";
import { DNS_PORT } from "#dns";
import { ownPorts, type ProxyConfig } from "./config.ts";
import { decideInbound, decidePlaintext, type Verdict } from "./verdict.ts";
import { testAddress, testPod, testService, testView, testWorkload } from "./testing.ts";

const peer = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client");
const client = testWorkload("client", "10.1.0.1");
const server = testWorkload("server", "10.1.0.2", {
  services: { "shop/web.shop.svc.cluster.local": [{ servicePort: 81, targetPort: 9090 }] },
});
const plain = testWorkload("plain", "10.1.0.3", { tunnelProtocol: "none" });
const web = testService("web", "10.96.0.1", {
  ports: [
    { servicePort: 80, targetPort: 8080 },
    { servicePort: 81, targetPort: 0 },
    { servicePort: 82, targetPort: 0 },
  ],
});
const other = testService("other", "10.96.0.2");
const all = [client, server, plain, web, other];

function line(verdict: Verdict): string {
  if (verdict.kind === "wait" || verdict.kind === "ask") return verdict.kind;
  if (verdict.kind === "refuse") return `refuse ${verdict.status} ${verdict.reason}`;
  const { target, sourceIp, reason } = verdict;
  return `connect ${target.ip}:${target.port} from ${sourceIp ?? "self"} ${reason}`;
}

describe("decideInbound", () => {
  const rows = [
    ["the pod's own address", "10.1.0.1", "10.1.0.2:8080", "connect 10.1.0.2:8080 from 10.1.0.1 ok"],
    ["another pod's address", "10.1.0.1", "10.1.0.3:8080", "refuse 400 bad_request"],
    ["a service's address", "10.1.0.1", "10.96.0.1:80", "refuse 400 bad_request"],
    ["loopback", "10.1.0.1", "127.0.0.1:80", "refuse 400 bad_request"],
    ["no port", "10.1.0.1", "10.1.0.2", "refuse 400 bad_request"],
    ["no authority at all", "10.1.0.1", "", "refuse 400 bad_request"],
    ["a port that does not exist", "10.1.0.1", "10.1.0.2:99999", "refuse 400 bad_request"],
    ["port 0", "10.1.0.1", "10.1.0.2:0", "refuse 503 no_healthy_upstream"],
    ["the pod's outbound port", "10.1.0.1", "10.1.0.2:15001", "refuse 503 self_call"],
    ["the pod's plaintext port", "10.1.0.1", "10.1.0.2:15006", "refuse 503 self_call"],
    ["the pod's tunnel port", "10.1.0.1", "10.1.0.2:15008", "refuse 503 self_call"],
    [
      "a hostname of a service of the pod",
      "10.1.0.1",
      "web.shop.svc.cluster.local:80",
      "connect 10.1.0.2:8080 from 10.1.0.1 ok",
    ],
    [
      "a hostname and a named port of this pod",
      "10.1.0.1",
      "web.shop.svc.cluster.local:81",
      "connect 10.1.0.2:9090 from 10.1.0.1 ok",
    ],
    [
      "a hostname and a named port that this pod lacks",
      "10.1.0.1",
      "web.shop.svc.cluster.local:82",
      "refuse 503 no_healthy_upstream",
    ],
    [
      "a hostname and a port that the service lacks",
      "10.1.0.1",
      "web.shop.svc.cluster.local:83",
      "refuse 503 no_healthy_upstream",
    ],
    [
      "a hostname of a service that this pod is not part of",
      "10.1.0.1",
      "other.shop.svc.cluster.local:80",
      "refuse 503 no_healthy_upstream",
    ],
    ["a hostname that nobody knows", "10.1.0.1", "nowhere.example:80", "refuse 503 no_healthy_upstream"],
    ["the pod itself", "10.1.0.2", "10.1.0.2:8080", "connect 10.1.0.2:8080 from self ok"],
  ] as const;
  for (const [name, from, authority, expected] of rows) {
    it(name, () => {
      const request = { peer, remote: testAddress(`${from}:4000`), local: testAddress("10.1.0.2:15008"), authority };
      assert.equal(line(decideInbound(testPod("server"), request, testView(all))), expected);
    });
  }

  it("lets tunnels to the proxy's own pod reach its metrics and nothing else", () => {
    const self = testPod("server", { serves: [15020] });
    const to = (authority: string): string => {
      const request = { peer, remote: testAddress("10.1.0.1:4000"), local: testAddress("10.1.0.2:15008"), authority };
      return line(decideInbound(self, request, testView(all)));
    };
    assert.equal(to("10.1.0.2:15020"), "connect 10.1.0.2:15020 from 10.1.0.1 ok");
    for (const port of [15000, 10250, 8080]) assert.equal(to(`10.1.0.2:${port}`), "refuse 503 no_healthy_upstream");
    assert.equal(to("10.1.0.2:15008"), "refuse 503 self_call");
  });

  const ask = (ip: string, identity = peer): Verdict =>
    decideInbound(
      testPod("server"),
      {
        peer: identity,
        remote: testAddress(`${ip}:4000`),
        local: testAddress("10.1.0.2:15008"),
        authority: "10.1.0.2:80",
      },
      testView(all),
    );

  it("names the source workload only when the peer has proved its identity", () => {
    const named = ask("10.1.0.1");
    assert.equal(named.kind === "connect" ? named.source?.name : "", "client");
    const stranger = ask("10.1.0.1", parseSpiffeId("spiffe://cluster.local/ns/shop/sa/thief"));
    assert.equal(stranger.kind === "connect" ? stranger.source : "refused", undefined);
    const odd = ask("10.1.0.1", parseSpiffeId("spiffe://cluster.local/machine/7"));
    assert.equal(odd.kind === "connect" ? odd.source : "refused", undefined);
  });

  it("waits for the first snapshot: policies come with it", () => {
    const view = testView([], { synced: false });
    const request = { peer, remote: testAddress("10.1.0.1:4000"), local: testAddress("10.1.0.2:15008") };
    const decide = (authority: string): string =>
      line(decideInbound(testPod("server"), { ...request, authority }, view));
    assert.equal(decide("web.shop.svc.cluster.local:80"), "wait");
    assert.equal(decide("10.1.0.2:8080"), "wait");
    assert.equal(decide("10.1.0.3:8080"), "wait", "the pod may be its waypoint");
    assert.equal(decide("10.1.0.2"), "refuse 400 bad_request");
  });

  it("refuses the port of the pods' DNS where that is captured, and only there", () => {
    const request = { peer, remote: testAddress("10.1.0.1:4000"), local: testAddress("10.1.0.2:15008") };
    const authority = `10.1.0.2:${DNS_PORT}`;
    const captured = { nameservers: [], clusterDomain: "cluster.local", preferredNamespace: "", ipv6: true };
    const decide = (dns: ProxyConfig["dns"]): string => {
      const view = testView(all, { ownPorts: ownPorts({ dns }) });
      return line(decideInbound(testPod("server"), { ...request, authority }, view));
    };
    assert.match(decide(undefined), /^connect /);
    assert.equal(decide(captured), "refuse 503 self_call");
  });

  it("labels the service by what the client dialled", () => {
    const request = {
      peer,
      remote: testAddress("10.1.0.1:4000"),
      local: testAddress("10.1.0.2:15008"),
      authority: "10.1.0.2:80",
      forwardedHost: "web.shop.svc.cluster.local",
    };
    const verdict = decideInbound(testPod("server"), request, testView(all));
    assert.equal(verdict.kind === "connect" ? verdict.service?.name : "", "web");
  });
});

describe("decidePlaintext", () => {
  const decide = (
    from: string,
    view: ReturnType<typeof testView>,
    more: { to?: string; since?: number } = {},
  ): string =>
    line(
      decidePlaintext(
        { ...testPod("server"), podSinceMs: more.since ?? -Infinity },
        { remote: testAddress(`${from}:4000`), originalDestination: testAddress(more.to ?? "10.1.0.2:8080") },
        view,
      ),
    );

  /** Both enrolled: the server from the start, the client at 100 s; now is `nowMs`. */
  const enrolledAt100s = (nowMs: number): ReturnType<typeof testView> => {
    const view = testView([server, { ...client, tunnelProtocol: "none" }], { monotonicMs: nowMs });
    view.table.apply({ upserts: [client], removes: [], old: false }, 100_000);
    return view;
  };

  it("passes a source that is not enrolled, and keeps its address", () => {
    assert.equal(decide("10.1.0.3", testView(all)), "connect 10.1.0.2:8080 from 10.1.0.3 source_not_enrolled");
  });

  it("passes a source that nobody knows", () => {
    assert.equal(decide("10.9.9.9", testView(all)), "connect 10.1.0.2:8080 from 10.9.9.9 source_not_enrolled");
  });

  it("refuses when both are enrolled in the first snapshot, which counts as old", () => {
    assert.equal(decide("10.1.0.1", testView(all)), "refuse 503 plaintext_refused");
  });

  it("passes as enrolling until the bound, and refuses after it", () => {
    assert.equal(decide("10.1.0.1", enrolledAt100s(100_000)), "connect 10.1.0.2:8080 from 10.1.0.1 enrolling");
    assert.equal(decide("10.1.0.1", enrolledAt100s(110_000)), "connect 10.1.0.2:8080 from 10.1.0.1 enrolling");
    assert.equal(decide("10.1.0.1", enrolledAt100s(110_001)), "refuse 503 plaintext_refused");
  });

  it("starts the bound again when a workload was un-enrolled in between", () => {
    const view = enrolledAt100s(130_000);
    view.table.apply({ upserts: [{ ...client, tunnelProtocol: "none" }], removes: [], old: false }, 120_000);
    assert.equal(decide("10.1.0.1", view), "connect 10.1.0.2:8080 from 10.1.0.1 source_not_enrolled");
    view.table.apply({ upserts: [client], removes: [], old: false }, 125_000);
    assert.equal(decide("10.1.0.1", view), "connect 10.1.0.2:8080 from 10.1.0.1 enrolling");
  });

  it("does not start the bound again when an enrolled workload changes otherwise", () => {
    const view = enrolledAt100s(110_001);
    view.table.apply({ upserts: [{ ...client, healthy: false }], removes: [], old: false }, 110_000);
    assert.equal(decide("10.1.0.1", view), "refuse 503 plaintext_refused");
  });

  it("passes while the pod is published as plain, although the agent still hands it over", () => {
    const view = testView([client, { ...server, tunnelProtocol: "none" }]);
    assert.equal(decide("10.1.0.1", view), "connect 10.1.0.2:8080 from 10.1.0.1 source_not_enrolled");
  });

  it("counts a pod that the control plane does not know from when the agent handed it over", () => {
    const view = testView([client], { monotonicMs: 50_000 });
    assert.equal(decide("10.1.0.1", view, { since: 45_000 }), "connect 10.1.0.2:8080 from 10.1.0.1 enrolling");
    assert.equal(decide("10.1.0.1", view, { since: 30_000 }), "refuse 503 plaintext_refused");
  });

  it("waits for the first snapshot when the source is inside the cluster, and not when it is outside", () => {
    const view = testView([], { synced: false });
    assert.equal(decide("10.1.0.1", view), "wait");
    assert.equal(decide("192.0.2.7", view), "connect 10.1.0.2:8080 from 192.0.2.7 source_not_enrolled");
  });

  for (const port of [15001, 15006, 15008]) {
    it(`refuses a connection to the proxy's own port ${port}`, () => {
      assert.equal(decide("10.1.0.3", testView(all), { to: `10.1.0.2:${port}` }), "refuse 503 self_call");
    });
  }
});

describe("policies", () => {
  const unusable = { name: "any/policy", namespace: "shop", scope: "namespace" as const };
  const both = (
    change: Partial<PolicyChange>,
    options: { listed?: readonly string[]; known?: boolean } = {},
  ): string => {
    const pod = { ...server, authorizationPolicies: options.listed ?? [] };
    const view = testView(options.known === false ? [client, plain] : [client, plain, pod]);
    view.policies.apply({ upserts: [], unusable: [], removes: [], ...change });
    const local = testAddress("10.1.0.2:15008");
    const tunnel = { peer, remote: testAddress("10.1.0.1:4000"), local, authority: "10.1.0.2:80" };
    const request = { remote: testAddress("10.1.0.3:4000"), originalDestination: testAddress("10.1.0.2:80") };
    const short = (verdict: Verdict): string => line(verdict).replace(/ 10.*$/, "");
    const mutual = short(decideInbound(testPod("server"), tunnel, view));
    return `${mutual} | ${short(decidePlaintext(testPod("server"), request, view))}`;
  };

  it("that cannot be enforced let nothing in where they apply, and change nothing elsewhere", () => {
    const refused = "refuse 401 policy_not_enforced | refuse 401 policy_not_enforced";
    assert.equal(both({ unusable: [{ ...unusable, scope: "global" }] }), refused);
    assert.equal(both({ unusable: [unusable] }), refused);
    assert.equal(both({ unusable: [{ ...unusable, scope: "workload" }] }, { listed: ["any/policy"] }), refused);
    assert.equal(both({ unusable: [{ ...unusable, namespace: "other" }] }), "connect | connect");
    assert.equal(both({ unusable: [{ ...unusable, scope: "workload" }] }), "connect | connect");
  });

  it("judge the proven identity, and plaintext as nobody", () => {
    const allow = testPolicy("allow", [{ principals: [exactly("cluster.local/ns/shop/sa/client")] }]);
    assert.equal(both({ upserts: [allow] }), "connect | refuse 401 policy_denied");
    const strict = testPolicy("strict", [{ notPrincipals: [{ kind: "presence" }] }], { action: "deny" });
    assert.equal(both({ upserts: [strict] }), "connect | refuse 401 policy_denied");
  });

  it("judge the application's port and the client's address", () => {
    const port = (...destinationPorts: number[]) => testPolicy("port", [{ destinationPorts }], { action: "deny" });
    assert.equal(both({ upserts: [port(80)] }), "refuse 401 policy_denied | refuse 401 policy_denied");
    assert.equal(both({ upserts: [port(15008, 15006)] }), "connect | connect");
    const address = testPolicy("ip", [{ sourceIps: [parseCidr("10.1.0.3/32")] }], { action: "deny" });
    assert.equal(both({ upserts: [address] }), "connect | refuse 401 policy_denied");
  });

  it("of single workloads are waited for while nobody has said which the pod lists", () => {
    const listed = testPolicy("p", [], { scope: "workload" });
    assert.equal(both({ upserts: [listed] }, { known: false }), "ask | ask");
    assert.equal(
      both({ upserts: [{ ...listed, scope: "namespace", rules: [[]] }] }, { known: false }),
      "connect | connect",
    );
  });
});
