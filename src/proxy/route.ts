import { cidrContains, formatHostPort, isV6, type Cidr, type IpAddress } from "#base/ip";
import { memoByObject } from "#base/memo";
import type { FlowReason } from "#model/flow";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { GatewayAddress, Service, Workload } from "#model/workload";
import type { PolicyIndex } from "#policy";
import { INBOUND_PORT } from "./config.ts";
import { chooseEndpoint, type Endpoint } from "./endpoints.ts";
import { isWaypointOf, resolveGateway, waypointOf, type Gateway } from "./gateways.ts";
import type { WorkloadTable } from "./table.ts";

/** An address and a port. */
export interface SocketAddress {
  readonly ip: IpAddress;
  readonly port: number;
}

/** A pod that this node's proxy serves. Its identity comes from the agent, not from the control plane's addresses. */
export interface LocalPod {
  /** Kubernetes' uid of the pod. */
  readonly podUid: string;
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly identity: SpiffeId;
  /** Its name in the control plane's addresses. */
  readonly workloadUid: string;
  /**
   * The proxy's own pod: tunnels reach these ports of it and no others, so that whoever scrapes it may do so through one.
   * Nothing is redirected there.
   */
  readonly serves?: readonly number[];
}

/** What a decision may look at. Nothing in it waits. */
export interface View {
  readonly table: WorkloadTable;
  readonly policies: PolicyIndex;
  /** False until the control plane (or the agent's cache) has said everything once. */
  readonly synced: boolean;
  readonly network: string;
  readonly clusterRanges: readonly Cidr[];
  /** The proxy's own ports: nobody may ask it to dial them. */
  readonly ownPorts: ReadonlySet<number>;
  readonly propagationBoundMs: number;
  /** Applications see their clients' addresses. */
  readonly originalSource: boolean;
  /** The monotonic clock at the time of the decision. */
  readonly monotonicMs: number;
  /** True when the control plane has just answered that no workload and no service has this name (`network/ip`). */
  isAbsent(name: string): boolean;
  /** The addresses of a hostname, empty when it has none; undefined while nobody has looked it up. */
  resolved(hostname: string): readonly IpAddress[] | undefined;
  /** A number in [0, 1), for the choice of an endpoint. */
  unit(): number;
}

/** Who is at the other end, as far as it is known. */
interface Destination {
  readonly workload: Workload | undefined;
  readonly service: Service | undefined;
}

/** A tunnel inside a tunnel: the outer one ends at the gateway of another network, this one at the far workload. */
interface InnerTunnel {
  /** Only a peer with one of these identities will do. */
  readonly accepted: readonly SpiffeId[];
  /** Where the connection comes from. */
  readonly network: string;
}

/**
 * Where an outbound connection goes.
 *
 * - `tunnel`: HBONE to `target`; only a peer with one of the `accepted` identities will do; `authority` is what its proxy
 *   is asked for. With `inner`, a second tunnel with the same authority goes through the first.
 * - `plain`: TCP to `target` in clear; `reason` says why that is right.
 * - `ask`: hold the connection and ask the control plane for `name`, then decide again.
 * - `resolve`: hold it and look the hostname up, then decide again.
 * - `wait`: hold the connection until the first snapshot is there, then decide again.
 * - `refuse`: reset it.
 */
export type Route =
  | {
      readonly kind: "tunnel";
      readonly target: SocketAddress;
      readonly authority: string;
      readonly accepted: readonly SpiffeId[];
      readonly inner?: InnerTunnel | undefined;
      readonly destination: Destination;
    }
  | {
      readonly kind: "plain";
      readonly target: SocketAddress;
      readonly reason: "destination_not_enrolled" | "destination_outside";
      readonly destination: Destination;
    }
  | { readonly kind: "ask"; readonly name: string }
  | { readonly kind: "resolve"; readonly hostname: string }
  | { readonly kind: "wait" }
  | {
      readonly kind: "refuse";
      readonly reason: FlowReason;
      readonly detail: string;
      readonly destination: Destination;
    };

const NOBODY: Destination = { workload: undefined, service: undefined };

/**
 * Decides where a pod's outbound connection to `to` goes. First match:
 *
 *  1. one of the proxy's own ports on the pod itself        → refuse `self_call`
 *  2. nothing is known yet, `to` inside the cluster         → wait
 *  3. a service's virtual address, the service has a waypoint that is not the pod itself
 *                                                           → tunnel to the waypoint; refuse `waypoint_unavailable`
 *  4. a service that passes everything through              → as 7 where the address is a workload's, else plain
 *     `destination_outside`
 *  5. a service without this port or without usable endpoint → refuse `no_healthy_upstream`
 *  6. a service: one endpoint is chosen, on as 8
 *  7. a workload's address, the workload has a waypoint that is not the pod itself → as 3
 *  8. the chosen workload (or waypoint) is on another network → a tunnel in a tunnel through that network's gateway;
 *     refuse `no_healthy_upstream` without one, and where no service was dialled
 *  9. it has a hostname and no address                      → resolve; refuse `no_healthy_upstream` when it has none
 * 10. the workload is enrolled, or another at its address    → tunnel to its port 15008
 * 11. the workload is not enrolled                           → plain `destination_not_enrolled`
 * 12. unknown, outside the cluster's ranges                  → plain `destination_outside`
 * 13. unknown, inside, the control plane knows nobody, or it is a node's → plain `destination_not_enrolled`
 * 14. unknown, inside                                        → ask
 */
export function decideOutbound(source: LocalPod, to: SocketAddress, view: View): Route {
  const self = view.table.findWorkload(source.workloadUid);
  if (view.ownPorts.has(to.port) && (isLoopback(to.ip) || self?.addresses.includes(to.ip) === true)) {
    return refuse("self_call", `${formatHostPort(to.ip, to.port)} is the proxy's own port`, NOBODY);
  }
  const inside = view.clusterRanges.some((range) => cidrContains(range, to.ip));
  if (!view.synced && inside) return { kind: "wait" };
  const service = view.table.findServiceByVip(view.network, to.ip, source.namespace);
  const question = { source, self, to, inside, view };
  return service === undefined ? routeToAddress(question) : routeToService(question, service);
}

interface Question {
  readonly source: LocalPod;
  readonly self: Workload | undefined;
  readonly to: SocketAddress;
  /** The address is within the cluster's ranges. */
  readonly inside: boolean;
  readonly view: View;
}

function routeToAddress(question: Question): Route {
  const { to, inside, view } = question;
  const workload = view.table.findWorkloadByIp(view.network, to.ip);
  if (workload !== undefined) return routeToWorkload(question, workload);
  if (!inside) return { kind: "plain", target: to, reason: "destination_outside", destination: NOBODY };
  const name = `${view.network}/${to.ip}`;
  if (!view.isAbsent(name) && !view.table.isHostAddress(view.network, to.ip)) return { kind: "ask", name };
  return { kind: "plain", target: to, reason: "destination_not_enrolled", destination: NOBODY };
}

function routeToService(question: Question, service: Service): Route {
  const { source, self, to, view } = question;
  const destination = { workload: undefined, service };
  const waypoint = waypointOf(service, () => view.unit());
  if (waypoint !== undefined && !isWaypointOf(source.workloadUid, service, view.table)) {
    return routeToWaypoint(question, waypoint, destination);
  }
  if (service.loadBalancing.mode === "passthrough") return routeThrough(question, service);
  const endpoint = chooseEndpoint(
    { service, servicePort: to.port, requested: to.ip, source: self, sourceNetwork: view.network },
    view.table.endpoints(service),
    () => view.unit(),
  );
  if (endpoint === "no_such_port") {
    return refuse("no_healthy_upstream", `${service.hostname} has no port ${to.port}`, destination);
  }
  if (endpoint === "no_endpoint") {
    return refuse("no_healthy_upstream", `${service.hostname} has no usable endpoint for port ${to.port}`, destination);
  }
  return routeToEndpoint(question, endpoint, service);
}

/** A service that passes everything through covers addresses that are not its own, and pods may be among them. */
function routeThrough(question: Question, service: Service): Route {
  const { to, view } = question;
  const isItsOwn = service.addresses.some(({ address, length }) => address === to.ip && length === undefined);
  if (!isItsOwn || view.table.findWorkloadByIp(view.network, to.ip) !== undefined) return routeToAddress(question);
  const destination = { workload: undefined, service };
  return { kind: "plain", target: to, reason: "destination_outside", destination };
}

function routeToWorkload(question: Question, workload: Workload): Route {
  const { source, to, view } = question;
  if (workload.waypoint !== undefined && !isWaypointOf(source.workloadUid, workload, view.table)) {
    return routeToWaypoint(question, workload.waypoint, { workload, service: undefined });
  }
  return routeToEndpoint(question, { workload, ip: to.ip, port: to.port }, undefined);
}

function routeToEndpoint(question: Question, endpoint: Endpoint, service: Service | undefined): Route {
  const { view } = question;
  const { port } = endpoint;
  const destination = { workload: endpoint.workload, service };
  if (endpoint.workload.network !== view.network) {
    return routeToNetwork(question, { endpoint, service }, destination);
  }
  const ip = addressOf(question, endpoint, destination);
  if (typeof ip !== "string") return ip;
  const workload = enrolledAt(ip, endpoint.workload, view);
  if (workload === undefined) {
    return { kind: "plain", target: { ip, port }, reason: "destination_not_enrolled", destination };
  }
  const accepted = acceptedIdentities(workload, service);
  return tunnel(
    { ip, port: INBOUND_PORT },
    { authority: formatHostPort(ip, port), accepted, destination: { workload, service } },
  );
}

/**
 * Who is enrolled at the address of an endpoint: the endpoint, or a pod that has the address. An endpoint that somebody
 * wrote down by address or hostname knows nothing of enrolment, and a pod behind it is not to be met in clear.
 */
function enrolledAt(ip: IpAddress, workload: Workload, { table, network }: View): Workload | undefined {
  const candidate = workload.tunnelProtocol === "hbone" ? workload : table.findWorkloadByIp(network, ip);
  return candidate?.tunnelProtocol === "hbone" ? candidate : undefined;
}

function routeToWaypoint(question: Question, gateway: GatewayAddress, destination: Destination): Route {
  const waypoint = findGateway(question, gateway, "waypoint");
  if (waypoint === undefined) {
    const { destination: name } = gateway;
    const detail = `no workload serves its waypoint ${name.kind === "hostname" ? name.hostname : name.address}`;
    return refuse("waypoint_unavailable", detail, destination);
  }
  const { endpoint, service } = waypoint;
  if (endpoint.workload.network !== question.view.network) return routeToNetwork(question, waypoint, destination);
  const ip = addressOf(question, endpoint, destination);
  if (typeof ip !== "string") return ip;
  const authority = formatHostPort(question.to.ip, question.to.port);
  const accepted = acceptedIdentities(endpoint.workload, service);
  return tunnel({ ip, port: endpoint.port }, { authority, accepted, destination });
}

/**
 * To a workload (or a waypoint) on another network, through that network's gateway. The gateway ends the outer tunnel and
 * hands the inner one on unread, by the name of the service: without a service there is no such name. Which of the
 * workloads answers is the gateway's choice, so only the identities that the service names count.
 */
function routeToNetwork(question: Question, { endpoint, service }: Gateway, destination: Destination): Route {
  const { to, view } = question;
  const { uid, network, networkGateway } = endpoint.workload;
  const where = `${uid} is on network "${network}"`;
  const dialled = destination.service;
  if (dialled === undefined) {
    return refuse("no_healthy_upstream", `${where}, which is reached by services only`, destination);
  }
  const gateway = networkGateway && findGateway(question, networkGateway, "gateway");
  if (gateway === undefined) {
    const why = networkGateway === undefined ? "has no gateway" : "has a gateway that nobody knows";
    return refuse("no_healthy_upstream", `${where}, which ${why}`, destination);
  }
  const ip = addressOf(question, gateway.endpoint, destination);
  if (typeof ip !== "string") return ip;
  const inner = { accepted: validIdentities(service?.subjectAltNames ?? []), network: view.network };
  if (inner.accepted.length === 0) {
    return refuse("wrong_identity", `${where}, and its service names nobody who may answer there`, destination);
  }
  const authority = formatHostPort(dialled.hostname, to.port);
  const accepted = acceptedIdentities(gateway.endpoint.workload, gateway.service);
  return tunnel({ ip, port: gateway.endpoint.port }, { authority, accepted, inner, destination });
}

function findGateway(
  { source, self, to, view }: Question,
  gateway: GatewayAddress,
  as: "waypoint" | "gateway",
): Gateway | undefined {
  const { table, network } = view;
  const unit = (): number => view.unit();
  return resolveGateway(
    { table, network, namespace: source.namespace, source: self, requested: to.ip, unit },
    gateway,
    as,
  );
}

/** The address of an endpoint; a route when it has none that is known now. */
function addressOf({ to, view }: Question, { ip, workload }: Endpoint, destination: Destination): IpAddress | Route {
  if (ip !== undefined) return ip;
  const { hostname, uid } = workload;
  if (hostname === "") return refuse("no_healthy_upstream", `${uid} has no address`, destination);
  const found = view.resolved(hostname);
  if (found === undefined) return { kind: "resolve", hostname };
  const sameFamily = found.filter((address) => isV6(address) === isV6(to.ip));
  const candidates = sameFamily.length > 0 ? sameFamily : found;
  const chosen = candidates[Math.floor(view.unit() * candidates.length)];
  return chosen ?? refuse("no_healthy_upstream", `the name ${hostname} of ${uid} has no address`, destination);
}

/** The identities that may answer for a workload: its own, and those that the service names. */
function acceptedIdentities(workload: Workload, service: Service | undefined): readonly SpiffeId[] {
  const own = ownIdentities(workload);
  return service === undefined || service.subjectAltNames.length === 0
    ? own
    : [...own, ...validIdentities(service.subjectAltNames)];
}

/** A workload's own identity; none when it is invalid. */
const ownIdentities = memoByObject(({ trustDomain, namespace, serviceAccount }: Workload) =>
  validIdentities([`spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`]),
);

/** Invalid names are left out: no certificate can carry them, so that accepts nobody more. */
function validIdentities(names: readonly string[]): readonly SpiffeId[] {
  return names.flatMap((name) => {
    try {
      return [parseSpiffeId(name)];
    } catch {
      return [];
    }
  });
}

/** A tunnel that nobody could answer rightly is none. */
function tunnel(target: SocketAddress, route: Omit<Extract<Route, { kind: "tunnel" }>, "kind" | "target">): Route {
  if (route.accepted.length > 0) return { kind: "tunnel", target, ...route };
  return refuse("wrong_identity", "the destination has no valid identity", route.destination);
}

/** True for 127.0.0.0/8 and ::1. */
export function isLoopback(ip: IpAddress): boolean {
  return ip.startsWith("127.") || ip === "::1";
}

function refuse(reason: FlowReason, detail: string, destination: Destination): Route {
  return { kind: "refuse", reason, detail, destination };
}
