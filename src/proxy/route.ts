import { cidrContains, formatHostPort, type Cidr, type IpAddress } from "#base/ip";
import type { FlowReason } from "#model/flow";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { GatewayAddress, Service, Workload } from "#model/workload";
import { INBOUND_PORT, OWN_PORTS } from "./config.ts";
import { chooseEndpoint, type Endpoint } from "./endpoints.ts";
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
}

/** What a decision may look at. Nothing in it waits. */
export interface View {
  readonly table: WorkloadTable;
  /** False until the control plane (or the agent's cache) has said everything once. */
  readonly synced: boolean;
  readonly network: string;
  readonly clusterRanges: readonly Cidr[];
  readonly propagationBoundMs: number;
  /** The monotonic clock at the time of the decision. */
  readonly monotonicMs: number;
  /** True when the control plane has just answered that no workload and no service has this name (`network/ip`). */
  isAbsent(name: string): boolean;
  /** A number in [0, 1), for the choice of an endpoint. */
  unit(): number;
}

/** Who is at the other end, as far as it is known. */
interface Destination {
  readonly workload: Workload | undefined;
  readonly service: Service | undefined;
}

/**
 * Where an outbound connection goes.
 *
 * - `tunnel`: HBONE to `target`; only a peer with one of the `accepted` identities will do; `authority` is what its proxy
 *   is asked for.
 * - `plain`: TCP to `target` in clear; `reason` says why that is right.
 * - `ask`: hold the connection and ask the control plane for `name`, then decide again.
 * - `wait`: hold the connection until the first snapshot is there, then decide again.
 * - `refuse`: reset it.
 */
export type Route =
  | {
      readonly kind: "tunnel";
      readonly target: SocketAddress;
      readonly authority: string;
      readonly accepted: readonly SpiffeId[];
      readonly destination: Destination;
    }
  | {
      readonly kind: "plain";
      readonly target: SocketAddress;
      readonly reason: "destination_not_enrolled" | "destination_outside";
      readonly destination: Destination;
    }
  | { readonly kind: "ask"; readonly name: string }
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
 *  3. a service's virtual address, the service has a waypoint → tunnel to the waypoint; refuse when it is unknown
 *  4. a service that passes everything through              → plain `destination_outside`
 *  5. a service without this port or without usable endpoint → refuse `no_healthy_upstream`
 *  6. a service: one endpoint is chosen, on as 8
 *  7. a workload's address, the workload has a waypoint      → tunnel to the waypoint (not from the waypoint itself)
 *  8. the workload is on another network                     → refuse `no_healthy_upstream`
 *  9. the workload is enrolled                               → tunnel to its port 15008
 * 10. the workload is not enrolled                           → plain `destination_not_enrolled`
 * 11. unknown, outside the cluster's ranges                  → plain `destination_outside`
 * 12. unknown, inside, the control plane knows nobody        → plain `destination_not_enrolled`
 * 13. unknown, inside                                        → ask
 */
export function decideOutbound(source: LocalPod, to: SocketAddress, view: View): Route {
  const self = view.table.findWorkload(source.workloadUid);
  if (OWN_PORTS.has(to.port) && (isLoopback(to.ip) || self?.addresses.includes(to.ip) === true)) {
    return refuse("self_call", `${formatHostPort(to.ip, to.port)} is the proxy's own port`, NOBODY);
  }
  const inside = view.clusterRanges.some((range) => cidrContains(range, to.ip));
  if (!view.synced && inside) return { kind: "wait" };
  const service = view.table.findServiceByVip(view.network, to.ip, source.namespace);
  if (service !== undefined) return routeToService({ source, self, to, view }, service);
  const workload = view.table.findWorkloadByIp(view.network, to.ip);
  if (workload !== undefined) return routeToWorkload({ source, self, to, view }, workload);
  if (!inside) return { kind: "plain", target: to, reason: "destination_outside", destination: NOBODY };
  const name = `${view.network}/${to.ip}`;
  if (!view.isAbsent(name)) return { kind: "ask", name };
  return { kind: "plain", target: to, reason: "destination_not_enrolled", destination: NOBODY };
}

interface Question {
  readonly source: LocalPod;
  readonly self: Workload | undefined;
  readonly to: SocketAddress;
  readonly view: View;
}

function routeToService(question: Question, service: Service): Route {
  const { self, to, view } = question;
  const destination = { workload: undefined, service };
  if (service.waypoint !== undefined) return routeToWaypoint(question, service.waypoint, destination);
  if (service.loadBalancing.mode === "passthrough") {
    return { kind: "plain", target: to, reason: "destination_outside", destination };
  }
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

function routeToWorkload(question: Question, workload: Workload): Route {
  const { source, to } = question;
  const destination = { workload, service: undefined };
  if (workload.waypoint !== undefined) {
    const waypoint = resolveGateway(question, workload.waypoint);
    const fromWaypoint = waypoint?.endpoint.workload.uid === source.workloadUid;
    if (!fromWaypoint) return routeToWaypoint(question, workload.waypoint, destination);
  }
  return routeToEndpoint(question, { workload, ip: to.ip, port: to.port }, undefined);
}

function routeToEndpoint(question: Question, endpoint: Endpoint, service: Service | undefined): Route {
  const { view } = question;
  const { workload, ip, port } = endpoint;
  const destination = { workload, service };
  if (workload.network !== view.network) {
    const detail = `${workload.uid} is on network "${workload.network}", which cannot be reached from here`;
    return refuse("no_healthy_upstream", detail, destination);
  }
  if (workload.tunnelProtocol === "none") {
    return { kind: "plain", target: { ip, port }, reason: "destination_not_enrolled", destination };
  }
  const authority = formatHostPort(ip, port);
  return tunnel(
    { ip, port: INBOUND_PORT },
    { authority, accepted: acceptedIdentities(workload, service), destination },
  );
}

function routeToWaypoint(question: Question, gateway: GatewayAddress, destination: Destination): Route {
  const waypoint = resolveGateway(question, gateway);
  if (waypoint === undefined) return refuse("no_healthy_upstream", "its waypoint is not known", destination);
  const { endpoint, service } = waypoint;
  if (endpoint.workload.network !== question.view.network) {
    return refuse("no_healthy_upstream", "its waypoint is on another network", destination);
  }
  const authority = formatHostPort(question.to.ip, question.to.port);
  const accepted = acceptedIdentities(endpoint.workload, service);
  return tunnel({ ip: endpoint.ip, port: endpoint.port }, { authority, accepted, destination });
}

function resolveGateway(
  { source, self, to, view }: Question,
  { destination, hboneMtlsPort }: GatewayAddress,
): { endpoint: Endpoint; service: Service | undefined } | undefined {
  if (destination.kind === "address") {
    const workload = view.table.findWorkloadByIp(destination.network, destination.address);
    if (workload !== undefined) {
      return { endpoint: { workload, ip: destination.address, port: hboneMtlsPort }, service: undefined };
    }
  }
  const service =
    destination.kind === "hostname"
      ? view.table.findService(`${destination.namespace}/${destination.hostname}`)
      : view.table.findServiceByVip(destination.network, destination.address, source.namespace);
  if (service === undefined) return undefined;
  const requested = destination.kind === "address" ? destination.address : to.ip;
  const endpoint = chooseEndpoint(
    { service, servicePort: hboneMtlsPort, requested, source: self, sourceNetwork: view.network },
    view.table.endpoints(service),
    () => view.unit(),
  );
  return typeof endpoint === "string" ? undefined : { endpoint, service };
}

/** The identities that may answer for a workload: its own, and those that the service names. Invalid ones are left out. */
function acceptedIdentities(workload: Workload, service: Service | undefined): readonly SpiffeId[] {
  const own = `spiffe://${workload.trustDomain}/ns/${workload.namespace}/sa/${workload.serviceAccount}`;
  return [own, ...(service?.subjectAltNames ?? [])].flatMap((name) => {
    try {
      return [parseSpiffeId(name)];
    } catch {
      return []; // no certificate can carry it: leaving it out accepts nobody more
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
