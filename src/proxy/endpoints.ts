import { isV6, type IpAddress } from "#base/ip";
import { addressName, type Service, type Workload } from "#model/workload";

/** What the choice of an endpoint looks at. */
export interface EndpointRequest {
  readonly service: Service;
  readonly servicePort: number;
  /** The address that was dialled: its family is preferred. */
  readonly requested: IpAddress;
  /** Who dials: locality and node count for the service's routing preference. Undefined while it is not known. */
  readonly source: Workload | undefined;
  readonly sourceNetwork: string;
  /**
   * What the service is dialled as. Default `service`. `waypoint`: an endpoint with an application tunnel needs no such
   * port, as nobody has asked for it by himself. `gateway`: its endpoints are on the other network by their nature.
   */
  readonly as?: "service" | "waypoint" | "gateway";
}

/** An endpoint that was chosen. */
export interface Endpoint {
  readonly workload: Workload;
  /** Undefined: it is reached by its hostname, or through the gateway of its network. */
  readonly ip: IpAddress | undefined;
  readonly port: number;
}

/** Why there was none. */
export type NoEndpoint = "no_such_port" | "no_endpoint";

/**
 * Chooses an endpoint by the service's rules: usable (healthy unless the service takes all, has the port, can be
 * addressed), then the best rank of the routing preference, then at random by capacity. `unit` gives a number in [0, 1).
 */
export function chooseEndpoint(
  request: EndpointRequest,
  endpoints: Iterable<Workload>,
  unit: () => number,
): Endpoint | NoEndpoint {
  const { service, servicePort, as } = request;
  if (as !== "waypoint" && !service.ports.some((port) => port.servicePort === servicePort)) return "no_such_port";
  let best: Endpoint[] = [];
  let bestRank = 0;
  for (const workload of endpoints) {
    const endpoint = usable(request, workload);
    const rank = endpoint === undefined ? undefined : rankOf(request, workload);
    if (endpoint === undefined || rank === undefined) continue;
    if (rank > bestRank) best = [];
    if (rank >= bestRank) best.push(endpoint);
    bestRank = Math.max(bestRank, rank);
  }
  return pickByWeight(best, ({ workload }) => workload.capacity, unit) ?? "no_endpoint";
}

/** The workload's port behind a service's port; undefined when this workload does not serve it. */
export function targetPortOf(service: Service, workload: Workload, servicePort: number): number | undefined {
  const own = workload.services[addressName(service)]?.find((port) => port.servicePort === servicePort);
  const port = own?.targetPort ?? service.ports.find((port) => port.servicePort === servicePort)?.targetPort ?? 0;
  return port === 0 ? undefined : port;
}

/** The address to dial: the requested one when it is the workload's, else one of the requested family. */
export function chooseAddress(
  workload: Workload,
  requested: IpAddress,
  families: Service["ipFamilies"] = "automatic",
): IpAddress | undefined {
  if (workload.addresses.includes(requested)) return requested;
  const allowed = workload.addresses.filter(
    (ip) => families === "automatic" || families === "dual" || (families === "ipv6") === isV6(ip),
  );
  return allowed.find((ip) => isV6(ip) === isV6(requested)) ?? allowed[0];
}

/** One of several, at random by weight; undefined when all weigh nothing. `unit` gives a number in [0, 1). */
export function pickByWeight<T>(
  candidates: readonly T[],
  weightOf: (candidate: T) => number,
  unit: () => number,
): T | undefined {
  const total = candidates.reduce((sum, candidate) => sum + weightOf(candidate), 0);
  if (total === 0) return undefined;
  if (candidates.length === 1) return candidates[0];
  let at = unit() * total;
  for (const candidate of candidates) {
    at -= weightOf(candidate);
    if (at < 0) return candidate;
  }
  return candidates.findLast((candidate) => weightOf(candidate) > 0);
}

function usable(request: EndpointRequest, workload: Workload): Endpoint | undefined {
  const { service, requested, sourceNetwork, as } = request;
  if (workload.capacity === 0) return undefined;
  if (!workload.healthy && !service.loadBalancing.allowUnhealthy) return undefined;
  const port = portOf(request, workload);
  if (port === undefined) return undefined;
  const ip = chooseAddress(workload, requested, service.ipFamilies);
  if (as !== "gateway" && workload.network !== sourceNetwork) {
    return workload.networkGateway === undefined ? undefined : { workload, ip: undefined, port };
  }
  const isNamed = workload.addresses.length === 0 && workload.hostname !== "";
  return ip !== undefined || isNamed ? { workload, ip, port } : undefined;
}

function portOf({ service, servicePort, as }: EndpointRequest, workload: Workload): number | undefined {
  const port = targetPortOf(service, workload, servicePort);
  // Its own proxy finds the port of the application there.
  return port === undefined && as === "waypoint" && workload.applicationTunnel !== undefined ? servicePort : port;
}

type Scope = Service["loadBalancing"]["routingPreference"][number];

/** How many scopes in a row match from the start; undefined when the mode excludes the endpoint. */
function rankOf(request: EndpointRequest, workload: Workload): number | undefined {
  const { mode, routingPreference: scopes } = request.service.loadBalancing;
  if (mode === "unspecified" || mode === "passthrough") return 0;
  const matches = scopes.map((scope) => matchesScope(scope, request, workload));
  if (mode === "strict") return matches.every(Boolean) ? 0 : undefined;
  // A network that comes first does not end the row: it weighs more than all others together.
  const networkFirst = scopes[0] === "network";
  const rest = networkFirst ? matches.slice(1) : matches;
  const firstMiss = rest.indexOf(false);
  const row = firstMiss < 0 ? rest.length : firstMiss;
  return networkFirst && matches[0] === true ? row + 1 + scopes.length : row;
}

function matchesScope(scope: Scope, request: EndpointRequest, workload: Workload): boolean {
  if (scope === "network") return workload.network === request.sourceNetwork;
  if (request.source === undefined) return false;
  return scopeValue(scope, workload) === scopeValue(scope, request.source);
}

function scopeValue(scope: Exclude<Scope, "network">, workload: Workload): string {
  if (scope === "node") return workload.node;
  if (scope === "cluster") return workload.clusterId;
  return workload.locality[scope];
}
