/**
 * The way of a connection that arrives at a pod (docs/data-path.md, "Inbound"):
 *
 *   1 accept     a tunnel on 15008, or plaintext that was redirected to 15006
 *   2 TLS        who calls (in the HBONE server: nothing gets here without a proven identity); plaintext proves nothing
 *   3 CONNECT    which port is meant; of plaintext the kernel says it
 *   4 allowed?   decideInbound, decidePlaintext: a Verdict
 *   5 dial       the application, from the client's address
 *   6 copy       both directions, half-close passed on
 *   7 record     one, whatever happened
 *
 * Whatever fails before 6 answers CONNECT with an error status, or resets the plain connection.
 */
import type { AbortView } from "#base/abort";
import type { CodedError } from "#base/errors";
import { isV6, parseIp } from "#base/ip";
import type { FlowReason } from "#model/flow";
import { endCause, plainCause, tunnelCause, type Cause } from "./causes.ts";
import { INBOUND_PORT, PACKET_MARK } from "./config.ts";
import { findTraceId, formatBaggage, newTraceparent, parseForwardedHost } from "./headers.ts";
import type { PodSocket, PodTunnel } from "./network.ts";
import { ownWorkload, podParty, type PodContext } from "./pod-context.ts";
import type { Facts, Party } from "./record.ts";
import type { SocketAddress } from "./route.ts";
import { decideInbound, decidePlaintext, type PlainRequest, type TunnelRequest, type Verdict } from "./verdict.ts";

type Settled = Extract<Verdict, { kind: "connect" | "refuse" }>;
type Allowed = Extract<Verdict, { kind: "connect" }>;

/** Carries one tunnel to the application of the pod. Answers it. Never rejects. */
export async function carryTunnel(context: PodContext, tunnel: PodTunnel): Promise<void> {
  const record = context.flows.begin("inbound");
  const { peer, remote, local, authority, headers } = tunnel;
  const forwardedHost = parseForwardedHost(headers.get("forwarded") ?? "");
  const request: TunnelRequest = { peer, remote, local, authority, forwardedHost };
  const verdict = await settle(context, (view) => decideInbound(context.pod, request, view));
  const traceId = findTraceId(headers.get("traceparent")) ?? findTraceId(newTraceparent(context.random));
  const facts = (reason: FlowReason, detail = ""): Facts => ({
    source: { address: remote, workload: verdict.source, identity: peer },
    destination: podParty(context, local, true),
    service: verdict.kind === "connect" ? verdict.service : undefined,
    hboneTarget: authority,
    encryption: "mutual_tls",
    reason,
    detail,
    traceId,
  });
  const refuse = (status: number, { reason, detail }: Cause): void => {
    record.refuse(facts(reason, detail));
    tunnel.refuse(status);
  };
  if (verdict.kind === "refuse") {
    refuse(verdict.status, verdict);
    return;
  }
  let application: PodSocket;
  try {
    application = await dial(context, verdict, tunnel.signal);
  } catch (error) {
    refuse(503, tunnel.closed ? { reason: "reset", detail: "the peer gave up" } : plainCause(error));
    return;
  }
  if (tunnel.closed) {
    application.reset();
    record.refuse(facts("reset", "the peer gave up"));
    return;
  }
  const own = ownWorkload(context);
  const handle = tunnel.accept(application, {
    baggage: own === undefined ? undefined : formatBaggage(own),
    onEnd: ({ bytesSent: sent, bytesReceived: received, error }) => {
      record.close({ sent, received }, error && endCause(error));
    },
  });
  record.open(facts("ok"), () => handle.bytes);
}

/** Records a session that was refused before it could ask for anything: no TLS, no identity, a wrong one. */
export function recordRejected(context: PodContext, remote: SocketAddress, error: CodedError): void {
  const { flows } = context;
  flows.cells.bind("veil_proxy_tunnels_rejected_total", { code: error.code }).value++;
  const { pod } = context;
  const own = ownWorkload(context);
  const address = { ip: own?.addresses.find((ip) => isV6(ip) === isV6(remote.ip)) ?? UNSPECIFIED, port: INBOUND_PORT };
  flows.begin("inbound").refuse({
    source: { address: remote, workload: undefined, identity: undefined },
    destination: { address, workload: own, pod, identity: undefined },
    service: undefined,
    hboneTarget: undefined,
    encryption: "none",
    ...tunnelCause(error),
  });
}

const UNSPECIFIED = parseIp("0.0.0.0");

/** Carries one plaintext connection to the application of the pod, or resets it. Owns the socket. Never rejects. */
export async function carryPlaintext(context: PodContext, socket: PodSocket): Promise<void> {
  socket.resetOnDeath();
  const record = context.flows.begin("inbound");
  const { network, connections } = context;
  const request: PlainRequest = {
    remote: socket.remote,
    originalDestination: socket.originalDestination() ?? socket.local,
  };
  const refuse = (source: Party["workload"], cause: Cause): void => {
    record.refuse(plainFacts(context, request, { source, encryption: "none", ...cause }));
    socket.reset();
  };
  const full = connections.enter();
  if (full !== undefined) {
    refuse(undefined, { reason: full, detail: "" });
    return;
  }
  const verdict = await settle(context, (view) => decidePlaintext(context.pod, request, view));
  if (verdict.kind === "refuse") {
    refuse(verdict.source, verdict);
    connections.leave();
    return;
  }
  let application: PodSocket;
  try {
    application = await dial(context, verdict, undefined);
  } catch (error) {
    refuse(verdict.source, plainCause(error));
    connections.leave();
    return;
  }
  // The application is `a`: what it sends has left the pod.
  const handle = network.copyPlain(application, socket, {
    onEnd: ({ bytesSent: sent, bytesReceived: received, error }) => {
      untrack();
      record.close({ sent, received }, error && endCause(error));
      connections.leave();
    },
  });
  const untrack = connections.track(handle);
  const { source, reason } = verdict;
  record.open(
    plainFacts(context, request, { source, encryption: "plaintext", reason, detail: "" }),
    () => handle.bytes,
  );
}

/** Stage 4: decides, and holds the connection until the first snapshot is there. A failure is a refusal. */
async function settle(
  { knowledge }: PodContext,
  decide: (view: ReturnType<PodContext["knowledge"]["view"]>) => Verdict,
): Promise<Settled> {
  const verdict = decide(knowledge.view());
  if (verdict.kind !== "wait") return verdict;
  await knowledge.whenSynced();
  const later = decide(knowledge.view());
  if (later.kind !== "wait") return later;
  const detail = "no control plane has said yet who is where";
  return { kind: "refuse", status: 503, reason: "control_plane_unavailable", detail, source: undefined };
}

/** Stage 5: dials the application as the client. */
async function dial(context: PodContext, verdict: Allowed, signal: AbortView | undefined): Promise<PodSocket> {
  const { network, netns, clock, config } = context;
  const { target, sourceIp } = verdict;
  const timeoutMs = config.dialMs;
  const how = { netns, mark: PACKET_MARK, sourceIp, timeoutMs, clock, signal, sameHost: true };
  const socket = await network.connectTcp({ ...how, ...target });
  socket.resetOnDeath();
  return socket;
}

function plainFacts(
  context: PodContext,
  request: PlainRequest,
  rest: Pick<Facts, "encryption" | "reason" | "detail"> & { source: Party["workload"] },
): Facts {
  const { source, ...about } = rest;
  const target: SocketAddress = request.originalDestination;
  return {
    source: { address: request.remote, workload: source, identity: undefined },
    destination: podParty(context, target, false),
    service: undefined,
    hboneTarget: undefined,
    ...about,
  };
}
