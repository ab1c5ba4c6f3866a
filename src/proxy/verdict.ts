import { findHostPort, cidrContains, formatHostPort, type IpAddress } from "#base/ip";
import type { FlowReason } from "#model/flow";
import { parseWorkloadIdentity, type SpiffeId } from "#model/spiffe-id";
import type { Service, Workload } from "#model/workload";
import type { DryRun, PolicyQuestion } from "#policy";
import { authorize } from "./authorize.ts";
import { deliver, findAsked, guessService, spoofed, type Asked } from "./delivery.ts";
import { type LocalPod, type SocketAddress, type View } from "./route.ts";

/**
 * What happens to a connection that arrives at a pod.
 *
 * - `connect`: dial the application at `target`, from `sourceIp` when it is set, and copy.
 * - `wait`: hold it until the first snapshot is there, then decide again.
 * - `ask`: hold it and ask the control plane for the pod itself, `name`, then decide again.
 * - `refuse`: answer CONNECT with `status`; a plain connection is reset.
 */
export type Verdict =
  | {
      readonly kind: "connect";
      readonly target: SocketAddress;
      /** The client's address, which the application shall see. Undefined: leave it to the kernel. */
      readonly sourceIp: IpAddress | undefined;
      /** Set: a PROXY protocol header comes first, with this as the destination. */
      readonly proxyTo: SocketAddress | undefined;
      readonly reason: "ok" | "source_not_enrolled" | "enrolling";
      readonly source: Workload | undefined;
      readonly service: Service | undefined;
      /** What the policies were asked: they are asked again when they change. */
      readonly policy: PolicyQuestion;
      /** What policies in dry run would have changed. */
      readonly dryRun: DryRun | undefined;
    }
  | { readonly kind: "wait" }
  | { readonly kind: "ask"; readonly name: string }
  | {
      readonly kind: "refuse";
      readonly status: 400 | 401 | 503;
      readonly reason: FlowReason;
      readonly detail: string;
      readonly source: Workload | undefined;
    };

/** A CONNECT that arrived on an authenticated session. */
export interface TunnelRequest {
  readonly peer: SpiffeId;
  readonly remote: SocketAddress;
  /** The pod's end of the session's TCP connection. */
  readonly local: SocketAddress;
  readonly authority: string;
  /** The service that the client dialled (`forwarded: …;host=`): a label for records, nothing else. */
  readonly forwardedHost?: string | undefined;
  /** The network that the connection says it comes from (`x-forwarded-network`), when it says so. */
  readonly forwardedNetwork?: string | undefined;
}

/** A plain connection that was redirected. */
export interface PlainRequest {
  readonly remote: SocketAddress;
  readonly originalDestination: SocketAddress;
}

/**
 * Decides about a tunnel. First match:
 *
 * 1. the authority is no `host:port`                      → refuse 400 `bad_request`
 * 2. nothing is known yet, policies neither              → wait
 * 3. an address other than the one that was dialled, unless the pod takes tunnels for it (its waypoint, or with an
 *    application tunnel)                                  → refuse 400 `bad_request`
 * 4. a hostname that is no service of this pod (nor of one that it takes tunnels for), or a port that it does not have
 *                                                         → refuse 503 `no_healthy_upstream`
 * 5. one of the proxy's own ports                         → refuse 503 `self_call`; of the proxy's own pod another port
 *    than that of its metrics                             → refuse 503 `no_healthy_upstream`
 * 6. nobody has said which policies apply to the pod      → ask
 * 7. a policy applies that cannot be enforced             → refuse 401 `policy_not_enforced`
 * 8. the policies do not allow it                         → refuse 401 `policy_denied`
 * 9. else                                                 → connect; the application sees the client's address,
 *    unless the pod calls itself; with an application tunnel, that tunnel's port, and a PROXY protocol header where it
 *    asks for one
 */
export function decideInbound(pod: LocalPod, request: TunnelRequest, view: View): Verdict {
  const { local } = request;
  const source = sourceOf(request, view);
  const authority = findHostPort(request.authority);
  if (authority === undefined) {
    return refuse("bad_request", { status: 400, detail: `authority "${request.authority}" is no host:port`, source });
  }
  if (!view.synced) return { kind: "wait" };
  const asked = findAsked(pod, { local, authority }, view);
  if ("reason" in asked) return refuse(asked.reason, { ...asked, source });
  return decidePort(pod, { ...request, asked, source }, view);
}

function decidePort(
  pod: LocalPod,
  request: TunnelRequest & { asked: Asked; source: Workload | undefined },
  view: View,
): Verdict {
  const { remote, local, asked, forwardedHost, source } = request;
  const { port } = asked;
  if (view.ownPorts.has(port)) {
    return refuse("self_call", { status: 503, detail: `port ${port} is the proxy's own`, source });
  }
  if (pod.serves !== undefined && !pod.serves.includes(port)) {
    return refuse("no_healthy_upstream", { status: 503, detail: "the proxy itself shows only its metrics", source });
  }
  const own = view.table.findWorkload(pod.workloadUid);
  const delivery = deliver(own, { client: remote.ip, local: local.ip, asked }, view);
  if (delivery === undefined) {
    const detail = `${request.authority} has no address that a PROXY protocol header could carry`;
    return refuse("no_healthy_upstream", { status: 503, detail, source });
  }
  const { port: destinationPort } = delivery.target;
  const question = { identity: request.peer, sourceIp: remote.ip, destinationIp: local.ip, destinationPort };
  const authorized = authorize(pod, question, view);
  if (authorized.kind === "ask") return authorized;
  if (authorized.kind === "refused") return refuse(authorized.reason, { status: 401, source, ...authorized });
  const { question: policy, dryRun } = authorized;
  const service = asked.service ?? guessService(own, { port, host: forwardedHost }, view);
  return { kind: "connect", ...delivery, reason: "ok", source, service, policy, dryRun };
}

/**
 * Decides about a connection that came in clear. First match:
 *
 * 1. one of the proxy's own ports                                        → refuse `self_call`
 * 2. nothing is known yet and the source is inside the cluster           → wait
 * 3. nobody has said which policies apply to the pod                     → ask
 * 4. a policy applies that cannot be enforced                            → refuse `policy_not_enforced`
 * 5. the policies do not allow it (plaintext has no identity)            → refuse `policy_denied`
 * 6. source and pod both enrolled for longer than the propagation bound  → refuse `plaintext_refused`
 * 7. both enrolled                                                       → connect `enrolling`
 * 8. else                                                                → connect `source_not_enrolled`
 *
 * A pod that the control plane does not know is enrolled as long as the agent has handed it over (`podSinceMs`).
 */
export function decidePlaintext(
  pod: LocalPod & { readonly podSinceMs: number },
  request: PlainRequest,
  view: View,
): Verdict {
  const { remote, originalDestination: target } = request;
  if (view.ownPorts.has(target.port)) {
    const detail = `${formatHostPort(target.ip, target.port)} is the proxy's own port`;
    return refuse("self_call", { status: 503, detail, source: undefined });
  }
  const inside = view.clusterRanges.some((range) => cidrContains(range, remote.ip));
  if (!view.synced && inside) return { kind: "wait" };
  const source = view.table.findWorkloadByIp(view.network, remote.ip);
  const asked = { sourceIp: remote.ip, destinationIp: target.ip, destinationPort: target.port };
  const authorized = authorize(pod, { identity: undefined, ...asked }, view);
  if (authorized.kind === "ask") return authorized;
  if (authorized.kind === "refused") return refuse(authorized.reason, { status: 401, source, ...authorized });
  const { question: policy, dryRun } = authorized;
  const connect = (reason: "source_not_enrolled" | "enrolling"): Verdict => ({
    kind: "connect",
    target,
    sourceIp: spoofed(remote.ip, target.ip, view),
    proxyTo: undefined,
    reason,
    source,
    service: undefined,
    policy,
    dryRun,
  });
  const sourceSince = source === undefined ? undefined : view.table.enrolledSinceMs(source.uid);
  const podSince = ownSinceMs(pod, view);
  if (source === undefined || sourceSince === undefined || podSince === undefined)
    return connect("source_not_enrolled");
  const bothForMs = view.monotonicMs - Math.max(sourceSince, podSince);
  if (bothForMs <= view.propagationBoundMs) return connect("enrolling");
  const detail = `${source.uid} and ${pod.workloadUid} are both enrolled, yet ${remote.ip} sent plaintext`;
  return refuse("plaintext_refused", { status: 503, detail, source });
}

function ownSinceMs(pod: LocalPod & { readonly podSinceMs: number }, view: View): number | undefined {
  if (view.table.findWorkload(pod.workloadUid) === undefined) return pod.podSinceMs;
  return view.table.enrolledSinceMs(pod.workloadUid);
}

/**
 * The workload that calls: the one at the peer's address, when it is one of the identity that the peer has proved. What
 * comes from another network has come through a gateway: the address is the gateway's.
 */
function sourceOf({ remote, peer, forwardedNetwork }: TunnelRequest, view: View): Workload | undefined {
  if (isFromElsewhere(forwardedNetwork, view.network)) return undefined;
  const workload = view.table.findWorkloadByIp(view.network, remote.ip);
  if (workload === undefined) return undefined;
  try {
    const proved = parseWorkloadIdentity(peer);
    const same = proved.namespace === workload.namespace && proved.serviceAccount === workload.serviceAccount;
    return same ? workload : undefined;
  } catch {
    return undefined;
  }
}

/** True when a connection says that it comes from another network than `own`. */
export function isFromElsewhere(forwardedNetwork: string | undefined, own: string): boolean {
  return forwardedNetwork !== undefined && forwardedNetwork.toLowerCase() !== own.toLowerCase();
}

function refuse(
  reason: FlowReason,
  { status, detail, source }: { status: 400 | 401 | 503; detail: string; source: Workload | undefined },
): Verdict {
  return { kind: "refuse", reason, status, detail, source };
}
