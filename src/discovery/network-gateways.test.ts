import assert from "node:assert/strict";
import { test } from "node:test";
import type { Gateway, ServiceEntry, Service as KubeService, WorkloadEntry } from "#kube";
import type { Service, Workload } from "#model/workload";
import { decodeAddress } from "#proto";
import { Discovery } from "./index.ts";

const cluster = {
  clusterId: "Kubernetes",
  network: "here",
  trustDomain: "cluster.local",
  clusterDomain: "cluster.local",
};
const UID = "NetworkGateway/far/172.18.0.9/15008";
const VM = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm";
const CART = "shop/cart.shop.svc.cluster.local";

function gateway(
  spec: Gateway["spec"] = {},
  more: {
    name?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
    status?: Gateway["status"];
  } = {},
): Gateway {
  const { name = "far-gateway", labels = { "topology.istio.io/network": "far" }, annotations = {}, status = {} } = more;
  return {
    metadata: { name, namespace: "istio-gateways", labels, annotations },
    spec: {
      gatewayClassName: "istio-remote",
      addresses: [{ type: "IPAddress", value: "172.18.0.9" }],
      listeners: [{ name: "cross-network", port: 15_008, protocol: "HBONE" }],
      ...spec,
    },
    status,
  };
}

function vm(spec: WorkloadEntry["spec"]): WorkloadEntry {
  const labels = { app: "cart" };
  return {
    metadata: { name: "vm", namespace: "shop" },
    spec: { address: "10.9.0.1", network: "far", labels, ...spec },
  };
}

const cart: KubeService = {
  metadata: { name: "cart", namespace: "shop" },
  spec: { clusterIP: "10.96.0.1", selector: { app: "cart" }, ports: [{ port: 80 }] },
};

/** A discovery and what it has published so far. */
class Mesh {
  readonly discovery = new Discovery(cluster);
  readonly #addresses = new Map<string, Service | Workload>();

  /** What is wrong with the objects that were looked at last. */
  problems: readonly (readonly [object: string, field: string])[] = [];

  find(name: string): Service | Workload | undefined {
    const { upserts, removes, problems } = this.discovery.flush();
    this.problems = problems.map(({ object, field }) => [object, field]);
    for (const removed of removes) this.#addresses.delete(removed);
    for (const { name: upserted, value } of upserts) this.#addresses.set(upserted, decodeAddress(value));
    return this.#addresses.get(name);
  }

  entrance(uid: string): unknown {
    const found = this.find(uid);
    assert.equal(found?.kind, "workload");
    return found.networkGateway;
  }

  identities(name: string): readonly string[] {
    const found = this.find(name);
    assert.equal(found?.kind, "service");
    return found.subjectAltNames;
  }
}

test("a remote Gateway is a workload at each of its addresses, and where its network is entered", () => {
  const mesh = new Mesh();
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({}));
  assert.equal(mesh.entrance(VM), undefined, "nobody knows how to get there");
  mesh.discovery.upsertGateway(gateway());
  const found = mesh.find(UID);
  assert.ok(found?.kind === "workload");
  assert.deepEqual(
    [found.addresses, found.network, found.namespace, found.serviceAccount, found.trustDomain],
    [["172.18.0.9"], "far", "istio-gateways", "far-gateway-istio-remote", "cluster.local"],
  );
  const entrance = { destination: { kind: "address", network: "far", address: "172.18.0.9" }, hboneMtlsPort: 15_008 };
  assert.deepEqual(mesh.entrance(VM), entrance);
  mesh.discovery.removeGateway(gateway());
  assert.deepEqual([mesh.find(UID), mesh.entrance(VM)], [undefined, undefined]);
});

test("its account may be named, its address may be a name, and what its status says counts before its spec", () => {
  const mesh = new Mesh();
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({}));
  const annotations = { "gateway.istio.io/service-account": "eastwest" };
  const status = { addresses: [{ type: "Hostname", value: "gw.far.example" }] };
  mesh.discovery.upsertGateway(gateway({}, { annotations, status }));
  const found = mesh.find("NetworkGateway/far/gw.far.example/15008");
  assert.ok(found?.kind === "workload");
  assert.deepEqual([found.addresses, found.hostname, found.serviceAccount], [[], "gw.far.example", "eastwest"]);
  assert.deepEqual(mesh.entrance(VM), {
    destination: { kind: "hostname", namespace: "istio-gateways", hostname: "gw.far.example" },
    hboneMtlsPort: 15_008,
  });
  assert.equal(mesh.find(UID), undefined);
});

test("other Gateways are no entrances: of another class, without a network, without HBONE, at no address", () => {
  const mesh = new Mesh();
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({}));
  const others = [
    gateway({ gatewayClassName: "istio-east-west" }),
    gateway({}, { labels: {} }),
    gateway({ listeners: [{ name: "tls", port: 443, protocol: "TLS" }] }),
    gateway({
      addresses: [
        { type: "IPAddress", value: "far away" },
        { type: "NamedAddress", value: "172.18.0.9" },
      ],
    }),
  ];
  for (const other of others) {
    mesh.discovery.upsertGateway(other);
    assert.deepEqual([mesh.find(UID), mesh.entrance(VM)], [undefined, undefined]);
  }
});

test("of several Gateways the first by name is the entrance, the next when it goes; nothing enters one's own network", () => {
  const mesh = new Mesh();
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({}));
  mesh.discovery.upsertGateway(gateway({ addresses: [{ value: "172.18.0.2" }] }, { name: "b" }));
  mesh.discovery.upsertGateway(gateway({ addresses: [{ value: "172.18.0.1" }] }, { name: "a" }));
  const address = (): string => /"address":"([^"]+)"/.exec(JSON.stringify(mesh.entrance(VM)))?.[1] ?? "";
  assert.equal(address(), "172.18.0.1");
  mesh.discovery.removeGateway(gateway({}, { name: "a" }));
  assert.equal(address(), "172.18.0.2");
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({ network: "here" }));
  mesh.discovery.upsertGateway(gateway({}, { name: "a", labels: { "topology.istio.io/network": "here" } }));
  assert.equal(mesh.entrance(VM), undefined);
});

test("a service names who answers for it on other networks, and only those who are named there", () => {
  const mesh = new Mesh();
  const far = "spiffe://cluster.local/ns/shop/sa/far-cart";
  mesh.discovery.upsertService(cart);
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({ serviceAccount: "far-cart" }));
  assert.deepEqual(mesh.identities(CART), [far]);
  for (const spec of [{ network: "here", serviceAccount: "far-cart" }, { serviceAccount: "" }, { labels: {} }]) {
    mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({ serviceAccount: "far-cart", ...spec }));
    assert.deepEqual(mesh.identities(CART), [], JSON.stringify(spec));
  }
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({ serviceAccount: "far-cart" }));
  assert.deepEqual(mesh.identities(CART), [far]);
  mesh.discovery.entries.setWorkloadEntry("shop/vm", undefined);
  assert.deepEqual(mesh.identities(CART), []);
});

test("endpoints of a ServiceEntry on another network have its entrance, and are named by its services", () => {
  const mesh = new Mesh();
  mesh.discovery.upsertGateway(gateway());
  const entry: ServiceEntry = {
    metadata: { name: "api", namespace: "shop" },
    spec: {
      hosts: ["api.example.com"],
      resolution: "STATIC",
      addresses: ["10.97.0.1"],
      subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/own"],
      ports: [{ number: 80, name: "http" }],
      endpoints: [{ address: "10.9.0.2", network: "far", serviceAccount: "far-api" }, { address: "10.1.0.2" }],
    },
  };
  mesh.discovery.entries.setServiceEntry("shop/api", entry);
  const uid = (address: string): string => `Kubernetes/networking.istio.io/ServiceEntry/shop/api/${address}`;
  assert.deepEqual(
    mesh.identities("shop/api.example.com"),
    ["own", "far-api"].map((account) => `spiffe://cluster.local/ns/shop/sa/${account}`),
  );
  assert.notEqual(mesh.entrance(uid("10.9.0.2")), undefined);
  assert.equal(mesh.entrance(uid("10.1.0.2")), undefined);
  mesh.discovery.removeGateway(gateway());
  assert.equal(mesh.entrance(uid("10.9.0.2")), undefined);
});

test("an account that no identity can have is a problem of its object; everything else of it stays in force", () => {
  for (const account of ["far cart", "..", "a/sa/b", "x".repeat(2048)]) {
    const mesh = new Mesh();
    mesh.discovery.upsertService(cart);
    mesh.discovery.entries.setWorkloadEntry("shop/vm", vm({ serviceAccount: account }));
    mesh.discovery.entries.setWorkloadEntry("shop/good", {
      ...vm({ address: "10.9.0.7", serviceAccount: "far-cart" }),
      metadata: { name: "good", namespace: "shop" },
    });
    assert.deepEqual(mesh.identities(CART), ["spiffe://cluster.local/ns/shop/sa/far-cart"]);
    assert.deepEqual(mesh.problems, [["WorkloadEntry shop/vm", "spec.serviceAccount"]]);
    const found = mesh.find(VM);
    assert.ok(found?.kind === "workload" && found.addresses.length === 1 && Object.keys(found.services).length === 1);
    const ports = [{ number: 80, name: "http" }];
    const endpoints = ["far-api", account].map((serviceAccount, i) => {
      return { address: `10.9.0.${i + 1}`, network: "far", serviceAccount };
    });
    mesh.discovery.entries.setServiceEntry("shop/api", {
      metadata: { name: "api", namespace: "shop" },
      spec: { hosts: ["api.example.com"], resolution: "STATIC", addresses: ["10.97.0.1"], ports, endpoints },
    });
    assert.deepEqual(mesh.identities("shop/api.example.com"), ["spiffe://cluster.local/ns/shop/sa/far-api"]);
    assert.deepEqual(mesh.problems, [["ServiceEntry shop/api", "spec.endpoints[1].serviceAccount"]]);
  }
});
