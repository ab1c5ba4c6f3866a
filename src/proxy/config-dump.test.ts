import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { systemClock } from "#base/clock";
import { parseCidr, parseIp } from "#base/ip";
import { EMPTY_MATCH, type Authorization } from "#model/authorization";
import type { GatewayAddress } from "#model/workload";
import { TestAuthority } from "../x509/testing.ts";
import { proxyConfig } from "./config.ts";
import { dumpState, type DumpedState } from "./config-dump.ts";
import type { OpenConnection } from "./record.ts";
import { testPod, testService, testView, testWorkload } from "./testing.ts";

type Dump = Record<string, unknown>;

async function dumpOf(state: Partial<DumpedState> = {}): Promise<{ dump: Dump; text: string }> {
  const all: DumpedState = {
    clock: systemClock(),
    version: "0.1.0",
    config: proxyConfig({ node: "node1" }),
    table: testView([]).table,
    policies: [],
    pods: [],
    connections: [],
    certificates: { get: () => undefined, failure: () => undefined },
    more: { synced: true },
    ...state,
  };
  let text = "";
  for await (const part of dumpState(all)) text += part;
  return { dump: JSON.parse(text) as Dump, text };
}

const gateway: GatewayAddress = {
  destination: { kind: "address", network: "net", address: parseIp("10.96.0.10") },
  hboneMtlsPort: 15008,
};
const web = testService("web", "10.96.0.1", {
  waypoint: { destination: { kind: "hostname", namespace: "shop", hostname: "wp.shop.svc" }, hboneMtlsPort: 15008 },
  weightedWaypoints: [{ waypoint: gateway, weight: 10 }],
  loadBalancing: { mode: "failover", routingPreference: ["network", "region"], allowUnhealthy: false },
  ipFamilies: "dual",
  addresses: [
    { network: "net", address: parseIp("10.96.0.1"), length: undefined },
    { network: "", address: parseIp("10.97.0.0"), length: 16 },
  ],
});
const serving = { services: { "shop/web.shop.svc.cluster.local": [{ servicePort: 80, targetPort: 8080 }] } };
const server = testWorkload("server", "10.1.0.2", {
  ...serving,
  waypoint: gateway,
  applicationTunnel: { protocol: "proxy", port: 15088 },
  locality: { region: "r", zone: "z", subzone: "" },
});
const sick = testWorkload("sick", "10.1.0.3", { ...serving, healthy: false, tunnelProtocol: "none" });
const early = testWorkload("early", "10.1.0.4", { services: { "shop/late.shop.svc": [] } });
const connection: OpenConnection = {
  podUid: "uid-server",
  direction: "inbound",
  source: "10.1.0.1:4000",
  original: "web.shop.svc.cluster.local",
  actual: "10.1.0.2:8080",
  encryption: "mutual_tls",
  service: "web.shop.svc.cluster.local",
  hboneTarget: "10.1.0.2:8080",
  sourceIdentity: testPod("client").identity,
  destinationIdentity: testPod("server").identity,
  traceId: undefined,
  bytesSent: 1,
  bytesReceived: 2,
  ageMs: 3,
};

const deny: Authorization = {
  name: "deny",
  namespace: "shop",
  scope: "workload",
  action: "deny",
  rules: [
    [
      [
        {
          ...EMPTY_MATCH,
          notPrincipals: [{ kind: "presence" }],
          namespaces: [{ kind: "prefix", value: "sh" }],
          sourceIps: [parseCidr("10.0.0.0/8")],
          destinationPorts: [80],
          serviceAccounts: [{ namespace: "shop", serviceAccount: "cart" }],
        },
      ],
      [],
    ],
  ],
  dryRun: false,
};

/** What istioctl's Go structures read (istioctl/pkg/writer/ztunnel/configdump/api.go): member to its JSON type. */
const READ_BY_ISTIOCTL = {
  workloads: {
    uid: "string",
    workloadIps: "string[]",
    waypoint: "object?",
    networkGateway: "object?",
    protocol: "string",
    name: "string",
    namespace: "string",
    serviceAccount: "string",
    workloadName: "string",
    workloadType: "string",
    canonicalName: "string",
    canonicalRevision: "string",
    clusterId: "string",
    trustDomain: "string",
    locality: "object",
    node: "string",
    network: "string",
    status: "string",
    hostname: "string",
    capacity: "number",
    applicationTunnel: "object?",
    authorizationPolicies: "string[]",
  },
  services: {
    name: "string",
    namespace: "string",
    hostname: "string",
    vips: "string[]",
    cidrVips: "array?",
    ports: "object",
    loadBalancer: "object?",
    waypoint: "object?",
    endpoints: "object",
    subjectAltNames: "string[]",
    ipFamilies: "string?",
    canonical: "boolean",
    visibility: "string",
  },
  policies: { name: "string", namespace: "string", scope: "string", action: "string", rules: "array" },
  certificates: { identity: "string", state: "string", certChain: "array", rootCerts: "array" },
} as const;

function typeOf(value: unknown): string {
  if (!Array.isArray(value)) return value === null ? "null" : typeof value;
  return value.every((item) => typeof item === "string") ? "string[]" : "array";
}

describe("the configuration dump", () => {
  it("has every member that istioctl reads, of its type, in each kind of resource", async () => {
    const authority = await TestAuthority.create();
    const { identity } = testPod("server");
    const certificate = await authority.identity(identity);
    const view = testView([web, server, sick, early]);
    const { dump } = await dumpOf({
      table: view.table,
      policies: [deny],
      pods: [{ pod: testPod("server"), served: true }],
      certificates: { get: () => certificate, failure: () => undefined },
    });
    for (const [list, members] of Object.entries(READ_BY_ISTIOCTL)) {
      const resources = dump[list] as Dump[];
      assert.ok(Array.isArray(resources) && resources.length > 0, list);
      for (const resource of resources) {
        for (const [member, type] of Object.entries(members)) {
          const found = typeOf(resource[member]);
          const fits = found === type || (found === "string[]" && type.startsWith("array"));
          const mayMiss = type.endsWith("?") && (found === "undefined" || found === type.slice(0, -1));
          assert.ok(fits || mayMiss, `${list}: ${member} is ${found}, not ${type}`);
        }
      }
    }
  });

  it("writes addresses, waypoints, ports and words as upstream does", async () => {
    const { dump } = await dumpOf({ table: testView([web, server, sick, early]).table });
    const [workload, other] = dump["workloads"] as Dump[];
    assert.deepEqual(workload?.["waypoint"], { destination: "net/10.96.0.10", hboneMtlsPort: 15008 });
    assert.deepEqual(workload?.["applicationTunnel"], { protocol: "PROXY", port: 15088 });
    assert.deepEqual([workload?.["protocol"], workload?.["status"]], ["HBONE", "Healthy"]);
    assert.deepEqual([other?.["protocol"], other?.["status"], other?.["waypoint"]], ["TCP", "Unhealthy", undefined]);
    const [service] = dump["services"] as Dump[];
    assert.deepEqual(service?.["vips"], ["net/10.96.0.1"]);
    assert.deepEqual(service?.["cidrVips"], [{ network: "", cidr: "10.97.0.0/16" }]);
    assert.deepEqual(service?.["ports"], { "80": 8080 });
    assert.deepEqual(service?.["waypoint"], { destination: "shop/wp.shop.svc", hboneMtlsPort: 15008 });
    assert.deepEqual(service?.["loadBalancer"], {
      mode: "Failover",
      routingPreferences: ["Network", "Region"],
      healthPolicy: "OnlyHealthy",
    });
    assert.deepEqual([service?.["ipFamilies"], service?.["visibility"]], ["Dual", "Public"]);
    const endpoints = service?.["endpoints"] as Dump | undefined;
    assert.deepEqual(endpoints?.[sick.uid], {
      workloadUid: sick.uid,
      service: "shop/web.shop.svc.cluster.local",
      port: { "80": 8080 },
      status: "Unhealthy",
    });
    assert.deepEqual(Object.keys((dump["stagedServices"] as Dump)["shop/late.shop.svc"] as Dump), [early.uid]);
  });

  it("shows what policies say, in upstream's words", async () => {
    const { dump } = await dumpOf({ policies: [deny] });
    assert.deepEqual(dump["policies"], [
      {
        name: "deny",
        namespace: "shop",
        scope: "WorkloadSelector",
        action: "Deny",
        rules: [
          [
            [
              {
                namespaces: [{ Prefix: "sh" }],
                notPrincipals: [{ Presence: [] }],
                serviceAccounts: [{ namespace: "shop", serviceAccount: "cart" }],
                sourceIps: ["10.0.0.0/8"],
                destinationPorts: [80],
              },
            ],
            [],
          ],
        ],
        dryRun: false,
      },
    ]);
  });

  it("shows pods with their connections", async () => {
    const outbound: OpenConnection = { ...connection, direction: "outbound", encryption: "plaintext" };
    const { dump } = await dumpOf({
      pods: [
        { pod: testPod("server"), served: true },
        { pod: testPod("client"), served: false },
      ],
      connections: [connection, outbound, { ...connection, original: undefined }],
    });
    const state = dump["workloadState"] as Record<string, Dump>;
    assert.deepEqual(state["uid-server"], {
      state: "Up",
      connections: {
        inbound: [
          {
            src: "10.1.0.1:4000",
            originalDst: "web.shop.svc.cluster.local",
            actualDst: "10.1.0.2:8080",
            protocol: "HBONE",
          },
          { src: "10.1.0.1:4000", originalDst: null, actualDst: "10.1.0.2:8080", protocol: "HBONE" },
        ],
        outbound: [
          {
            src: "10.1.0.1:4000",
            originalDst: "web.shop.svc.cluster.local",
            actualDst: "10.1.0.2:8080",
            protocol: "TCP",
          },
        ],
      },
      info: { name: "server", namespace: "shop", trustDomain: "cluster.local", serviceAccount: "server" },
    });
    assert.equal(state["uid-client"]?.["state"], "Pending");
  });

  it("shows certificates, those that are waited for and why others are missing, and no private key", async () => {
    const authority = await TestAuthority.create();
    const pods = ["server", "waiting", "failed"].map((name) => ({ pod: testPod(name), served: true }));
    const [ready, , failed] = pods.map(({ pod }) => pod.identity);
    const certificate = ready === undefined ? undefined : await authority.identity(ready);
    const { dump, text } = await dumpOf({
      pods,
      certificates: {
        get: (id) => (id === ready ? certificate : undefined),
        failure: (id) => (id === failed ? new Error("no authority") : undefined),
      },
    });
    const certificates = dump["certificates"] as { state: string; certChain: Dump[]; rootCerts: Dump[] }[];
    assert.deepEqual(
      certificates.map(({ state }) => state),
      ["Unavailable: no authority", "Available", "Initializing"],
      "in the order of their names",
    );
    assert.deepEqual(
      certificates.map(({ certChain, rootCerts }) => [certChain.length, rootCerts.length]),
      [
        [0, 0],
        [2, 1],
        [0, 0],
      ],
    );
    const leaf = certificates[1]?.certChain[0];
    assert.match(String(leaf?.["serialNumber"]), /^\d+$/);
    assert.match(String(leaf?.["expirationTime"]), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    assert.match(Buffer.from(String(leaf?.["pem"]), "base64").toString(), /^-----BEGIN CERTIFICATE-----/);
    // The key would be there in one of these forms; the twin shows that the search finds what is dumped.
    const key = certificate?.keyPem ?? "";
    const forms = (pem: string): string[] => [
      pem,
      JSON.stringify(pem).slice(1, -1),
      btoa(pem),
      pem.split("\n")[1] ?? pem,
    ];
    assert.ok(forms(key).every((form) => form !== "" && !text.includes(form)));
    assert.doesNotMatch(text, /PRIVATE KEY/);
    assert.ok(forms(authority.root.pem).some((form) => text.includes(form)));
  });

  it("is made while it is read: a hundred thousand workloads let others have their turn", async () => {
    const many = Array.from({ length: 100_000 }, (_, i) =>
      testWorkload(`w${i}`, `10.${1 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`),
    );
    const { table } = testView(many);
    let turns = 0;
    let counting = true;
    const count = (): void => {
      turns++;
      if (counting) setImmediate(count);
    };
    count();
    const { dump } = await dumpOf({ table });
    counting = false;
    assert.equal((dump["workloads"] as unknown[]).length, 100_000);
    assert.ok(turns >= 500, `only ${turns} turns`);
  });
});
