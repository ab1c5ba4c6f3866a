import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Gateway, Namespace, Pod, Service as KubeService } from "#kube";
import type { GatewayAddress, Service, Workload } from "#model/workload";
import { decodeAddress } from "#proto";
import { Discovery } from "./index.ts";

type Labels = Record<string, string>;

const cluster = {
  clusterId: "Kubernetes",
  network: "net",
  trustDomain: "cluster.local",
  clusterDomain: "cluster.local",
};
const USE = "istio.io/use-waypoint";
const CANARY = "istio.io/use-waypoint-canary";
const FOR = "istio.io/waypoint-for";

function pod(labels: Labels = {}, name = "cart"): Pod {
  return {
    metadata: { name, namespace: "shop", labels },
    spec: { containers: [] },
    status: { phase: "Running", podIP: name === "cart" ? "10.1.0.1" : "10.1.0.2" },
  };
}

function service(
  labels: Labels = {},
  more: { name?: string; namespace?: string; annotations?: Labels } = {},
): KubeService {
  const { name = "cart", namespace = "shop", annotations = {} } = more;
  return {
    metadata: { name, namespace, labels, annotations },
    spec: { clusterIP: "10.96.0.1", ports: [{ port: 80 }] },
  };
}

function namespace(labels: Labels, annotations: Labels = {}): Namespace {
  return { metadata: { name: "shop", labels, annotations } };
}

interface GatewayWishes {
  readonly namespace?: string;
  readonly labels?: Labels;
  readonly annotations?: Labels;
  readonly addresses?: { type: string; value: string }[];
  readonly from?: string;
  readonly selector?: { matchLabels: Labels };
}

function gateway(name = "waypoint", wishes: GatewayWishes = {}): Gateway {
  const { namespace: own = "shop", labels = {}, annotations = {}, from, selector } = wishes;
  const allowedRoutes = from === undefined ? {} : { namespaces: { from, ...(selector && { selector }) } };
  return {
    metadata: { name, namespace: own, labels, annotations },
    spec: {
      gatewayClassName: "istio-waypoint",
      listeners: [{ name: "mesh", port: 15008, protocol: "HBONE", allowedRoutes }],
    },
    status: { addresses: wishes.addresses ?? [{ type: "Hostname", value: `${name}.${own}.svc.cluster.local` }] },
  };
}

/** A discovery that was given these, and what it publishes of the pod and the service `cart`. */
class Rig {
  readonly discovery = new Discovery(cluster);
  readonly published = new Map<string, Workload | Service>();
  problems: string[] = [];

  constructor(give: (discovery: Discovery) => void) {
    give(this.discovery);
  }

  flush(): this {
    const { upserts, problems } = this.discovery.flush();
    for (const { name, value } of upserts) this.published.set(name, decodeAddress(value));
    this.problems = problems.map(({ object, message }) => `${object}: ${message}`);
    return this;
  }

  get pod(): string {
    return text(this.published.get("Kubernetes//Pod/shop/cart")?.waypoint);
  }

  get service(): string {
    return text(this.cart.waypoint);
  }

  get cart(): Service {
    const found = this.published.get("shop/cart.shop.svc.cluster.local");
    assert.ok(found?.kind === "service");
    return found;
  }
}

function text(address: GatewayAddress | undefined): string {
  if (address === undefined) return "none";
  const { destination } = address;
  assert.equal(address.hboneMtlsPort, 15008);
  return destination.kind === "hostname"
    ? `${destination.namespace}/${destination.hostname}`
    : `${destination.network}/${destination.address}`;
}

const WAYPOINT = "shop/waypoint.shop.svc.cluster.local";

/** What is published when the objects come in each order. */
function inBothOrders(objects: { pod?: Pod; service?: KubeService; namespace?: Namespace; gateways?: Gateway[] }): Rig {
  const steps: ((discovery: Discovery) => void)[] = [
    (discovery) => discovery.upsertPod(objects.pod ?? pod()),
    (discovery) => discovery.upsertService(objects.service ?? service()),
    (discovery) => discovery.upsertNamespace(objects.namespace ?? namespace({})),
    ...(objects.gateways ?? [gateway()]).map((one) => (discovery: Discovery) => discovery.upsertGateway(one)),
  ];
  const forth = new Rig((discovery) => steps.forEach((step) => step(discovery))).flush();
  const back = new Rig(() => {});
  for (const step of steps.toReversed()) {
    step(back.discovery);
    back.flush();
  }
  assert.deepEqual(back.published, forth.published);
  return forth;
}

describe("waypoints", () => {
  it("stand in front of what names them, the object's word before its namespace's, and none opts out", () => {
    const all = { labels: { [FOR]: "all" } };
    const gateways = [gateway("waypoint", all), gateway("other", all)];
    for (const [own, around, expected] of [
      [{ [USE]: "waypoint" }, {}, WAYPOINT],
      [{}, { [USE]: "waypoint" }, WAYPOINT],
      [{ [USE]: "other" }, { [USE]: "waypoint" }, "shop/other.shop.svc.cluster.local"],
      [{ [USE]: "none" }, { [USE]: "waypoint" }, "none"],
      [{}, {}, "none"],
    ] as [Labels, Labels, string][]) {
      const rig = inBothOrders({ pod: pod(own), service: service(own), namespace: namespace(around), gateways });
      assert.deepEqual([rig.pod, rig.service], [expected, expected], JSON.stringify([own, around]));
      assert.deepEqual(rig.problems, []);
    }
  });

  it("take the traffic that they are for: services unless their label or that of their class says otherwise", () => {
    const labels = { [USE]: "waypoint" };
    for (const [own, ofClass, atPod, atService] of [
      [undefined, undefined, "none", WAYPOINT],
      ["service", undefined, "none", WAYPOINT],
      ["workload", undefined, WAYPOINT, "none"],
      ["all", undefined, WAYPOINT, WAYPOINT],
      ["none", undefined, "none", "none"],
      ["nonsense", undefined, "none", "none"],
      [undefined, "workload", WAYPOINT, "none"],
      ["service", "workload", "none", WAYPOINT],
    ] as const) {
      const rig = inBothOrders({
        pod: pod(labels),
        service: service(labels),
        gateways: [gateway("waypoint", { labels: own === undefined ? {} : { [FOR]: own } })],
      });
      const classLabels: Labels = ofClass === undefined ? {} : { [FOR]: ofClass };
      rig.discovery.upsertGatewayClass({ metadata: { name: "istio-waypoint", labels: classLabels } });
      rig.flush();
      assert.deepEqual([rig.pod, rig.service], [atPod, atService], `${own} ${ofClass}`);
    }
  });

  it("are not complained about at every object of a namespace that names one for the other kind of traffic", () => {
    const inherited = inBothOrders({ namespace: namespace({ [USE]: "waypoint" }) });
    assert.deepEqual([inherited.pod, inherited.problems], ["none", []]);
    const own = new Rig((discovery) => {
      discovery.upsertGateway(gateway());
      discovery.upsertPod(pod({ [USE]: "waypoint" }));
    }).flush();
    assert.match(own.problems[0] ?? "", /Pod shop\/cart: the waypoint shop\/waypoint is for service traffic/);
  });

  it("come and go while their users stay", () => {
    const rig = new Rig((discovery) => {
      discovery.upsertService(service({ [USE]: "waypoint" }));
    }).flush();
    assert.equal(rig.service, "none");
    assert.match(rig.problems[0] ?? "", /the waypoint shop\/waypoint is not there or has no address yet/);
    rig.discovery.upsertGateway(gateway());
    assert.equal(rig.flush().service, WAYPOINT);
    rig.discovery.upsertGateway(gateway());
    assert.equal(rig.discovery.dirty, false, "nothing changed");
    rig.discovery.removeGateway(gateway());
    assert.equal(rig.flush().service, "none");
  });

  it("are found at their own address: a hostname, else an IP address, else the Service in front of their pods", () => {
    const use = { [USE]: "waypoint" };
    const at = (addresses: { type: string; value: string }[]): Rig =>
      inBothOrders({ service: service(use), gateways: [gateway("waypoint", { addresses })] });
    const ip = { type: "IPAddress", value: "10.96.0.7" };
    assert.equal(at([ip, { type: "Hostname", value: "wp.example" }]).service, "shop/wp.example");
    assert.equal(at([{ type: "IPAddress", value: "nonsense" }, ip]).service, "net/10.96.0.7");
    const rig = at([]);
    assert.equal(rig.service, "none");
    const front = service({ "gateway.networking.k8s.io/gateway-name": "waypoint" }, { name: "wp-front" });
    rig.discovery.upsertService(front);
    assert.equal(rig.flush().service, "shop/wp-front.shop.svc.cluster.local");
    rig.discovery.removeService(front);
    assert.equal(rig.flush().service, "none");
    rig.discovery.upsertService(service({}, { name: "waypoint" }));
    assert.equal(rig.flush().service, WAYPOINT, "a service of the same name");
  });

  it("of another namespace serve those that their listener lets in", () => {
    const use = { [USE]: "waypoint", "istio.io/use-waypoint-namespace": "infra" };
    const there = "infra/waypoint.infra.svc.cluster.local";
    const selector = { matchLabels: { team: "a" } };
    for (const [from, labels, expected] of [
      [undefined, {}, "none"],
      ["Same", {}, "none"],
      ["All", {}, there],
      ["Selector", { team: "a" }, there],
      ["Selector", { team: "b" }, "none"],
    ] as [string | undefined, Labels, string][]) {
      const wishes = { namespace: "infra", selector, ...(from !== undefined && { from }) };
      const rig = inBothOrders({
        service: service(use),
        namespace: namespace(labels),
        gateways: [gateway("waypoint", wishes)],
      });
      assert.equal(rig.service, expected, `${from} ${JSON.stringify(labels)}`);
    }
  });

  it("share a service's connections with a canary by its weight; a wrong one is named and left out", () => {
    const gateways = [gateway(), gateway("next"), gateway("loads", { labels: { [FOR]: "workload" } })];
    const choose = (labels: Labels, weight?: string, around: Namespace = namespace({})): Rig => {
      const annotations: Labels = weight === undefined ? {} : { "istio.io/use-waypoint-canary-weight": weight };
      return inBothOrders({ service: service(labels, { annotations }), namespace: around, gateways });
    };
    const weights = (rig: Rig): string[] =>
      rig.cart.weightedWaypoints.map(({ waypoint, weight }) => `${weight} ${text(waypoint)}`);
    const own = { [USE]: "waypoint", [CANARY]: "next" };
    assert.deepEqual(weights(choose(own, "20")), [`80 ${WAYPOINT}`, "20 shop/next.shop.svc.cluster.local"]);
    assert.deepEqual(weights(choose(own)), [`100 ${WAYPOINT}`, "0 shop/next.shop.svc.cluster.local"]);
    const inherited = namespace(own, { "istio.io/use-waypoint-canary-weight": "5" });
    assert.deepEqual(weights(choose({}, undefined, inherited))[1], "5 shop/next.shop.svc.cluster.local");
    for (const [labels, weight, problem] of [
      [own, "120", /whole number from 0 to 100/],
      [{ [USE]: "waypoint", [CANARY]: "waypoint" }, "20", /is the waypoint itself/],
      [{ [USE]: "waypoint", [CANARY]: "loads" }, "20", /is for workload traffic/],
      [{ [USE]: "waypoint", [CANARY]: "nobody" }, "20", /is not there/],
    ] as [Labels, string, RegExp][]) {
      const rig = new Rig((discovery) => {
        for (const one of gateways) discovery.upsertGateway(one);
        const annotations = { "istio.io/use-waypoint-canary-weight": weight };
        discovery.upsertService(service(labels, { annotations }));
      }).flush();
      assert.deepEqual(weights(rig), []);
      assert.equal(rig.service, WAYPOINT, "the waypoint itself stays");
      assert.match(rig.problems.join(), problem);
    }
  });

  it("themselves have none in front, and take tunnels as their binding says", () => {
    const instance = { "gateway.networking.k8s.io/gateway-name": "waypoint", "networking.istio.io/tunnel": "http" };
    const managed = { ...instance, "gateway.istio.io/managed": "istio.io-mesh-controller" };
    const tunnelOf = (binding: string | undefined): Workload => {
      const annotations: Labels = binding === undefined ? {} : { "ambient.istio.io/waypoint-inbound-binding": binding };
      const rig = inBothOrders({
        pod: pod(instance),
        service: service(managed),
        namespace: namespace({ [USE]: "waypoint" }),
        gateways: [gateway("waypoint", { labels: { [FOR]: "all" }, annotations })],
      });
      assert.deepEqual([rig.pod, rig.service], ["none", "none"]);
      const found = rig.published.get("Kubernetes//Pod/shop/cart");
      assert.ok(found?.kind === "workload");
      return found;
    };
    assert.deepEqual(tunnelOf("PROXY/15088").applicationTunnel, { protocol: "proxy", port: 15088 });
    assert.deepEqual(tunnelOf("PROXY").applicationTunnel, { protocol: "proxy", port: 0 });
    assert.deepEqual(tunnelOf("PROXY/port").applicationTunnel, { protocol: "proxy", port: 0 });
    assert.deepEqual(tunnelOf("NONE/80").applicationTunnel?.protocol, "none");
    for (const none of [undefined, "HTTP/80", ""]) assert.equal(tunnelOf(none).applicationTunnel, undefined);
    const { tunnelProtocol, nativeTunnel } = tunnelOf(undefined);
    assert.deepEqual([tunnelProtocol, nativeTunnel], ["hbone", true]);
  });
});

describe("the distribution of a service's connections", () => {
  it("is what the field says, else the service's annotation, else that of its namespace", () => {
    const name = "networking.istio.io/traffic-distribution";
    const made = (field: string | undefined, own: string | undefined, around: string | undefined): string => {
      const one = service({}, { annotations: own === undefined ? {} : { [name]: own } });
      const spec = { ...one.spec, ...(field !== undefined && { trafficDistribution: field }) };
      const rig = inBothOrders({
        service: { ...one, spec },
        namespace: namespace({}, around === undefined ? {} : { [name]: around }),
      });
      const { mode, routingPreference } = rig.cart.loadBalancing;
      return `${mode} ${routingPreference.at(-1) ?? ""}`;
    };
    assert.equal(made(undefined, undefined, undefined), "unspecified ");
    assert.equal(made("PreferSameNode", "PreferClose", "PreferClose"), "failover node");
    assert.equal(made(undefined, "preferClose", "PreferSameNode"), "failover zone");
    assert.equal(made(undefined, undefined, "PreferSameNode"), "failover node");
    assert.equal(made(undefined, "any", "PreferSameNode"), "unspecified ");
  });
});
