import type { KubeObject, WorkloadEntry, WorkloadEntrySpec } from "#kube";
import { REDIRECTION_ANNOTATION } from "#model/redirection";
import type { GatewayAddress, ServicePort, Workload } from "#model/workload";
import { bareWorkload, targetOf } from "./bare-workload.ts";
import type { Cluster } from "./cluster.ts";
import { canonicalLabels, TUNNEL_LABEL } from "./pod.ts";
import type { ServiceFacts } from "./service.ts";
import type { WaypointChoice } from "./waypoints.ts";

/** The labels of a WorkloadEntry: of its metadata and of its spec. */
export function entryLabels({ metadata, spec }: WorkloadEntry): Readonly<Record<string, string>> {
  return { ...metadata?.labels, ...spec?.labels };
}

/** What an endpoint that is no pod takes from other objects. */
export interface EntrySurroundings {
  readonly cluster: Cluster;
  readonly uid: string;
  /** Whose labels and annotations describe it: the WorkloadEntry, or the ServiceEntry that it is written in. */
  readonly owner: KubeObject;
  /** The services that it belongs to. */
  readonly services: readonly ServiceFacts[];
  readonly policies: readonly string[];
  /** Where its network is entered; undefined when it is the cluster's own, or nobody knows. */
  readonly entrance: GatewayAddress | undefined;
  readonly waypoints: Pick<WaypointChoice, "waypoint"> & { readonly tunnel?: Workload["applicationTunnel"] };
}

/** The mesh's view of an endpoint that is no pod. */
export function entryWorkload(spec: WorkloadEntrySpec, around: EntrySurroundings): Workload {
  const { cluster, uid, waypoints } = around;
  const { name, namespace, tunnelProtocol, nativeTunnel, canonical } = describe(around.owner);
  return {
    ...bareWorkload(cluster, uid),
    name,
    namespace,
    ...targetOf(spec.address ?? ""),
    network: spec.network || cluster.network,
    tunnelProtocol,
    serviceAccount: spec.serviceAccount || "default",
    waypoint: waypoints.waypoint,
    networkGateway: around.entrance,
    ...canonical,
    workloadName: name,
    nativeTunnel,
    services: Object.fromEntries(around.services.map((service) => [service.key, portsOf(spec, service)])),
    authorizationPolicies: around.policies,
    locality: locality(spec.locality ?? ""),
    capacity: spec.weight || 1,
    applicationTunnel: waypoints.tunnel,
  };
}

/** What an endpoint takes from the object that it is described by. */
function describe({ metadata = {} }: KubeObject) {
  const { name = "", namespace = "", labels = {}, annotations = {} } = metadata;
  const nativeTunnel = labels[TUNNEL_LABEL] === "http";
  const isEnrolled = nativeTunnel || annotations[REDIRECTION_ANNOTATION] === "enabled";
  const tunnelProtocol = isEnrolled ? ("hbone" as const) : ("none" as const);
  return { name, namespace, tunnelProtocol, nativeTunnel, canonical: canonicalLabels(labels, name) };
}

function locality(text: string): Workload["locality"] {
  const [region = "", zone = "", subzone = ""] = text.split("/");
  return { region, zone, subzone };
}

/** The ports of a service at an endpoint: where the endpoint names the port, its number; a target by name has to be named. */
function portsOf({ ports = {} }: WorkloadEntrySpec, service: ServiceFacts): readonly ServicePort[] {
  return service.ports.flatMap(({ name, servicePort, target }) => {
    const targetPort = typeof target === "string" ? ports[target] : (ports[name] ?? target);
    return targetPort === undefined ? [] : [{ servicePort, targetPort }];
  });
}
