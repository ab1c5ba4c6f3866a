import assert from "node:assert/strict";
import { test } from "node:test";
import type { Gateway, Pod, Service as KubeService, ServiceEntry, WorkloadEntry } from "#kube";
import type { Authorization } from "#model/authorization";
import { decodeAddress, decodeAuthorization } from "#proto";
import { Discovery } from "./index.ts";

const cluster = {
  clusterId: "Kubernetes",
  network: "",
  trustDomain: "cluster.local",
  clusterDomain: "cluster.local",
  enforceWaypoints: true,
};
const POLICY = "shop/istio_allow_waypoint_shop_wp";
const CART = "Kubernetes//Pod/shop/cart";
const USE = { "istio.io/use-waypoint": "wp" };

function pod(name: string, labels: Record<string, string>, account = ""): Pod {
  return {
    metadata: { name, namespace: "shop", labels },
    spec: { containers: [], ...(account !== "" && { serviceAccountName: account }) },
    status: { phase: "Running", podIP: "10.1.0.1" },
  };
}

function waypointPod(name: string, account: string): Pod {
  return pod(name, { "gateway.networking.k8s.io/gateway-name": "wp" }, account);
}

function service(labels: Record<string, string>): KubeService {
  const spec = { clusterIP: "10.96.0.1", selector: { app: "cart" }, ports: [{ port: 80 }] };
  return { metadata: { name: "cart", namespace: "shop", labels }, spec };
}

function gateway(use = "all"): Gateway {
  return {
    metadata: { name: "wp", namespace: "shop", labels: { "istio.io/waypoint-for": use } },
    spec: { gatewayClassName: "istio-waypoint", listeners: [{ name: "mesh", port: 15_008, protocol: "HBONE" }] },
    status: { addresses: [{ type: "Hostname", value: "wp.shop.svc.cluster.local" }] },
  };
}

/** A discovery and what it has published so far. */
class Mesh {
  readonly discovery: Discovery;
  readonly #lists = new Map<string, readonly string[]>();
  readonly #policies = new Map<string, Authorization>();

  constructor(enforceWaypoints = true) {
    this.discovery = new Discovery({ ...cluster, enforceWaypoints });
  }

  #flush(): void {
    const { upserts, removes, policies } = this.discovery.flush();
    for (const name of removes) this.#lists.delete(name);
    for (const { name, value } of upserts) {
      const address = decodeAddress(value);
      if (address.kind === "workload") this.#lists.set(name, address.authorizationPolicies);
    }
    for (const name of policies.removes) this.#policies.delete(name);
    for (const { name, value } of policies.upserts) {
      const decoded = decodeAuthorization(name, value);
      assert.ok("policy" in decoded, name);
      this.#policies.set(name, decoded.policy);
    }
  }

  list(uid = CART): readonly string[] | undefined {
    this.#flush();
    return this.#lists.get(uid);
  }

  /** Whom the waypoint's policy lets in; undefined: there is no policy. */
  get letIn(): readonly string[] | undefined {
    this.#flush();
    const policy = this.#policies.get(POLICY);
    if (policy === undefined) return undefined;
    assert.deepEqual([policy.action, policy.scope, policy.dryRun], ["allow", "workload", false]);
    return policy.rules
      .flat(2)
      .flatMap(({ principals }) => principals)
      .map((principal) => (principal.kind === "exact" ? principal.value : principal.kind));
  }
}

test("a workload behind a waypoint lists the policy that lets in the waypoint's accounts", () => {
  const mesh = new Mesh();
  mesh.discovery.upsertPod(pod("cart", { app: "cart", ...USE }));
  assert.deepEqual([mesh.list(), mesh.letIn], [[], undefined]);
  mesh.discovery.upsertGateway(gateway());
  assert.deepEqual([mesh.list(), mesh.letIn], [[POLICY], []], "without pods it lets in nobody");
  mesh.discovery.upsertPod(waypointPod("wp-1", "wp"));
  mesh.discovery.upsertPod(waypointPod("wp-2", "other"));
  assert.deepEqual(mesh.letIn, ["cluster.local/ns/shop/sa/other", "cluster.local/ns/shop/sa/wp"]);
  assert.deepEqual(mesh.list("Kubernetes//Pod/shop/wp-1"), [], "nothing stands before the waypoint itself");
  mesh.discovery.removePod(waypointPod("wp-2", "other"));
  assert.deepEqual(mesh.letIn, ["cluster.local/ns/shop/sa/wp"]);
  mesh.discovery.removeGateway(gateway());
  assert.deepEqual([mesh.list(), mesh.letIn], [[], undefined]);
});

test("so does an endpoint of a service behind one, whichever of them comes or changes last", () => {
  const steps: readonly ((discovery: Discovery) => void)[] = [
    (discovery) => discovery.upsertPod(pod("cart", { app: "cart" })),
    (discovery) => discovery.upsertService(service(USE)),
    (discovery) => discovery.upsertGateway(gateway("service")),
  ];
  for (const first of steps) {
    for (const second of steps.filter((step) => step !== first)) {
      const mesh = new Mesh();
      for (const step of [first, second, ...steps.filter((one) => one !== first && one !== second)]) {
        step(mesh.discovery);
        mesh.list();
      }
      assert.deepEqual(mesh.list(), [POLICY]);
      mesh.discovery.upsertService(service({}));
      assert.deepEqual(mesh.list(), [], "the service has left its waypoint");
      mesh.discovery.upsertNamespace({ metadata: { name: "shop", labels: USE } });
      assert.deepEqual(mesh.list(), [POLICY], "its namespace has one");
      mesh.discovery.upsertGateway(gateway("none"));
      assert.deepEqual(mesh.list(), []);
    }
  }
});

test("so do WorkloadEntries, endpoints of ServiceEntries, and pods that those select", () => {
  const mesh = new Mesh();
  const entry: ServiceEntry = {
    metadata: { name: "api", namespace: "shop", labels: USE },
    spec: { hosts: ["api.example.com"], resolution: "STATIC", endpoints: [{ address: "10.9.0.1" }] },
  };
  const selecting: ServiceEntry = {
    metadata: { name: "sel", namespace: "shop", labels: USE },
    spec: { hosts: ["sel.example.com"], resolution: "STATIC", workloadSelector: { labels: { app: "cart" } } },
  };
  const vm: WorkloadEntry = {
    metadata: { name: "vm", namespace: "shop" },
    spec: { address: "10.9.0.2", labels: { app: "cart" } },
  };
  mesh.discovery.entries.setServiceEntry("shop/api", entry);
  mesh.discovery.entries.setServiceEntry("shop/sel", selecting);
  mesh.discovery.entries.setWorkloadEntry("shop/vm", vm);
  mesh.discovery.upsertPod(pod("cart", { app: "cart" }));
  const uids = [
    "Kubernetes/networking.istio.io/ServiceEntry/shop/api/10.9.0.1",
    "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm",
    CART,
  ];
  assert.deepEqual(
    uids.map((uid) => mesh.list(uid)),
    [[], [], []],
  );
  mesh.discovery.upsertGateway(gateway());
  assert.deepEqual(
    uids.map((uid) => mesh.list(uid)),
    [[POLICY], [POLICY], [POLICY]],
  );
  for (const [key, one] of [
    ["shop/api", entry],
    ["shop/sel", selecting],
  ] as const) {
    mesh.discovery.entries.setServiceEntry(key, { ...one, metadata: { ...one.metadata, labels: {} } });
  }
  assert.deepEqual(
    uids.map((uid) => mesh.list(uid)),
    [[], [], []],
  );
});

test("where waypoints are not enforced there is no such policy", () => {
  const mesh = new Mesh(false);
  mesh.discovery.upsertPod(pod("cart", { app: "cart", ...USE }));
  mesh.discovery.upsertGateway(gateway());
  mesh.discovery.upsertPod(waypointPod("wp-1", "wp"));
  assert.deepEqual([mesh.list(), mesh.letIn], [[], undefined]);
});
