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
 * From 4 on the connection is judged again whenever policies change (admissions.ts), and ends when it is not allowed any more.
 * Whatever fails before 6 answers CONNECT with an error status, or resets the plain connection.
 */
import type { CodedError } from "#base/errors";
import { isV6, parseIp } from "#base/ip";
import { describeDecision, type Decision } from "#policy";
import type { Admission } from "./admissions.ts";
import { dryRunDetail } from "./authorize.ts";
import { endCause, plainCause, tunnelCause, type Cause } from "./causes.ts";
import { INBOUND_PORT, PACKET_MARK } from "./config.ts";
import { proxyError } from "./errors.ts";
import {
  findTraceId,
  formatBaggage,
  newTraceparent,
  parseBaggage,
  parseForwardedHost,
  type Baggage,
} from "./headers.ts";
import { encodeProxyHeader } from "./proxy-protocol.ts";
import type { PodSocket, PodTunnel } from "./network.ts";
import { ownWorkload, podParty, type PodContext } from "./pod-context.ts";
import type { Facts, Party } from "./pairs.ts";
import type { ConnectionRecord } from "./record.ts";
import type { SocketAddress } from "./route.ts";
import {
  decideInbound,
  decidePlaintext,
  isFromElsewhere,
  type PlainRequest,
  type TunnelRequest,
  type Verdict,
} from "./verdict.ts";

type Settled = Extract<Verdict, { kind: "connect" | "refuse" }>;
type Allowed = Extract<Verdict, { kind: "connect" }>;

/** Carries one tunnel to the application of the pod. Answers it. Never rejects. */
export async function carryTunnel(context: PodContext, tunnel: PodTunnel): Promise<void> {
  const record = context.flows.begin("inbound");
  const known = tunnelFacts(context, tunnel);
  let verdict: Settled | undefined;
  const refuse = (status: number, cause: Cause): void => {
    goesOn();
    record.refuse(known(verdict, cause));
    tunnel.refuse(status);
  };
  const goesOn = context.connections.hold((cause) => {
    refuse(503, cause);
  });
  const request = tunnelRequest(tunnel);
  verdict = await settle(context, (view) => decideInbound(context.pod, request, view));
  if (verdict.kind === "refuse") {
    refuse(verdict.status, verdict);
    return;
  }
  const short = context.pressure.refusal();
  if (short !== undefined) {
    refuse(503, short);
    return;
  }
  let dialled: Dialled;
  try {
    dialled = await dial(context, verdict, tunnel);
  } catch (error) {
    const cause = tunnel.closed ? GAVE_UP : plainCause(error);
    refuse(cause.reason === "policy_changed" ? 401 : 503, cause);
    return;
  }
  const { application, admission } = dialled;
  if (!goesOn() || tunnel.closed) {
    admission.leave();
    application.reset();
    record.refuse(known(verdict, GAVE_UP));
    return;
  }
  forward(context, { tunnel, record, application, admission, facts: known(verdict, FORWARDED) });
}

/** Stages 6 and 7. A function of its own: what decided is not held for as long as the connection lives. */
function forward(
  context: PodContext,
  {
    tunnel,
    record,
    application,
    admission,
    facts,
  }: Dialled & { tunnel: PodTunnel; record: ConnectionRecord; facts: Facts },
): void {
  const own = ownWorkload(context);
  const handle = tunnel.accept(application, {
    baggage: own === undefined || !context.config.baggage ? undefined : formatBaggage(own),
    onEnd: ({ bytesSent: sent, bytesReceived: received, error }) => {
      admission.leave();
      record.close({ sent, received }, error && endCause(error));
    },
  });
  record.open(facts, () => handle.bytes);
  admission.onDenied = (decision) => {
    handle.abort(policyChanged(decision));
  };
}

const GAVE_UP: Cause = { reason: "reset", detail: "the peer gave up" };
const FORWARDED: Cause = { reason: "ok", detail: "" };

function tunnelRequest({ peer, remote, local, authority, headers }: PodTunnel): TunnelRequest {
  const forwardedHost = parseForwardedHost(headers.get("forwarded") ?? "");
  const forwardedNetwork = headers.get("x-forwarded-network");
  return { peer, remote, local, authority, forwardedHost, forwardedNetwork };
}

/** What is known of a tunnel, and of where it goes once there is a verdict. */
function tunnelFacts(
  context: PodContext,
  { peer: identity, remote: address, local, authority: hboneTarget, headers }: PodTunnel,
): (verdict: Settled | undefined, cause: Cause) => Facts {
  const traceId = findTraceId(headers.get("traceparent")) ?? findTraceId(newTraceparent(context.random));
  return (verdict, { reason, detail }) => ({
    source: { address, workload: verdict?.source, described: describedSource(context, headers), identity },
    destination: podParty(context, local, true),
    service: verdict?.kind === "connect" ? verdict.service : undefined,
    hboneTarget,
    encryption: "mutual_tls",
    reason,
    detail,
    dryRun: reason === "ok" && verdict?.kind === "connect" ? dryRunDetail(verdict.dryRun) : undefined,
    traceId,
    application: verdict?.kind === "connect" ? verdict.target : undefined,
  });
}

/** What a connection that came through a gateway says of its source: its address is the gateway's. A label, nothing more. */
function describedSource({ config }: PodContext, headers: PodTunnel["headers"]): Baggage | undefined {
  if (!config.baggage || !isFromElsewhere(headers.get("x-forwarded-network"), config.network)) return undefined;
  return parseBaggage(headers.get("baggage") ?? "");
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
  const full = connections.enter(context, socket);
  if (full !== undefined) {
    refuse(undefined, full);
    return;
  }
  const giveUp = (source: Party["workload"], cause: Cause): void => {
    refuse(source, cause);
    connections.leave();
  };
  const goesOn = connections.hold((cause) => {
    giveUp(undefined, cause);
  });
  const verdict = await settlePlaintext(context, request);
  if (verdict.kind === "refuse") {
    if (goesOn()) giveUp(verdict.source, verdict);
    return;
  }
  let dialled: Dialled;
  try {
    dialled = await dial(context, verdict);
  } catch (error) {
    if (goesOn()) giveUp(verdict.source, plainCause(error));
    return;
  }
  const { application, admission } = dialled;
  if (!goesOn()) {
    admission.leave();
    application.reset();
    return;
  }
  // The application is `a`: what it sends has left the pod.
  const handle = network.copyPlain(application, socket, {
    onEnd: ({ bytesSent: sent, bytesReceived: received, error }) => {
      untrack();
      admission.leave();
      record.close({ sent, received }, error && endCause(error));
      connections.leave();
    },
  });
  const untrack = connections.track(handle);
  const { source, reason, dryRun } = verdict;
  const opened = plainFacts(context, request, { source, encryption: "plaintext", reason, detail: "" });
  record.open({ ...opened, dryRun: dryRunDetail(dryRun) }, () => handle.bytes);
  admission.onDenied = (decision) => {
    handle.abort(policyChanged(decision));
  };
}

/** Stage 4: decides, and holds the connection until what it takes to decide is there. A failure is a refusal. */
async function settle(
  { knowledge }: PodContext,
  decide: (view: ReturnType<PodContext["knowledge"]["view"]>) => Verdict,
): Promise<Settled> {
  let verdict = decide(knowledge.view());
  if (verdict.kind === "wait") {
    await knowledge.whenSynced();
    verdict = decide(knowledge.view());
  }
  if (verdict.kind === "ask") {
    await knowledge.ask(verdict.name);
    verdict = decide(knowledge.view());
  }
  if (verdict.kind === "connect" || verdict.kind === "refuse") return verdict;
  const unknown = verdict.kind === "wait" ? "who is where" : "which policies apply to this pod";
  const detail = `no control plane has said yet ${unknown}`;
  return { kind: "refuse", status: 503, reason: "control_plane_unavailable", detail, source: undefined };
}

/** How long plaintext between two enrolled pods may wait for the news that one of them is not any more. */
const NEWS_MS = 2_000;

/**
 * Stage 4 of a plaintext connection. Its client's node may know already that one of the two is plain again, when this one does not yet:
 * what would be refused for that is looked at again with each change, for a moment.
 */
async function settlePlaintext(context: PodContext, request: PlainRequest): Promise<Settled> {
  const { knowledge, clock, pod } = context;
  const endMs = clock.monotonic() + NEWS_MS;
  for (;;) {
    const verdict = await settle(context, (view) => decidePlaintext(pod, request, view));
    const isFinal = verdict.kind === "connect" || verdict.reason !== "plaintext_refused";
    if (isFinal || !(await knowledge.whenChanged(endMs - clock.monotonic()))) return verdict;
  }
}

interface Dialled {
  readonly application: PodSocket;
  /** From the verdict on; leave it when the connection ends. */
  readonly admission: Admission;
}

/**
 * Stage 5: dials the application as the client, and tells it first who calls where the verdict says so. Fails also when the policies change meanwhile and do not allow it any
 * more.
 */
async function dial(context: PodContext, verdict: Allowed, tunnel?: PodTunnel): Promise<Dialled> {
  const { network, netns, clock, config, admissions, flows, pod } = context;
  const { target, sourceIp, proxyTo, policy, dryRun } = verdict;
  const admission = admissions.enter(policy); // in the turn of the verdict: no change of policies comes between the two
  if (dryRun !== undefined) {
    flows.cells.bind("veil_proxy_dry_run_total", { result: dryRun.allowed ? "allow" : "deny" }).value++;
  }
  const timeoutMs = config.dialMs;
  try {
    // In the proxy's own namespace no rule leads answers to a borrowed address back.
    const from = pod.serves === undefined ? sourceIp : undefined;
    const how = { netns, mark: PACKET_MARK, sourceIp: from, timeoutMs, clock, signal: tunnel?.signal, sameHost: true };
    const application = await network.connectTcp({ ...how, ...target });
    application.resetOnDeath();
    if (admission.denied === undefined) {
      if (proxyTo !== undefined && tunnel !== undefined) sendHeader(application, proxyTo, tunnel);
      return { application, admission };
    }
    application.reset();
    throw policyChanged(admission.denied);
  } catch (error) {
    admission.leave();
    throw error;
  }
}

/** Why a connection that was allowed ends. */
function policyChanged(decision: Decision): CodedError {
  return proxyError("PROXY_POLICY_CHANGED", `connection closed due to policy change: ${describeDecision(decision)}`);
}

function sendHeader(socket: PodSocket, destination: SocketAddress, { remote: source, peer }: PodTunnel): void {
  try {
    socket.sendFirst(encodeProxyHeader({ source, destination, peer }));
  } catch (error) {
    socket.reset();
    throw error;
  }
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
