import type { IpAddress } from "#base/ip";
import type { GatewayAddress, Service, Workload } from "#model/workload";
import { chooseAddress, chooseEndpoint, pickByWeight, type Endpoint } from "./endpoints.ts";
import type { WorkloadTable } from "./table.ts";

/** What the search for a waypoint or a network gateway looks at. */
export interface GatewayQuestion {
  readonly table: WorkloadTable;
  readonly network: string;
  /** The namespace of whoever dials, and his workload when the control plane knows it. */
  readonly namespace: string;
  readonly source: Workload | undefined;
  /** The address that was dialled: its family is preferred when the gateway is named by a hostname. */
  readonly requested: IpAddress;
  readonly unit: () => number;
}

/** A waypoint or gateway that was found: one of its workloads, and the service through which it was found, if any. */
export interface Gateway {
  readonly endpoint: Endpoint;
  readonly service: Service | undefined;
}

/** Finds the workload behind the address of a waypoint or of a network gateway. Undefined: nobody is there. */
export function resolveGateway(
  question: GatewayQuestion,
  { destination, hboneMtlsPort }: GatewayAddress,
  as: "waypoint" | "gateway",
): Gateway | undefined {
  const { table, namespace, source, network, unit } = question;
  const isAddress = destination.kind === "address";
  const found = findDestination(table, destination, namespace);
  // An address is meant as it is; of a hostname's addresses one of the caller's family is preferred.
  const requested = isAddress ? destination.address : question.requested;
  if (found?.kind === "workload") {
    return {
      endpoint: { workload: found, ip: chooseAddress(found, requested), port: hboneMtlsPort },
      service: undefined,
    };
  }
  if (found === undefined) return undefined;
  const request = { service: found, servicePort: hboneMtlsPort, requested, source, sourceNetwork: network, as };
  const endpoint = chooseEndpoint(request, table.endpoints(found), unit);
  return typeof endpoint === "string" ? undefined : { endpoint, service: found };
}

/** The waypoint that the next connection to a service goes through: one of the weighted ones, else the only one. */
export function waypointOf({ waypoint, weightedWaypoints }: Service, unit: () => number): GatewayAddress | undefined {
  return pickByWeight(weightedWaypoints, ({ weight }) => weight, unit)?.waypoint ?? waypoint;
}

/** Whether the workload `uid` is the waypoint (or one of several) in front of a workload or a service. */
export function isWaypointOf(uid: string, target: Workload | Service, table: WorkloadTable): boolean {
  const weighted = target.kind === "service" ? target.weightedWaypoints.map(({ waypoint }) => waypoint) : [];
  return [...weighted, ...(target.waypoint === undefined ? [] : [target.waypoint])].some(({ destination }) => {
    const found = findDestination(table, destination, target.namespace);
    if (found?.kind === "workload") return found.uid === uid;
    return found !== undefined && Array.from(table.endpoints(found)).some((endpoint) => endpoint.uid === uid);
  });
}

function findDestination(
  table: WorkloadTable,
  destination: GatewayAddress["destination"],
  namespace: string,
): Workload | Service | undefined {
  if (destination.kind === "hostname") {
    const { namespace: own, hostname } = destination;
    return table.findService(`${own}/${hostname}`) ?? table.findWorkloadByHostname(own, hostname);
  }
  const { network, address } = destination;
  return table.findServiceByVip(network, address, namespace) ?? table.findWorkloadByIp(network, address);
}
