import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { EndpointSlice, Node, Pod, Service as KubeService } from "#kube";
import type { Service, Workload } from "#model/workload";
import { decodeAddress } from "#proto";
import { Discovery, type Cluster, type DiscoveryUpdate } from "./index.ts";

const cluster: Cluster = {
  clusterId: "Kubernetes",
  network: "",
  trustDomain: "cluster.local",
  clusterDomain: "cluster.local",
};

interface PodOptions {
  name?: string;
  namespace?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ip?: string | null;
  ready?: boolean;
  phase?: string;
  hostNetwork?: boolean;
  node?: string;
  deleted?: boolean;
}

function pod(options: PodOptions = {}): Pod {
  const { name = "cart", namespace = "shop", labels = { app: "cart" }, ip = "10.244.1.5", ready = true } = options;
  return {
    metadata: {
      name,
      namespace,
      labels,
      annotations: options.annotations ?? {},
      ...(options.deleted === true && { deletionTimestamp: "2026-01-01T00:00:00Z" }),
    },
    spec: {
      nodeName: options.node ?? "node1",
      serviceAccountName: "buyer",
      ...(options.hostNetwork === true && { hostNetwork: true }),
      containers: [
        {
          name: "c",
          ports: [
            { name: "web", containerPort: 8080 },
            { name: "dns", containerPort: 53, protocol: "UDP" },
          ],
        },
      ],
    },
    status: {
      phase: options.phase ?? "Running",
      ...(ip !== null && { podIP: ip, podIPs: [{ ip }] }),
      conditions: [{ type: "Ready", status: ready ? "True" : "False" }],
    },
  };
}

function service(options: { name?: string; spec?: Partial<NonNullable<KubeService["spec"]>> } = {}): KubeService {
  return {
    metadata: { name: options.name ?? "cart", namespace: "shop" },
    spec: {
      clusterIP: "10.96.0.9",
      clusterIPs: ["10.96.0.9"],
      ipFamilies: ["IPv4"],
      selector: { app: "cart" },
      ports: [{ name: "http", port: 80, targetPort: 8080 }],
      ...options.spec,
    },
  };
}

function slice(options: { ips?: string[]; service?: string; ready?: boolean } = {}): EndpointSlice {
  return {
    metadata: {
      name: "outside-1",
      namespace: "shop",
      labels: { "kubernetes.io/service-name": options.service ?? "outside" },
    },
    addressType: "IPv4",
    endpoints: [{ addresses: options.ips ?? ["192.0.2.1"], conditions: { ready: options.ready ?? true } }],
    ports: [{ name: "http", port: 8443, protocol: "TCP" }],
  };
}

const workloads = (update: DiscoveryUpdate): Workload[] =>
  update.upserts.map(({ value }) => decodeAddress(value)).filter((address) => address.kind === "workload");
const services = (update: DiscoveryUpdate): Service[] =>
  update.upserts.map(({ value }) => decodeAddress(value)).filter((address) => address.kind === "service");

function flushed(give: (discovery: Discovery) => void): DiscoveryUpdate {
  const discovery = new Discovery(cluster);
  give(discovery);
  return discovery.flush();
}

test("a pod becomes a workload with its identity, node, addresses and canonical name", () => {
  const update = flushed((discovery) => discovery.upsertPod(pod()));
  assert.deepEqual(
    update.upserts.map(({ name, aliases }) => [name, aliases]),
    [["Kubernetes//Pod/shop/cart", ["/10.244.1.5"]]],
  );
  const [workload] = workloads(update);
  assert.ok(workload);
  assert.deepEqual(workload.addresses, ["10.244.1.5"]);
  assert.equal(workload.serviceAccount, "buyer");
  assert.equal(workload.trustDomain, "cluster.local");
  assert.equal(workload.node, "node1");
  assert.equal(workload.canonicalName, "cart");
  assert.equal(workload.canonicalRevision, "latest");
  assert.equal(workload.clusterId, "Kubernetes");
  assert.equal(workload.tunnelProtocol, "none");
  assert.equal(workload.healthy, true);
});

test("a pod is reached through HBONE exactly when its redirection is enabled", () => {
  for (const [value, protocol] of [
    ["enabled", "hbone"],
    ["pending", "none"],
    ["", "none"],
  ] as const) {
    const annotations = { "ambient.istio.io/redirection": value };
    const labels = { app: "cart", "istio.io/dataplane-mode": "ambient" };
    const [workload] = workloads(flushed((discovery) => discovery.upsertPod(pod({ annotations, labels }))));
    assert.equal(workload?.tunnelProtocol, protocol);
  }
});

test("pods without an address and pods that have ended are no workloads", () => {
  for (const options of [{ ip: null }, { phase: "Succeeded" }, { phase: "Failed" }]) {
    assert.equal(flushed((discovery) => discovery.upsertPod(pod(options))).upserts.length, 0);
  }
});

test("a pod is healthy when it is ready and not about to go", () => {
  for (const [options, healthy] of [
    [{}, true],
    [{ ready: false }, false],
    [{ deleted: true }, false],
  ] as const) {
    assert.equal(workloads(flushed((discovery) => discovery.upsertPod(pod(options))))[0]?.healthy, healthy);
  }
});

test("the workload's name is that of its Deployment or CronJob", () => {
  const owned = (kind: string, name: string, labels: Record<string, string> = {}): string | undefined => {
    const made = pod({ labels });
    made.metadata = {
      ...made.metadata,
      ownerReferences: [{ apiVersion: "v1", kind, name, uid: "u", controller: true }],
    };
    return workloads(flushed((discovery) => discovery.upsertPod(made)))[0]?.workloadName;
  };
  assert.equal(owned("ReplicaSet", "web-5c9f", { "pod-template-hash": "5c9f" }), "web");
  assert.equal(owned("ReplicaSet", "web-5c9f"), "web-5c9f");
  assert.equal(owned("Job", "report-28391040"), "report");
  assert.equal(owned("StatefulSet", "db"), "db");
});

test("a service has its addresses, ports and preferences; an ExternalName is none", () => {
  const [plain] = services(flushed((discovery) => discovery.upsertService(service())));
  assert.ok(plain);
  assert.equal(plain.hostname, "cart.shop.svc.cluster.local");
  assert.deepEqual(plain.addresses, [{ network: "", address: "10.96.0.9", length: undefined }]);
  assert.deepEqual(plain.ports, [{ servicePort: 80, targetPort: 8080 }]);
  assert.equal(plain.ipFamilies, "ipv4");
  assert.equal(plain.canonical, true);
  const of = (spec: Partial<NonNullable<KubeService["spec"]>>): Service | undefined =>
    services(flushed((discovery) => discovery.upsertService(service({ spec }))))[0];
  assert.deepEqual(of({ clusterIP: "None", clusterIPs: ["None"] })?.addresses, []);
  assert.equal(of({ type: "ExternalName" }), undefined);
  assert.deepEqual(of({ internalTrafficPolicy: "Local" })?.loadBalancing, {
    mode: "strict",
    routingPreference: ["node"],
    allowUnhealthy: false,
  });
  assert.deepEqual(of({ trafficDistribution: "PreferClose" })?.loadBalancing.routingPreference, [
    "network",
    "region",
    "zone",
  ]);
  assert.equal(of({ publishNotReadyAddresses: true })?.loadBalancing.allowUnhealthy, true);
  assert.deepEqual(
    of({
      ports: [
        { port: 53, protocol: "UDP" },
        { port: 53, protocol: "TCP" },
      ],
    })?.ports,
    [{ servicePort: 53, targetPort: 53 }],
  );
});

test("named ports are resolved at each pod; a pod that lacks the name lacks the port", () => {
  const spec = {
    ports: [
      { port: 80, targetPort: "web" as unknown as number }, // IntOrString, as on the wire
      { port: 81, targetPort: "dns" as unknown as number },
      { port: 82 },
    ],
  };
  const update = flushed((discovery) => {
    discovery.upsertService(service({ spec }));
    discovery.upsertPod(pod());
  });
  assert.deepEqual(
    services(update)[0]?.ports.map(({ targetPort }) => targetPort),
    [0, 0, 82],
  );
  assert.deepEqual(workloads(update)[0]?.services, {
    "shop/cart.shop.svc.cluster.local": [
      { servicePort: 80, targetPort: 8080 },
      { servicePort: 82, targetPort: 82 },
    ],
  });
});

test("only what changed is published again", () => {
  const discovery = new Discovery(cluster);
  discovery.upsertPod(pod());
  discovery.upsertPod(pod({ name: "other", ip: "10.244.1.6", labels: {} }));
  assert.equal(discovery.flush().upserts.length, 2);
  const noticed = pod();
  noticed.metadata = { ...noticed.metadata, resourceVersion: "2", annotations: { unrelated: "yes" } };
  discovery.upsertPod(noticed);
  const policies = { upserts: [], removes: [], verdicts: [] };
  assert.deepEqual(discovery.flush(), { upserts: [], removes: [], policies, problems: [] });
  discovery.upsertService(service());
  assert.deepEqual(
    discovery.flush().upserts.map(({ name }) => name),
    ["shop/cart.shop.svc.cluster.local", "Kubernetes//Pod/shop/cart"],
  );
  discovery.upsertService(service({ spec: { selector: { app: "nobody" } } }));
  const moved = discovery.flush();
  assert.deepEqual(
    moved.upserts.map(({ name }) => name),
    ["Kubernetes//Pod/shop/cart"],
  );
  assert.deepEqual(workloads(moved)[0]?.services, {});
  discovery.removeService(service());
  assert.deepEqual(discovery.flush().removes, ["shop/cart.shop.svc.cluster.local"]);
  discovery.removePod(pod());
  assert.deepEqual(discovery.flush().removes, ["Kubernetes//Pod/shop/cart"]);
  assert.equal(discovery.dirty, false);
});

test("a node's labels give its pods their locality", () => {
  const node: Node = {
    metadata: { name: "node1", labels: { "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z" } },
  };
  const discovery = new Discovery(cluster);
  discovery.upsertPod(pod());
  discovery.flush();
  discovery.upsertNode(node);
  assert.deepEqual(workloads(discovery.flush())[0]?.locality, { region: "r", zone: "z", subzone: "" });
  discovery.upsertNode(node);
  assert.equal(discovery.dirty, false);
  discovery.removeNode(node);
  assert.deepEqual(workloads(discovery.flush())[0]?.locality, { region: "", zone: "", subzone: "" });
});

test("pods of the node's network are workloads that nobody finds by address", () => {
  const update = flushed((discovery) => discovery.upsertPod(pod({ hostNetwork: true, ip: "172.20.0.11" })));
  assert.deepEqual(update.upserts[0]?.aliases, []);
  assert.equal(workloads(update)[0]?.hostNetwork, true);
});

test("the endpoints of a hand-made slice are workloads of their own, in clear", () => {
  const update = flushed((discovery) => {
    discovery.upsertService(service({ name: "outside", spec: { selector: {} } }));
    discovery.upsertEndpointSlice(slice());
  });
  const [workload] = workloads(update);
  assert.equal(workload?.uid, "Kubernetes/discovery.k8s.io/EndpointSlice/shop/outside-1/192.0.2.1");
  assert.equal(workload?.hostNetwork, true);
  assert.deepEqual(workload?.services, {
    "shop/outside.shop.svc.cluster.local": [{ servicePort: 80, targetPort: 8443 }],
  });
  assert.deepEqual(update.upserts[1]?.aliases, []);
});

test("slices of a service that selects its pods say nothing new", () => {
  const update = flushed((discovery) => {
    discovery.upsertService(service());
    discovery.upsertEndpointSlice(slice({ service: "cart" }));
  });
  assert.deepEqual(workloads(update), []);
});

test("a hand-made slice that names a pod's address never makes that pod reachable in clear", () => {
  const discovery = new Discovery(cluster);
  const enrolled = pod({ annotations: { "ambient.istio.io/redirection": "enabled" }, ip: "192.0.2.1" });
  discovery.upsertService(service({ name: "outside", spec: { selector: {} } }));
  discovery.upsertEndpointSlice(slice());
  assert.equal(workloads(discovery.flush()).length, 1);
  discovery.upsertPod(enrolled);
  const update = discovery.flush();
  assert.deepEqual(update.removes, ["Kubernetes/discovery.k8s.io/EndpointSlice/shop/outside-1/192.0.2.1"]);
  assert.equal(workloads(update)[0]?.tunnelProtocol, "hbone");
  assert.deepEqual(Object.keys(workloads(update)[0]?.services ?? {}), ["shop/outside.shop.svc.cluster.local"]);
  discovery.removePod(enrolled);
  const after = discovery.flush();
  assert.deepEqual(after.removes, ["Kubernetes//Pod/shop/cart"]);
  assert.equal(workloads(after)[0]?.tunnelProtocol, "none");
});

test("what cannot be read is named, and the rest goes on", () => {
  const discovery = new Discovery(cluster);
  const bad = pod({ name: "bad" });
  bad.status = { podIPs: [{ ip: "10.1.1.999" }, { ip: "10.1.1.9" }] };
  discovery.upsertPod(bad);
  discovery.upsertPod(pod());
  discovery.upsertService(service({ spec: { clusterIPs: ["nonsense"] } }));
  discovery.upsertEndpointSlice(slice({ ips: ["", "192.0.2.7"] }));
  const update = discovery.flush();
  assert.equal(update.upserts.length, 3);
  assert.deepEqual(update.problems.map(({ object, field }) => `${object}: ${field}`).toSorted(), [
    "EndpointSlice shop/outside-1: endpoints[0].addresses",
    "Pod shop/bad: status.podIPs[0]",
    "Service shop/cart: spec.clusterIPs",
  ]);
});

test("whatever the order of events, the result is that of the last state read at once", () => {
  const name = fc.constantFrom("a", "b");
  const ip = fc.constantFrom("10.0.0.1", "10.0.0.2", "192.0.2.1");
  const aPod = fc
    .record({
      name,
      ip: fc.option(ip),
      labels: fc.constantFrom<Record<string, string>[]>({ app: "cart" }, { app: "x" }, {}),
      phase: fc.constantFrom("Running", "Succeeded"),
      hostNetwork: fc.boolean(),
      node: fc.constantFrom("node1", "node2"),
    })
    .map((options) => pod(options));
  const aService = fc
    .record({
      name,
      selector: fc.constantFrom<Record<string, string>[]>({ app: "cart" }, { app: "x" }, {}),
      port: fc.nat(2),
    })
    .map(({ name: of, selector, port }) =>
      service({ name: of, spec: { selector, ports: [{ name: "http", port: 80 + port }] } }),
    );
  const aSlice = fc.record({ service: name, ips: fc.array(ip, { maxLength: 2 }) }).map((options) => slice(options));
  const aNode = fc.constantFrom("r1", "r2").map((region): Node => {
    return { metadata: { name: "node1", labels: { "topology.kubernetes.io/region": region } } };
  });
  type Step =
    | { kind: "pod"; object: Pod }
    | { kind: "service"; object: KubeService }
    | { kind: "slice"; object: EndpointSlice }
    | { kind: "node"; object: Node };
  const step = fc.tuple(
    fc.oneof(
      aPod.map((object): Step => ({ kind: "pod", object })),
      aService.map((object): Step => ({ kind: "service", object })),
      aSlice.map((object): Step => ({ kind: "slice", object })),
      aNode.map((object): Step => ({ kind: "node", object })),
    ),
    fc.constantFrom("upsert", "upsert", "remove"),
    fc.boolean(),
  );
  const give = (to: Discovery, { kind, object }: Step, remove: boolean): void => {
    if (kind === "pod") (remove ? () => to.removePod(object) : () => to.upsertPod(object))();
    else if (kind === "service") (remove ? () => to.removeService(object) : () => to.upsertService(object))();
    else if (kind === "slice") (remove ? () => to.removeEndpointSlice(object) : () => to.upsertEndpointSlice(object))();
    else (remove ? () => to.removeNode(object) : () => to.upsertNode(object))();
  };
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const discovery = new Discovery(cluster);
      const view = new Map<string, string>();
      const last = new Map<string, Step>();
      const take = (): void => {
        const { upserts, removes } = discovery.flush();
        for (const removed of removes) view.delete(removed);
        for (const upsert of upserts) view.set(upsert.name, upsert.version);
      };
      for (const [event, act, flush] of steps) {
        const key = `${event.kind} ${event.object.metadata?.name ?? ""}`;
        const known = last.get(key);
        if (act === "remove" && known !== undefined) {
          give(discovery, known, true);
          last.delete(key);
        } else {
          give(discovery, event, false);
          last.set(key, event);
        }
        if (flush) take();
      }
      take();
      const fresh = flushed((at) => {
        for (const event of last.values()) give(at, event, false);
      });
      assert.deepEqual(view, new Map(fresh.upserts.map(({ name: of, version }) => [of, version])));
    }),
    { numRuns: 400 },
  );
});
