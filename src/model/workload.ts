import type { IpAddress } from "#base/ip";

/**
 * What the mesh knows about workloads and services: the values behind `istio.workload.Address`
 * (workloadapi/workload.proto). Plain, read-only, structured-cloneable: they cross threads as they are.
 */

/** How a workload expects to be reached: in clear, or through HBONE on its port 15008. */
export type TunnelProtocol = "none" | "hbone";

/** Where a waypoint or a network gateway is. */
export interface GatewayAddress {
  readonly destination:
    | { readonly kind: "hostname"; readonly namespace: string; readonly hostname: string }
    | { readonly kind: "address"; readonly network: string; readonly address: IpAddress };
  readonly hboneMtlsPort: number;
}

/** A service's port and the port of a workload behind it (0: named, to be looked up per workload). */
export interface ServicePort {
  readonly servicePort: number;
  readonly targetPort: number;
}

/**
 * How a workload that is a proxy itself (a waypoint) takes what is tunnelled to it. `proxy`: with a PROXY protocol header
 * in front, which says who called and where to.
 */
export interface ApplicationTunnel {
  readonly protocol: "none" | "proxy";
  /** Where its application listens for all of it; 0: on the port that was asked for. */
  readonly port: number;
}

/** One workload: a pod, or a WorkloadEntry. */
export interface Workload {
  readonly kind: "workload";
  /** `<cluster>//Pod/<namespace>/<name>` for pods. */
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly addresses: readonly IpAddress[];
  readonly hostname: string;
  readonly network: string;
  readonly tunnelProtocol: TunnelProtocol;
  /** Empty on the wire means `cluster.local`; parsers fill that in. */
  readonly trustDomain: string;
  /** Empty on the wire means `default`; parsers fill that in. */
  readonly serviceAccount: string;
  readonly waypoint: GatewayAddress | undefined;
  readonly networkGateway: GatewayAddress | undefined;
  readonly node: string;
  readonly canonicalName: string;
  readonly canonicalRevision: string;
  readonly workloadType: "deployment" | "cronjob" | "pod" | "job";
  readonly workloadName: string;
  readonly nativeTunnel: boolean;
  /** Ports by service, keyed `namespace/hostname`. */
  readonly services: Readonly<Record<string, readonly ServicePort[]>>;
  readonly authorizationPolicies: readonly string[];
  readonly healthy: boolean;
  readonly clusterId: string;
  readonly locality: { readonly region: string; readonly zone: string; readonly subzone: string };
  readonly hostNetwork: boolean;
  /** Weight for load balancing; 0 is never chosen. */
  readonly capacity: number;
  readonly applicationTunnel: ApplicationTunnel | undefined;
}

/** A virtual address of a service; `length` is set for a prefix. */
export interface NetworkAddress {
  readonly network: string;
  readonly address: IpAddress;
  readonly length: number | undefined;
}

/** One service, known as `namespace/hostname`. */
export interface Service {
  readonly kind: "service";
  readonly name: string;
  readonly namespace: string;
  readonly hostname: string;
  readonly addresses: readonly NetworkAddress[];
  readonly ports: readonly ServicePort[];
  readonly subjectAltNames: readonly string[];
  readonly waypoint: GatewayAddress | undefined;
  /** Waypoints that share the service's connections, by weight. Without any (of a weight above 0) `waypoint` counts. */
  readonly weightedWaypoints: readonly { readonly waypoint: GatewayAddress; readonly weight: number }[];
  readonly loadBalancing: {
    readonly mode: "unspecified" | "strict" | "failover" | "passthrough";
    readonly routingPreference: readonly ("region" | "zone" | "subzone" | "node" | "cluster" | "network")[];
    readonly allowUnhealthy: boolean;
  };
  readonly ipFamilies: "automatic" | "ipv4" | "ipv6" | "dual";
  readonly canonical: boolean;
  readonly visibility: "public" | "namespace";
}

/** What one `istio.workload.Address` resource holds. */
export type Address = Workload | Service;

/** The name under which xDS knows a resource: a workload's uid, or `namespace/hostname`. */
export function addressName(address: Address): string {
  return address.kind === "workload" ? address.uid : `${address.namespace}/${address.hostname}`;
}
