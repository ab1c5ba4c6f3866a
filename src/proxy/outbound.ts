/**
 * The way of a connection that a pod opens (docs/data-path.md, "Outbound"):
 *
 *   1 accept     on 15001 in the pod's namespace, redirected there by its rules
 *   2 who        the pod is known by the listener; where it wanted to go, by the kernel
 *   3 where      decideOutbound: a Route; the connection is held while the control plane is asked
 *   4 session    HBONE: the pod's certificate, a session from the pool, or a new one
 *   5 CONNECT    wait for 200; or dial in clear where the route says so
 *   6 copy       both directions, half-close passed on
 *   7 record     one, whatever happened
 *
 * Whatever fails before 6 resets the connection and says why; no failure leads from a tunnel to clear.
 */
import { formatHostPort } from "#base/ip";
import type { FlowReason } from "#model/flow";
import type { SpiffeId } from "#model/spiffe-id";
import { endCause, plainCause, tunnelCause, type Cause } from "./causes.ts";
import { PACKET_MARK } from "./config.ts";
import { findTraceId, formatBaggage, formatForwarded, newTraceparent, parseBaggage, type Baggage } from "./headers.ts";
import type { PodSocket } from "./network.ts";
import { ownWorkload, podParty, type PodContext } from "./pod-context.ts";
import type { Facts } from "./pairs.ts";
import type { ConnectionRecord } from "./record.ts";
import { decideOutbound, type Route, type SocketAddress } from "./route.ts";

/** A route that can be followed at once. */
type SettledRoute = Extract<Route, { kind: "tunnel" | "plain" | "refuse" }>;

interface Outbound {
  readonly context: PodContext;
  readonly socket: PodSocket;
  readonly record: ConnectionRecord;
  readonly to: SocketAddress;
}

/** Carries one accepted connection to where it wanted to go. Owns the socket. Never rejects. */
export async function carryOutbound(context: PodContext, socket: PodSocket): Promise<void> {
  socket.resetOnDeath();
  const record = context.flows.begin("outbound");
  const to = socket.originalDestination() ?? socket.local;
  const outbound = { context, socket, record, to };
  const full = context.connections.enter(context, socket);
  if (full !== undefined) {
    refuse(outbound, full);
    return;
  }
  const goesOn = held(outbound);
  try {
    const route = await settleRoute(context, to);
    if (!goesOn()) return;
    if (route.kind === "refuse") {
      refuse(outbound, route, route);
      context.connections.leave();
    } else if (route.kind === "tunnel") openTunnel(outbound, route);
    else await dialPlain(outbound, route);
  } catch (error) {
    if (!goesOn()) return;
    refuse(outbound, plainCause(error));
    context.connections.leave();
  }
}

/** The connection waits; a drain whose time is over refuses it. The returned function answers false then. */
function held(outbound: Outbound, route?: SettledRoute): () => boolean {
  const { connections } = outbound.context;
  return connections.hold((cause) => {
    refuse(outbound, cause, route);
    connections.leave();
  });
}

/** Stage 3: decides, and holds the connection while something has to be waited for. */
async function settleRoute(context: PodContext, to: SocketAddress): Promise<SettledRoute> {
  const { knowledge, pod } = context;
  const draws: number[] = [];
  for (let tries = 0; tries < MOST_DECISIONS; tries++) {
    const route = decideOutbound(pod, to, knowledge.view(draws));
    if (route.kind === "wait") {
      if (!(await knowledge.whenSynced())) return unanswered("no control plane has said yet who is where");
    } else if (route.kind === "ask") {
      const answer = await knowledge.ask(route.name);
      if (answer === "unavailable") return unanswered(`nobody answered who ${to.ip} is`);
    } else if (route.kind === "resolve") {
      if (!(await knowledge.resolve(route.hostname))) return unnamed(route.hostname);
    } else if (route.kind === "tunnel" && knowledge.certificate(pod.identity) === undefined) {
      if (!(await knowledge.whenCertificate(pod.identity))) return uncertified(pod.identity, route);
    } else return route; // decided after the last wait: nothing has changed since
  }
  return unanswered(`the control plane says that ${to.ip} exists, but not what it is`);
}

/** Each wait is followed by a new decision; more than this many mean that the answers contradict each other. */
const MOST_DECISIONS = 5;

/** Stages 4 to 7 through a tunnel. The pool owns the socket from here on, and resets it when it cannot open. */
function openTunnel({ context, socket, record, to }: Outbound, route: Extract<Route, { kind: "tunnel" }>): void {
  const { pod, pool, netns, config, random } = context;
  const own = ownWorkload(context);
  let isOpen = false;
  const client = socket.remote;
  const traceparent = newTraceparent(random);
  const facts = (reason: FlowReason, peer: SpiffeId | undefined, described?: Baggage): Facts => ({
    source: podParty(context, client, true),
    destination:
      described === undefined
        ? { address: route.target, workload: route.destination.workload, identity: peer }
        : { address: route.target, workload: undefined, described, identity: peer },
    service: route.destination.service,
    hboneTarget: route.authority,
    encryption: "mutual_tls",
    reason,
    traceId: findTraceId(traceparent),
    asked: to,
  });
  const handle = pool.open({
    netns,
    mark: PACKET_MARK,
    source: pod.identity,
    accepted: route.accepted,
    inner: route.inner,
    ...route.target,
    authority: route.authority,
    headers: {
      baggage:
        own === undefined
          ? `k8s.cluster.name=${config.clusterId},k8s.namespace.name=${pod.namespace}`
          : formatBaggage(own),
      forwarded: formatForwarded(client, route.destination.service),
      traceparent,
    },
    socket,
    onOpen: ({ peer, responseBaggage }) => {
      isOpen = true;
      // Behind a gateway any workload of the service may have answered: it says which.
      const says = route.inner !== undefined && config.baggage ? responseBaggage : undefined;
      record.open(facts("ok", peer, says === undefined ? undefined : parseBaggage(says)), () => handle.bytes);
    },
    onEnd: ({ bytesSent: sent, bytesReceived: received, error }) => {
      if (isOpen) record.close({ sent, received }, error && endCause(error));
      else
        record.refuse({
          ...facts("ok", undefined),
          ...tunnelCause(error ?? new Error(`no tunnel to ${formatHostPort(to.ip, to.port)}`)),
        });
      context.connections.leave();
    },
  });
}

/** Stages 5 to 7 in clear, where the route says that this is right. */
async function dialPlain(outbound: Outbound, route: Extract<Route, { kind: "plain" }>): Promise<void> {
  const { context, socket, record } = outbound;
  const { network, netns, clock, config, connections } = context;
  let upstream: PodSocket;
  const goesOn = held(outbound, route);
  try {
    upstream = await network.connectTcp({ netns, mark: PACKET_MARK, ...route.target, timeoutMs: config.dialMs, clock });
  } catch (error) {
    if (!goesOn()) return;
    refuse(outbound, plainCause(error), route);
    connections.leave();
    return;
  }
  if (!goesOn()) {
    upstream.reset();
    return;
  }
  upstream.resetOnDeath();
  const facts: Facts = {
    source: podParty(context, socket.remote, false),
    destination: { address: route.target, workload: route.destination.workload, identity: undefined },
    service: route.destination.service,
    hboneTarget: undefined,
    encryption: "plaintext",
    reason: route.reason,
    asked: outbound.to,
  };
  const handle = network.copyPlain(socket, upstream, {
    onEnd: ({ bytesSent: sent, bytesReceived: received, error }) => {
      untrack();
      record.close({ sent, received }, error && endCause(error));
      connections.leave();
    },
  });
  const untrack = connections.track(handle);
  record.open(facts, () => handle.bytes);
}

function refuse({ context, socket, record, to }: Outbound, { reason, detail }: Cause, route?: SettledRoute): void {
  const destination = route?.destination;
  record.refuse({
    source: podParty(context, socket.remote, false),
    destination: { address: to, workload: destination?.workload, identity: undefined },
    service: destination?.service,
    hboneTarget: route?.kind === "tunnel" ? route.authority : undefined,
    encryption: "none",
    reason,
    detail,
  });
  socket.reset();
}

function unanswered(detail: string): SettledRoute {
  const destination = { workload: undefined, service: undefined };
  return { kind: "refuse", reason: "control_plane_unavailable", detail, destination };
}

function unnamed(hostname: string): SettledRoute {
  const destination = { workload: undefined, service: undefined };
  return {
    kind: "refuse",
    reason: "no_healthy_upstream",
    detail: `nobody answered which address ${hostname} has`,
    destination,
  };
}

function uncertified(id: SpiffeId, { destination }: Extract<Route, { kind: "tunnel" }>): SettledRoute {
  return { kind: "refuse", reason: "no_certificate", detail: `no valid certificate for ${id}`, destination };
}
