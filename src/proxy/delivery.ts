import { findIp, isV6, parseIp, type IpAddress } from "#base/ip";
import { addressName, type Service, type Workload } from "#model/workload";
import { targetPortOf } from "./endpoints.ts";
import { isWaypointOf } from "./gateways.ts";
import { isLoopback, type LocalPod, type SocketAddress, type View } from "./route.ts";

/** What a CONNECT asks the pod for. */
export interface Asked {
  /** The port of the pod that is meant. */
  readonly port: number;
  /** The service, where the CONNECT names one. */
  readonly service: Service | undefined;
  /** The address that was dialled; undefined where the CONNECT names a service that has none. */
  readonly dialled: SocketAddress | undefined;
}

/** How the application gets a connection. */
export interface Delivery {
  readonly target: SocketAddress;
  /** The client's address, which the application shall see. Undefined: leave it to the kernel. */
  readonly sourceIp: IpAddress | undefined;
  /** Set: a PROXY protocol header comes first, with this as the destination. */
  readonly proxyTo: SocketAddress | undefined;
}

/** Why a CONNECT asks for nothing that this pod has. */
interface NotHere {
  readonly status: 400 | 503;
  readonly reason: "bad_request" | "no_healthy_upstream";
  readonly detail: string;
}

/**
 * What a CONNECT for `authority`, on a session to the pod's address `local`, asks for. An address other than `local` is
 * meant for somebody else, unless the pod takes tunnels for others: it has an application tunnel, or is the waypoint of
 * that address. A hostname must be that of a service of the pod, or of one that it takes tunnels for.
 */
export function findAsked(
  pod: LocalPod,
  { local, authority }: { readonly local: SocketAddress; readonly authority: { host: string; port: number } },
  view: View,
): Asked | NotHere {
  const { host, port } = authority;
  const ip = findIp(host);
  if (ip !== undefined && ip !== local.ip && !takesFor(pod, targetAt(ip, pod, view), view)) {
    return { status: 400, reason: "bad_request", detail: `asked for ${ip} on a session to ${local.ip}` };
  }
  const found =
    ip === undefined ? findAskedByName(pod, { host, port }, view) : { port, service: undefined, dialled: { ip, port } };
  if (found !== undefined && found.port > 0) return found;
  return { status: 503, reason: "no_healthy_upstream", detail: `this pod does not serve ${host}:${port}` };
}

function findAskedByName(pod: LocalPod, { host, port }: { host: string; port: number }, view: View): Asked | undefined {
  const own = view.table.findWorkload(pod.workloadUid);
  const service = view.table.findServiceByHostname(host, pod.namespace);
  if (own === undefined || service === undefined) return undefined;
  const isItsOwn = own.services[addressName(service)] !== undefined;
  if (!isItsOwn && !takesFor(pod, service, view)) return undefined;
  const dialled = preferredAddress(service, view.network);
  return { port: targetPort(service, own, port), service, dialled: dialled && { ip: dialled, port } };
}

/** 0 when there is none. Where all connections go to one port, a service's port that has only a name need not be known. */
function targetPort(service: Service, own: Workload, port: number): number {
  const toOnePort = (own.applicationTunnel?.port ?? 0) > 0;
  return targetPortOf(service, own, port) ?? (toOnePort ? port : 0);
}

/** How the application of the pod gets what was asked for. Undefined: a header has to say where to, and there is no address. */
export function deliver(
  own: Workload | undefined,
  { client, local, asked }: { client: IpAddress; local: IpAddress; asked: Asked },
  view: View,
): Delivery | undefined {
  const tunnel = own?.applicationTunnel;
  const port = tunnel === undefined || tunnel.port === 0 ? asked.port : tunnel.port;
  if (tunnel?.protocol === "proxy") {
    // Only its own proxy can reach the application there: nobody else may say who calls.
    const target = { ip: isV6(local) ? LOOPBACK.v6 : LOOPBACK.v4, port };
    return asked.dialled && { target, sourceIp: undefined, proxyTo: asked.dialled };
  }
  return { target: { ip: local, port }, sourceIp: spoofed(client, local, view), proxyTo: undefined };
}

/** The client's address where the application may see it: not when a pod calls itself, and not from or to loopback. */
export function spoofed(client: IpAddress, pod: IpAddress, { originalSource }: View): IpAddress | undefined {
  const isLocal = client === pod || isLoopback(client) || isLoopback(pod);
  return isLocal || !originalSource ? undefined : client;
}

/** The service that a connection to `port` of a pod is for, as far as one can tell: a label, nothing rests on it. */
export function guessService(
  own: Workload | undefined,
  { port, host }: { port: number; host: string | undefined },
  { table }: View,
): Service | undefined {
  if (own === undefined) return undefined;
  const services = Object.keys(own.services).flatMap((name) => table.findService(name) ?? []);
  const named = services.find(({ hostname }) => hostname === host);
  const leadsTo = (service: Service): boolean =>
    service.ports.some(({ servicePort }) => targetPortOf(service, own, servicePort) === port);
  return named ?? services.find(leadsTo);
}

const LOOPBACK = { v4: parseIp("127.0.0.1"), v6: parseIp("::1") } as const;

function targetAt(ip: IpAddress, pod: LocalPod, { table, network }: View): Workload | Service | undefined {
  return table.findWorkloadByIp(network, ip) ?? table.findServiceByVip(network, ip, pod.namespace);
}

function takesFor(pod: LocalPod, target: Workload | Service | undefined, { table }: View): boolean {
  const own = table.findWorkload(pod.workloadUid);
  if (own?.applicationTunnel !== undefined) return true;
  return target !== undefined && isWaypointOf(pod.workloadUid, target, table);
}

/** The address by which a PROXY protocol header names a service: of this network before others, then of IPv4. */
function preferredAddress({ addresses }: Service, network: string): IpAddress | undefined {
  const rank = (candidate: Service["addresses"][number]): number =>
    candidate.network === network ? (isV6(candidate.address) ? 1 : 2) : 0;
  const hosts = addresses.filter(({ length }) => length === undefined);
  return hosts.toSorted((a, b) => rank(b) - rank(a))[0]?.address;
}
