import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, encode, type Answer } from "dns-packet";
import fc from "fast-check";
import type { EndpointSlice, Service } from "#kube";
import { answerQuery } from "./dns-message.ts";
import { virtualPorts } from "./endpoints.ts";
import { ClusterNames } from "./names.ts";
import { chainName, parseChains, serviceRules } from "./nft-rules.ts";

const web: Service = {
  metadata: { name: "web", namespace: "shop" },
  spec: { clusterIP: "10.96.0.20", ports: [{ name: "http", port: 80, targetPort: 8080 }] },
};
const headless: Service = {
  metadata: { name: "db", namespace: "shop" },
  spec: { clusterIP: "None", ports: [{ name: "sql", port: 5432 }] },
};
const outside: Service = {
  metadata: { name: "far", namespace: "shop" },
  spec: { type: "ExternalName", externalName: "example.com" },
};

function slice(
  service: string,
  port: number,
  endpoints: [ip: string, ready: boolean, hostname?: string][],
): EndpointSlice {
  return {
    metadata: { name: `${service}-1`, namespace: "shop", labels: { "kubernetes.io/service-name": service } },
    addressType: "IPv4",
    ports: [{ name: service === "db" ? "sql" : "http", port, protocol: "TCP" }],
    endpoints: endpoints.map(([ip, ready, hostname]) => ({
      addresses: [ip],
      conditions: { ready },
      ...(hostname === undefined ? {} : { hostname }),
    })),
  };
}

const slices = [
  slice("web", 8080, [
    ["10.244.1.3", true],
    ["10.244.1.2", true],
    ["10.244.2.2", false],
  ]),
  slice("db", 5432, [
    ["10.244.2.9", true, "db-0"],
    ["10.244.2.8", false],
  ]),
];
const names = new ClusterNames({ services: [web, headless, outside], slices });
const frame = { serviceCidr: "10.96.0.0/16", dns: "10.96.0.10", nodeAddress: "172.20.0.11" };

test("only ready endpoints get traffic, in a fixed order, and headless services have no address", () => {
  assert.deepEqual(virtualPorts([web, headless, outside], slices), [
    {
      ip: "10.96.0.20",
      protocol: "tcp",
      port: 80,
      endpoints: [
        { ip: "10.244.1.2", port: 8080 },
        { ip: "10.244.1.3", port: 8080 },
      ],
    },
  ]);
});

test("a port without endpoints has no rule, and the chain of one that has gone is removed", () => {
  const [port] = virtualPorts([web], slices);
  assert.ok(port);
  const rules = serviceRules([port, { ...port, port: 81, endpoints: [] }], frame, ["svc-10-96-0-9-tcp-1", "forward"]);
  assert.match(rules, /numgen random mod 2 map \{ 0 : 10\.244\.1\.2 \. 8080, 1 : 10\.244\.1\.3 \. 8080 \}/);
  assert.ok(!rules.includes("tcp-81"));
  assert.match(rules, /delete chain ip veil-lab-services svc-10-96-0-9-tcp-1/);
  assert.ok(!rules.includes("delete chain ip veil-lab-services forward"));
  assert.equal(chainName(port), "svc-10-96-0-20-tcp-80");
  // The map loses its elements before a chain goes that they name.
  assert.ok(rules.indexOf("flush map") < rules.indexOf("delete chain"));
});

test("what nft prints is read, and other text is no chain", () => {
  const text = JSON.stringify({
    nftables: [
      { metainfo: {} },
      { chain: { table: "veil-lab-services", name: "svc-a" } },
      { chain: { table: "x", name: "svc-b" } },
    ],
  });
  assert.deepEqual(parseChains(text), ["svc-a"]);
  fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (any) => assert.ok(Array.isArray(parseChains(any)))));
});

test("names of the cluster stand for addresses, other names do not exist", () => {
  const rows: [name: string, type: string, answer: unknown][] = [
    ["web.shop.svc.cluster.local", "A", ["10.96.0.20"]],
    ["WEB.Shop.SVC.cluster.LOCAL.", "A", ["10.96.0.20"]],
    ["db.shop.svc.cluster.local", "A", ["10.244.2.9"]],
    ["db-0.db.shop.svc.cluster.local", "A", ["10.244.2.9"]],
    ["10-244-1-2.web.shop.svc.cluster.local", "A", ["10.244.1.2"]],
    ["10-244-1-7.shop.pod.cluster.local", "A", ["10.244.1.7"]],
    ["web.shop.svc.cluster.local", "AAAA", "empty"],
    ["shop.svc.cluster.local", "A", "empty"],
    ["cluster.local", "A", "empty"],
    ["10-244-2-8.db.shop.svc.cluster.local", "A", "unknown"],
    ["web.other.svc.cluster.local", "A", "unknown"],
    ["a.b.c.d.web.shop.svc.cluster.local", "A", "unknown"],
    ["999-1-1-1.shop.pod.cluster.local", "A", "unknown"],
    ["example.com", "A", "unknown"],
    ["", "A", "unknown"],
  ];
  for (const [name, type, expected] of rows) {
    const found = names.find(name, type);
    assert.deepEqual(found.kind === "addresses" ? found.addresses : found.kind, expected, `${name} ${type}`);
  }
  assert.deepEqual(names.find("far.shop.svc.cluster.local", "A"), { kind: "alias", target: "example.com" });
  assert.deepEqual(names.find("_sql._tcp.db.shop.svc.cluster.local", "SRV"), {
    kind: "services",
    targets: [{ name: "db-0.db.shop.svc.cluster.local", port: 5432 }],
  });
  assert.deepEqual(names.find("_http._tcp.web.shop.svc.cluster.local", "SRV"), {
    kind: "services",
    targets: [{ name: "web.shop.svc.cluster.local", port: 80 }],
  });
});

function ask(name: string, view: ClusterNames, how: { type?: "A" | "AAAA"; transport?: "udp" | "tcp" } = {}) {
  const { type = "A", transport = "udp" } = how;
  const query = encode({ type: "query", id: 7, flags: 1 << 8, questions: [{ type, name }] });
  const bytes = answerQuery(query, view, transport);
  assert.ok(bytes);
  const answer = decode(bytes);
  return { ...answer, bytes, code: (answer.flags ?? 0) & 15 };
}

test("an answer repeats id and question, and says what it is", () => {
  const found = ask("web.shop.svc.cluster.local", names);
  assert.equal(found.id, 7);
  assert.equal(found.code, 0);
  assert.ok(found.flag_aa && found.flag_ra && found.flag_rd);
  assert.deepEqual(
    found.answers?.map((answer: Answer) => "data" in answer && answer.data),
    ["10.96.0.20"],
  );
  assert.equal(ask("example.com", names).code, 3);
  assert.equal(ask("web.shop.svc.cluster.local", names, { type: "AAAA" }).code, 0);
});

test("an answer too long for UDP is cut and marked, and whole over TCP", () => {
  const many = slice(
    "db",
    5432,
    Array.from({ length: 150 }, (_, i) => [`10.244.3.${i}`, true]),
  );
  const view = new ClusterNames({ services: [headless], slices: [many] });
  const short = ask("db.shop.svc.cluster.local", view);
  assert.ok(short.flag_tc && short.answers?.length === 0 && short.bytes.length <= 1232);
  assert.equal(ask("db.shop.svc.cluster.local", view, { transport: "tcp" }).answers?.length, 150);
});

test("no message breaks the server, and every answer can be read", () => {
  const good = encode({ type: "query", id: 1, questions: [{ type: "A", name: "web.shop.svc.cluster.local" }] });
  const mutated = fc.tuple(fc.nat(good.length - 1), fc.nat(255)).map(([at, byte]) => {
    const copy = Uint8Array.from(good);
    copy[at] = byte;
    return copy;
  });
  fc.assert(
    fc.property(
      fc.oneof(fc.uint8Array({ maxLength: 64 }), mutated),
      fc.constantFrom("udp", "tcp"),
      (bytes, transport) => {
        const answer = answerQuery(bytes, names, transport);
        if (answer === undefined) return;
        assert.deepEqual([...answer.subarray(0, 2)], [...bytes.subarray(0, 2)]);
        assert.equal(decode(answer).type, "response");
      },
    ),
    { numRuns: 2_000 },
  );
});
