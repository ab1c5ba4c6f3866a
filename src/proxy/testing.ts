import { parseCidr, parseIp } from "#base/ip";
import { parseSpiffeId } from "#model/spiffe-id";
import type { Address, Service, Workload } from "#model/workload";
import { PolicyIndex } from "#policy";
import { OWN_PORTS } from "./config.ts";
import type { LocalPod, Route, SocketAddress, View } from "./route.ts";
import { WorkloadTable } from "./table.ts";

/** A pod of namespace `shop` unless told otherwise, enrolled, healthy. */
export function testWorkload(name: string, ip: string, more: Partial<Workload> = {}): Workload {
  return {
    kind: "workload",
    uid: `Kubernetes//Pod/${more.namespace ?? "shop"}/${name}`,
    name,
    namespace: "shop",
    addresses: [parseIp(ip)],
    hostname: "",
    network: "",
    tunnelProtocol: "hbone",
    trustDomain: "cluster.local",
    serviceAccount: name,
    waypoint: undefined,
    networkGateway: undefined,
    node: "node1",
    canonicalName: name,
    canonicalRevision: "latest",
    workloadType: "pod",
    workloadName: name,
    nativeTunnel: false,
    services: {},
    authorizationPolicies: [],
    healthy: true,
    clusterId: "Kubernetes",
    locality: { region: "", zone: "", subzone: "" },
    hostNetwork: false,
    capacity: 1,
    applicationTunnel: undefined,
    ...more,
  };
}

/** A service of namespace `shop` with port 80 in front of 8080, unless told otherwise. */
export function testService(name: string, vip: string | undefined, more: Partial<Service> = {}): Service {
  const namespace = more.namespace ?? "shop";
  return {
    kind: "service",
    name,
    namespace,
    hostname: `${name}.${namespace}.svc.cluster.local`,
    addresses: vip === undefined ? [] : [{ network: "", address: parseIp(vip), length: undefined }],
    ports: [{ servicePort: 80, targetPort: 8080 }],
    subjectAltNames: [],
    waypoint: undefined,
    weightedWaypoints: [],
    loadBalancing: { mode: "unspecified", routingPreference: [], allowUnhealthy: false },
    ipFamilies: "automatic",
    canonical: true,
    visibility: "public",
    ...more,
  };
}

/** `ip:port` of tests. */
export function testAddress(text: string): SocketAddress {
  const [ip = "", port] = text.split(/:(?=\d+$)/);
  return { ip: parseIp(ip.replaceAll(/[[\]]/g, "")), port: Number(port) };
}

/** The pod behind {@link testWorkload} of the same name. */
export function testPod(name: string, more: Partial<LocalPod> = {}): LocalPod & { podSinceMs: number } {
  return {
    podUid: `uid-${name}`,
    name,
    namespace: "shop",
    serviceAccount: name,
    identity: parseSpiffeId(`spiffe://cluster.local/ns/shop/sa/${name}`),
    workloadUid: `Kubernetes//Pod/shop/${name}`,
    podSinceMs: -Infinity,
    ...more,
  };
}

/** A view of these addresses, all old; 10.0.0.0/8 and fd00::/8 are the cluster's. */
export function testView(addresses: readonly Address[], more: Partial<View> = {}): View {
  const table = new WorkloadTable();
  table.apply({ upserts: addresses, removes: [], old: true }, 0);
  return {
    table,
    policies: new PolicyIndex(),
    synced: true,
    network: "",
    clusterRanges: [parseCidr("10.0.0.0/8"), parseCidr("fd00::/8")],
    propagationBoundMs: 10_000,
    originalSource: true,
    monotonicMs: 0,
    ownPorts: OWN_PORTS,
    isAbsent: () => false,
    resolved: () => undefined,
    unit: () => 0,
    ...more,
  };
}

/** What matters of a route, in one line. */
export function routeLine(route: Route): string {
  if (route.kind === "tunnel") {
    const { target, authority, accepted, inner } = route;
    const within = inner === undefined ? "" : ` (inner from "${inner.network}": ${inner.accepted.join(" ")})`;
    return `tunnel ${target.ip}:${target.port} ${authority} ${accepted.join(" ")}${within}`;
  }
  if (route.kind === "plain") return `plain ${route.target.ip}:${route.target.port} ${route.reason}`;
  if (route.kind === "refuse") return `refuse ${route.reason}`;
  if (route.kind === "resolve") return `resolve ${route.hostname}`;
  return route.kind === "ask" ? `ask ${route.name}` : "wait";
}
