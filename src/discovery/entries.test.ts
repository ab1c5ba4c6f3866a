import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { objectKey, type Pod, type ServiceEntry, type Service as KubeService, type WorkloadEntry } from "#kube";
import type { Service, Workload } from "#model/workload";
import { decodeAddress } from "#proto";
import { Discovery, type Problem } from "./index.ts";

const cluster = { clusterId: "Kubernetes", network: "", trustDomain: "cluster.local", clusterDomain: "cluster.local" };

/** A discovery and what it has published so far. */
class Mesh {
  readonly discovery = new Discovery(cluster);
  readonly addresses = new Map<string, Service | Workload>();
  problems: readonly Problem[] = [];

  constructor(...objects: readonly (readonly [kind: "entry" | "workload" | "service" | "pod", object: object])[]) {
    for (const [kind, object] of objects) this.put(kind, object);
    this.flush();
  }

  put(kind: "entry" | "workload" | "service" | "pod", object: object): void {
    if (kind === "entry") this.discovery.entries.setServiceEntry(objectKey(object), object);
    else if (kind === "workload") this.discovery.entries.setWorkloadEntry(objectKey(object), object);
    else if (kind === "service") this.discovery.upsertService(object);
    else this.discovery.upsertPod(object);
  }

  drop(kind: "entry" | "workload" | "service" | "pod", object: object): void {
    if (kind === "entry") this.discovery.entries.setServiceEntry(objectKey(object), undefined);
    else if (kind === "workload") this.discovery.entries.setWorkloadEntry(objectKey(object), undefined);
    else if (kind === "service") this.discovery.removeService(object);
    else this.discovery.removePod(object);
  }

  flush(): void {
    const { upserts, removes, problems } = this.discovery.flush();
    for (const name of removes) this.addresses.delete(name);
    for (const { name, value } of upserts) this.addresses.set(name, decodeAddress(value));
    this.problems = problems;
  }

  service(name: string): Service {
    const found = this.addresses.get(name);
    assert.equal(found?.kind, "service", `${name} is published: there is ${[...this.addresses.keys()].join(", ")}`);
    return found;
  }

  workload(uid: string): Workload {
    const found = this.addresses.get(uid);
    assert.equal(found?.kind, "workload", `${uid} is published: there is ${[...this.addresses.keys()].join(", ")}`);
    return found;
  }
}

function entry(spec: NonNullable<ServiceEntry["spec"]>, metadata: ServiceEntry["metadata"] = {}): ServiceEntry {
  return {
    metadata: { name: "api", namespace: "shop", creationTimestamp: "2026-01-02T00:00:00Z", ...metadata },
    spec: {
      hosts: ["api.example.com"],
      ports: [{ number: 443, name: "tls", protocol: "TLS" }],
      resolution: "STATIC",
      ...spec,
    },
  };
}

function workloadEntry(spec: WorkloadEntry["spec"], metadata: WorkloadEntry["metadata"] = {}): WorkloadEntry {
  return { metadata: { name: "vm", namespace: "shop", ...metadata }, spec: { address: "10.9.0.1", ...spec } };
}

function pod(
  name: string,
  labels: Record<string, string>,
  ports: readonly { name: string; containerPort: number }[] = [],
): Pod {
  return {
    metadata: { name, namespace: "shop", labels },
    spec: { containers: [{ name: "main", ports: [...ports] }] },
    status: { phase: "Running", podIP: "10.244.1.9", conditions: [{ type: "Ready", status: "True" }] },
  };
}

const API = "shop/api.example.com";
const endpointUid = (address: string): string => `Kubernetes/networking.istio.io/ServiceEntry/shop/api/${address}`;

test("a ServiceEntry is a service for each host, with its endpoints behind all of them", () => {
  const mesh = new Mesh([
    "entry",
    entry({
      hosts: ["api.example.com", "www.example.com"],
      addresses: ["240.240.1.1", "10.8.7.6/16", "2001:db8::1/128"],
      ports: [{ number: 443, name: "tls", protocol: "TLS", targetPort: 8443 }],
      subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/api"],
      endpoints: [
        { address: "10.9.0.1", ports: { tls: 9443 }, locality: "eu/eu-1/rack", weight: 5, serviceAccount: "api" },
        { address: "backend.example.net" },
      ],
    }),
  ]);
  const service = mesh.service(API);
  assert.deepEqual(
    service.addresses.map(({ address, length }) => [address, length]),
    [
      ["240.240.1.1", undefined],
      ["10.8.0.0", 16],
      ["2001:db8::1", undefined],
    ],
  );
  assert.deepEqual(service.ports, [{ servicePort: 443, targetPort: 8443 }]);
  assert.deepEqual(service.subjectAltNames, ["spiffe://cluster.local/ns/shop/sa/api"]);
  assert.equal(service.loadBalancing.mode, "unspecified");
  assert.ok(service.canonical);
  const first = mesh.workload(endpointUid("10.9.0.1"));
  assert.deepEqual(first.services, {
    [API]: [{ servicePort: 443, targetPort: 9443 }],
    "shop/www.example.com": [{ servicePort: 443, targetPort: 9443 }],
  });
  assert.deepEqual(first.locality, { region: "eu", zone: "eu-1", subzone: "rack" });
  assert.deepEqual([first.capacity, first.serviceAccount, first.tunnelProtocol], [5, "api", "none"]);
  const second = mesh.workload(endpointUid("backend.example.net"));
  assert.deepEqual([second.addresses, second.hostname], [[], "backend.example.net"]);
  assert.deepEqual(second.services[API], [{ servicePort: 443, targetPort: 8443 }]);
  assert.deepEqual(mesh.problems, []);
});

test("one that is resolved by DNS and names no endpoint leads to its hosts, each to its own", () => {
  const mesh = new Mesh([
    "entry",
    entry({ hosts: ["api.example.com", "www.example.com", "*.example.com"], resolution: "DNS" }),
  ]);
  const own = mesh.workload(endpointUid("api.example.com"));
  assert.deepEqual([own.hostname, Object.keys(own.services)], ["api.example.com", [API]]);
  assert.deepEqual(Object.keys(mesh.workload(endpointUid("www.example.com")).services), ["shop/www.example.com"]);
  assert.ok(!mesh.addresses.has(endpointUid("*.example.com")), "a wildcard leads nowhere");
});

test("one that is not resolved passes everything through", () => {
  const { loadBalancing } = new Mesh(["entry", entry({ resolution: "NONE", addresses: ["10.8.0.0/16"] })]).service(API);
  assert.deepEqual([loadBalancing.mode, loadBalancing.allowUnhealthy], ["passthrough", true]);
});

test("addresses that a control plane has given count where the entry names none, and not for wildcards", () => {
  const status = {
    addresses: [
      { value: "240.240.0.7", host: "api.example.com" },
      { value: "240.240.0.8", host: "*.example.com" },
    ],
  };
  const given = (spec: ServiceEntry["spec"], name = API) =>
    new Mesh(["entry", { ...entry({ hosts: ["api.example.com", "*.example.com"], ...spec }), status }])
      .service(name)
      .addresses.map(({ address }) => address);
  assert.deepEqual(given({}), ["240.240.0.7"]);
  assert.deepEqual(given({ addresses: ["10.8.0.1"] }), ["10.8.0.1"]);
  assert.deepEqual(given({ resolution: "NONE" }), []);
  assert.deepEqual(given({}, "shop/*.example.com"), []);
});

test("exportTo: own namespace alone, all, nobody; what is not carried is said", () => {
  const exported = (...exportTo: string[]) => new Mesh(["entry", entry({ exportTo })]);
  assert.equal(exported().service(API).visibility, "public");
  assert.equal(exported("*").service(API).visibility, "public");
  assert.equal(exported(".").service(API).visibility, "namespace");
  assert.equal(exported("shop").service(API).visibility, "namespace");
  assert.equal(exported("~").addresses.size, 0);
  const some = exported(".", "bank");
  assert.equal(some.service(API).visibility, "public");
  assert.deepEqual(
    some.problems.map(({ field }) => field),
    ["spec.exportTo"],
  );
});

test("what cannot be used is named, and the rest stays in force", () => {
  const mesh = new Mesh([
    "entry",
    entry({
      addresses: ["240.240.1.1", "nowhere"],
      ports: [
        { number: 80, name: "http", protocol: "HTTP" },
        { number: 53, name: "dns", protocol: "UDP" },
      ],
      endpoints: [{ address: "unix:///run/api.sock" }, { address: "10.9.0.1" }],
      resolution: "STATIC",
    }),
  ]);
  assert.deepEqual(mesh.problems.map(({ field }) => field).toSorted(), [
    "spec.addresses[1]",
    "spec.endpoints[0].address",
    "spec.ports[1].protocol",
  ]);
  assert.equal(mesh.service(API).addresses.length, 1);
  assert.deepEqual(mesh.service(API).ports, [{ servicePort: 80, targetPort: 80 }]);
  assert.ok(mesh.addresses.has(endpointUid("10.9.0.1")));
  const dynamic = new Mesh(["entry", entry({ resolution: "DYNAMIC_DNS" })]);
  assert.deepEqual(
    dynamic.problems.map(({ field }) => field),
    ["spec.resolution"],
  );
});

test("a workloadSelector finds pods and WorkloadEntries of its namespace, with ports by the names that they have", () => {
  const selected = entry({
    workloadSelector: { labels: { app: "api" } },
    ports: [{ number: 443, name: "tls", targetPort: 8443 }],
  });
  const mesh = new Mesh(
    ["entry", selected],
    ["pod", pod("named", { app: "api" }, [{ name: "tls", containerPort: 9443 }])],
    ["pod", pod("plain", { app: "api" })],
    ["pod", pod("other", { app: "cart" })],
    ["workload", workloadEntry({ labels: { app: "api" }, ports: { tls: 7443 } })],
  );
  const portsOf = (uid: string) => mesh.workload(uid).services[API]?.map(({ targetPort }) => targetPort);
  assert.deepEqual(portsOf("Kubernetes//Pod/shop/named"), [9443]);
  assert.deepEqual(portsOf("Kubernetes//Pod/shop/plain"), [8443]);
  assert.equal(portsOf("Kubernetes//Pod/shop/other"), undefined);
  assert.deepEqual(portsOf("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"), [7443]);
  mesh.drop("entry", selected);
  mesh.flush();
  assert.deepEqual(mesh.workload("Kubernetes//Pod/shop/named").services, {});
  assert.deepEqual(mesh.workload("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm").services, {});
});

const cart: KubeService = {
  metadata: { name: "cart", namespace: "shop" },
  spec: {
    clusterIP: "10.96.0.9",
    selector: { app: "vm" },
    ports: [
      { name: "http", port: 80, targetPort: 8080 },
      { name: "admin", port: 81, targetPort: "admin" },
      { name: "debug", port: 82, targetPort: "debug" },
    ],
  },
};

test("a WorkloadEntry is a workload, and stands behind the Services that select it", () => {
  const labels = { app: "vm", "app.kubernetes.io/version": "v2" };
  const mesh = new Mesh(
    ["service", cart],
    ["workload", workloadEntry({ ports: { admin: 9001 }, network: "vms", serviceAccount: "vm" }, { labels })],
  );
  const { services, ...workload } = mesh.workload("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm");
  assert.deepEqual(services["shop/cart.shop.svc.cluster.local"], [
    { servicePort: 80, targetPort: 8080 },
    { servicePort: 81, targetPort: 9001 },
  ]);
  assert.deepEqual(
    [workload.addresses, workload.network, workload.serviceAccount, workload.canonicalRevision],
    [["10.9.0.1"], "vms", "vm", "v2"],
  );
  assert.ok(workload.healthy && !workload.hostNetwork);
  const enrolled = new Mesh([
    "workload",
    workloadEntry({}, { annotations: { "ambient.istio.io/redirection": "enabled" } }),
  ]);
  assert.equal(enrolled.workload("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm").tunnelProtocol, "hbone");
  const nowhere = new Mesh(["workload", workloadEntry({ address: "unix:///run/vm.sock" })]);
  assert.deepEqual([nowhere.addresses.size, nowhere.problems.map(({ field }) => field)], [0, ["spec.address"]]);
});

test("of one host the Kubernetes Service is canonical, else the oldest entry; in one namespace only one has the name", () => {
  const hosts = ["cart.shop.svc.cluster.local"];
  const inShop = entry({ hosts });
  const inBank = entry({ hosts }, { namespace: "bank", creationTimestamp: "2026-01-01T00:00:00Z" });
  const later = entry({ hosts }, { name: "later", creationTimestamp: "2026-01-03T00:00:00Z" });
  const mesh = new Mesh(["entry", inShop], ["entry", inBank], ["entry", later], ["service", cart]);
  const name = (namespace: string) => `${namespace}/cart.shop.svc.cluster.local`;
  assert.equal(mesh.service(name("shop")).addresses[0]?.address, "10.96.0.9", "the Service has the name");
  assert.deepEqual([mesh.service(name("shop")).canonical, mesh.service(name("bank")).canonical], [true, false]);
  assert.equal(mesh.problems.filter(({ field }) => field === "spec.hosts").length, 2);
  mesh.drop("service", cart);
  mesh.flush();
  assert.equal(mesh.service(name("shop")).name, "api", "the older of both entries has the name now");
  assert.deepEqual([mesh.service(name("shop")).canonical, mesh.service(name("bank")).canonical], [false, true]);
  mesh.drop("entry", inBank);
  mesh.flush();
  assert.equal(mesh.service(name("shop")).canonical, true);
  mesh.drop("entry", inShop);
  mesh.flush();
  assert.equal(mesh.service(name("shop")).name, "later");
  mesh.put("service", cart);
  mesh.flush();
  assert.equal(mesh.service(name("shop")).addresses[0]?.address, "10.96.0.9");
});

test("however objects come and go, what is published is what a fresh start would publish", () => {
  const pool = [
    ["service", cart],
    [
      "entry",
      entry({ hosts: ["cart.shop.svc.cluster.local", "api.example.com"], workloadSelector: { labels: { app: "vm" } } }),
    ],
    [
      "entry",
      entry({ endpoints: [{ address: "10.9.0.2" }] }, { name: "older", creationTimestamp: "2026-01-01T00:00:00Z" }),
    ],
    ["entry", entry({ resolution: "DNS" }, { namespace: "bank" })],
    ["workload", workloadEntry({ labels: { app: "vm" } })],
    ["pod", pod("a", { app: "vm" })],
  ] as const;
  const step = fc.record({ at: fc.nat(pool.length - 1), put: fc.boolean(), flush: fc.boolean() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const mesh = new Mesh();
      const there = new Set<number>();
      for (const { at, put, flush } of steps) {
        const [kind, object] = pool[at] ?? pool[0];
        if (put) mesh.put(kind, object);
        else mesh.drop(kind, object);
        if (put) there.add(at);
        else there.delete(at);
        if (flush) mesh.flush();
      }
      mesh.flush();
      const fresh = new Mesh(...pool.filter((_, at) => there.has(at)));
      const sorted = (all: Mesh) => [...all.addresses].toSorted(([a], [b]) => a.localeCompare(b));
      assert.deepEqual(sorted(mesh), sorted(fresh));
    }),
  );
});
