import { findIp, type IpAddress } from "#base/ip";
import type { Service as KubeService } from "#kube";
import type { NetworkAddress, Service, ServicePort } from "#model/workload";
import type { Cluster, Problem } from "./cluster.ts";
import { Waypoints, type WaypointChoice } from "./waypoints.ts";

const SAME_ZONE = ["network", "region", "zone"] as const;
const SAME_NODE = [...SAME_ZONE, "subzone", "node"] as const;
const PREFERENCES = new Map<string, Service["loadBalancing"]["routingPreference"]>([
  ["preferclose", SAME_ZONE],
  ["prefersamezone", SAME_ZONE],
  ["prefersamenode", SAME_NODE],
]);
/** Istio's annotation for it. */
export const DISTRIBUTION = "networking.istio.io/traffic-distribution";

type KubeServicePort = NonNullable<NonNullable<KubeService["spec"]>["ports"]>[number];

/** One TCP port of a service. `target` is a number, or the name of a container's port. */
export interface TargetedPort {
  readonly name: string;
  readonly servicePort: number;
  readonly target: number | string;
  /** A container's port of the same name comes before `target`, as a ServiceEntry has it. */
  readonly byName?: true;
}

/** What of a Service other objects depend on. */
export interface ServiceFacts {
  readonly namespace: string;
  readonly name: string;
  readonly hostname: string;
  /** Name in xDS, `namespace/hostname`. */
  readonly key: string;
  /** Undefined when the endpoints are not found by labels. */
  readonly selector: Readonly<Record<string, string>> | undefined;
  readonly ports: readonly TargetedPort[];
  /** The labels that decide about its waypoint: the policies of its endpoints depend on that. */
  readonly waypointLabels: Readonly<Record<string, string>>;
}

/** Reads what pods need to know of a Service. Undefined for an ExternalName, which has no endpoints. */
export function serviceFacts(service: KubeService, cluster: Cluster): ServiceFacts | undefined {
  const { name = "", namespace = "" } = service.metadata ?? {};
  const { type, selector, ports = [] } = service.spec ?? {};
  if (type === "ExternalName") return undefined;
  const hostname = `${name}.${namespace}.svc.${cluster.clusterDomain}`;
  const selects = selector !== undefined && Object.keys(selector).length > 0;
  return {
    namespace,
    name,
    hostname,
    key: `${namespace}/${hostname}`,
    selector: selects ? selector : undefined,
    waypointLabels: Waypoints.labelsFor(service.metadata?.labels),
    ports: ports.filter(isTcp).map((port) => ({
      name: port.name ?? "",
      servicePort: port.port,
      target: targetOf(port),
    })),
  };
}

/** What a service takes from other objects. */
export interface ServiceSurroundings {
  readonly waypoints: WaypointChoice;
  /** Annotations of its namespace. */
  readonly annotations: Readonly<Record<string, string>>;
  /** Who answers for it on other networks. */
  readonly far: readonly string[];
}

/** The mesh's view of a Service. Undefined when it is none of its own (ExternalName). */
export function meshService(
  service: KubeService,
  cluster: Cluster,
  around: ServiceSurroundings,
): { service: Service; problems: readonly Problem[] } | undefined {
  const facts = serviceFacts(service, cluster);
  if (facts === undefined) return undefined;
  const { waypoint, weighted, problem } = around.waypoints;
  const problems: Problem[] = [];
  const object = `Service ${facts.namespace}/${facts.name}`;
  const addresses = virtualIps(service, (message) => problems.push({ object, field: "spec.clusterIPs", message }));
  if (problem !== undefined) problems.push({ object, field: "metadata.labels", message: problem });
  return {
    problems,
    service: {
      kind: "service",
      name: facts.name,
      namespace: facts.namespace,
      hostname: facts.hostname,
      addresses: addresses.map((address): NetworkAddress => ({ network: cluster.network, address, length: undefined })),
      ports: facts.ports.map(({ servicePort, target }): ServicePort => {
        return { servicePort, targetPort: typeof target === "number" ? target : 0 };
      }),
      subjectAltNames: around.far,
      waypoint,
      weightedWaypoints: weighted,
      loadBalancing: loadBalancing(service, around.annotations),
      ipFamilies: ipFamilies(service),
      canonical: true,
      visibility: visibility(service),
    },
  };
}

function isTcp({ protocol }: { protocol?: string }): boolean {
  return protocol === undefined || protocol === "TCP";
}

function targetOf({ port, targetPort }: KubeServicePort): number | string {
  const target: unknown = targetPort; // IntOrString: the generated type does not say so
  if (typeof target === "number" && target > 0) return target;
  return typeof target === "string" && target !== "" ? target : port;
}

function virtualIps(service: KubeService, problem: (message: string) => void): IpAddress[] {
  const { clusterIPs, clusterIP } = service.spec ?? {};
  const texts = clusterIPs ?? (clusterIP === undefined ? [] : [clusterIP]);
  return texts.flatMap((text) => {
    if (text === "" || text === "None") return [];
    const ip = findIp(text);
    if (ip === undefined) problem(`"${text}" is no IP address`);
    return ip === undefined ? [] : [ip];
  });
}

function loadBalancing(service: KubeService, inherited: Readonly<Record<string, string>>): Service["loadBalancing"] {
  const { internalTrafficPolicy, publishNotReadyAddresses, trafficDistribution } = service.spec ?? {};
  const allowUnhealthy = publishNotReadyAddresses === true;
  if (internalTrafficPolicy === "Local") return { mode: "strict", routingPreference: ["node"], allowUnhealthy };
  const annotations = service.metadata?.annotations ?? {};
  return {
    ...readPreference([trafficDistribution, annotations[DISTRIBUTION], inherited[DISTRIBUTION]]),
    allowUnhealthy,
  };
}

/** Which endpoints are preferred: the first word that is said counts, of the field, Istio's annotation, and that of the namespace. */
export function readPreference(
  words: readonly (string | undefined)[],
): Pick<Service["loadBalancing"], "mode" | "routingPreference"> {
  const word = words.find((said) => said !== undefined)?.toLowerCase();
  const routingPreference = PREFERENCES.get(word ?? "");
  return routingPreference === undefined
    ? { mode: "unspecified", routingPreference: [] }
    : { mode: "failover", routingPreference };
}

function ipFamilies(service: KubeService): Service["ipFamilies"] {
  const families = service.spec?.ipFamilies ?? [];
  if (families.includes("IPv4") && families.includes("IPv6")) return "dual";
  if (families.includes("IPv4")) return "ipv4";
  return families.includes("IPv6") ? "ipv6" : "automatic";
}

function visibility(service: KubeService): Service["visibility"] {
  const exportTo = service.metadata?.annotations?.["networking.istio.io/exportTo"]?.trim();
  return exportTo === "." ? "namespace" : "public";
}
