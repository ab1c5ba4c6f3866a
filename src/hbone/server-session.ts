import { LightAbort, type AbortView } from "#base/abort";
import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { findHostPort } from "#base/ip";
import type { SocketAddress, TcpSocket } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import { H2_CODE, hboneError } from "./errors.ts";
import { LARGEST_WINDOW } from "./frames.ts";
import { readRequestHead, type RequestHead } from "./heads.ts";
import { encodeField, type HeaderList } from "./hpack.ts";
import type { HboneLimits } from "./limits.ts";
import { peerRevoked } from "./revocation.ts";
import { Session, type SessionRole } from "./session.ts";
import type { SecureStream } from "./tls.ts";
import type { Tunnel, TunnelHandle, TunnelResult } from "./tunnel.ts";

/** A CONNECT of a peer whose identity is proven. Answer it with `accept` or `refuse`, once. */
export interface InboundTunnel {
  readonly peer: SpiffeId;
  /** The peer proxy's end of the session, and ours. */
  readonly remote: SocketAddress;
  readonly local: SocketAddress;
  readonly authority: string;
  /** Lower-case names; repeated ones are joined by `, `. */
  readonly headers: ReadonlyMap<string, string>;
  /**
   * Answers 200 and copies between the tunnel and `socket`, which it owns from then on. When the peer has given up
   * meanwhile, `socket` is reset and `onEnd` called at once.
   */
  accept(
    socket: TcpSocket,
    options: { baggage?: string | undefined; onEnd: (result: TunnelResult) => void },
  ): TunnelHandle;
  /** Answers with an error status and ends. */
  refuse(status: number): void;
  /** The peer gave up (or the session broke), or the answer was an error status. */
  readonly closed: boolean;
  /** Aborted when the peer gives up. */
  readonly signal: AbortView;
}

/** The client hears nothing new for this long after the first GOAWAY when it does not answer the ping. */
const DRAIN_PING_MS = 5000;

/** What a {@link ServerSession} is made of. */
export interface ServerSessionOptions {
  readonly secure: SecureStream;
  readonly remote: SocketAddress;
  readonly local: SocketAddress;
  readonly clock: Clock;
  readonly limits: HboneLimits;
  readonly onTunnel: (tunnel: InboundTunnel) => void;
  /** Told of what the peer did wrong. */
  readonly reject: (error: CodedError) => void;
  /** It is over, and its stream closed. */
  readonly onGone: () => void;
}

const STATUS_200 = encodeField(":status", "200");

/** One peer's session: its requests become {@link InboundTunnel}s. */
export class ServerSession implements SessionRole {
  readonly kind = "server";
  readonly #options: ServerSessionOptions;
  readonly #session: Session;
  /** Requests above this stream are not looked at any more. */
  #lastTaken = LARGEST_WINDOW;
  #draining = false;
  #cancelDrain: (() => void) | undefined;

  constructor(options: ServerSessionOptions) {
    this.#options = options;
    const { clock, limits } = options;
    this.#session = new Session({ role: this, clock, limits });
  }

  start(): void {
    const { stream, watch } = this.#options.secure;
    if (watch !== undefined) watch.onRevoked = () => this.#session.fail(peerRevoked());
    this.#session.start(stream);
  }

  fail(error: CodedError): void {
    this.#session.fail(error);
  }

  /** In two steps (RFC 9113 §6.8): what the client opens until it has heard of the first is still served. */
  drain(): void {
    if (this.#draining || this.#session.closed) return;
    this.#draining = true;
    this.#session.sendGoaway(LARGEST_WINDOW);
    this.#session.sendDrainPing();
    this.#cancelDrain = this.#options.clock.after(DRAIN_PING_MS, () => {
      this.onDrainPong();
    });
  }

  onDrainPong(): void {
    this.#cancelDrain?.();
    if (!this.#draining || this.#lastTaken !== LARGEST_WINDOW || this.#session.closed) return;
    this.#lastTaken = this.#session.lastStreamId;
    this.#session.sendGoaway(this.#lastTaken);
    this.onTunnelEnded();
  }

  onTunnelEnded(): void {
    if (this.#session.tunnels.size === 0 && this.#lastTaken !== LARGEST_WINDOW) this.#session.finish();
  }

  onRequest(streamId: number, list: HeaderList, endStream: boolean): void {
    const session = this.#session;
    if (streamId % 2 === 0) throw hboneError("HBONE_PROTOCOL", `the client opened the even stream ${streamId}`);
    if (streamId <= session.lastStreamId) {
      throw hboneError("HBONE_STREAM_CLOSED", `HEADERS on stream ${streamId}, which has been used`);
    }
    session.lastStreamId = streamId;
    if (streamId > this.#lastTaken || session.tunnels.size >= this.#options.limits.streamsPerPeer) {
      session.refuseStream(streamId, H2_CODE.REFUSED_STREAM);
      return;
    }
    const head = readRequestHead(list);
    if (head instanceof CodedError) {
      this.#options.reject(head);
      session.refuseStream(streamId, H2_CODE.PROTOCOL_ERROR);
      return;
    }
    const tunnel = session.addTunnel(streamId);
    if (endStream) tunnel.receiveEnd();
    const wrong = wrongRequest(head);
    if (wrong !== undefined) {
      this.refuse(tunnel, 400);
      this.#options.reject(hboneError("HBONE_MALFORMED", wrong, { details: { peer: this.#options.secure.peer } }));
      session.nuisances.stream("a request that is no CONNECT");
      return;
    }
    this.#options.onTunnel(new ServerTunnel(this, { tunnel, head, options: this.#options }));
  }

  /** RFC 9113 §8.5: on a connected stream there is DATA and nothing else. */
  onTunnelHeaders(tunnel: Tunnel): void {
    this.#session.failTunnel(tunnel, hboneError("HBONE_MALFORMED", "HEADERS on a tunnel"));
  }

  /** Answers 200. */
  answer(tunnel: Tunnel, baggage: string | undefined): void {
    tunnel.answered = true;
    this.#session.nuisances.useful();
    const fields = baggage === undefined ? [STATUS_200] : [STATUS_200, this.#session.fields.shared("baggage", baggage)];
    this.#session.sendHeaders(tunnel.id, fields, false);
  }

  /** Answers with an error; the client's bytes are not wanted any more. */
  refuse(tunnel: Tunnel, status: number): void {
    if (tunnel.closed) return;
    tunnel.answered = true;
    this.#session.sendHeaders(tunnel.id, [encodeField(":status", String(status))], true);
    if (tunnel.downlink.ended) tunnel.sessionLost(hboneError("HBONE_PEER_STATUS", `answered with ${status}`));
    else tunnel.fail(hboneError("HBONE_PEER_STATUS", `answered with ${status}`), H2_CODE.NO_ERROR);
  }

  onGoaway(): void {}
  onPeerSettings(): void {}

  onGone(): void {
    this.#options.onGone();
  }

  onClosed(error: CodedError | undefined): void {
    this.#cancelDrain?.();
    this.#options.secure.watch?.leave();
    // Those two are told by the records of the tunnels.
    const told = error === undefined || error.code === "HBONE_DRAINING" || error.code === "HBONE_PEER_REVOKED";
    if (!told) this.#options.reject(error);
  }
}

/** Why a request is no CONNECT to an address; undefined when it is one. */
function wrongRequest({ method, authority }: RequestHead): string | undefined {
  if (method !== "CONNECT") return `the method is "${method}", not CONNECT`;
  if (authority === undefined) return "a CONNECT request has no :authority";
  return findHostPort(authority) === undefined ? `the :authority "${authority}" is no host and port` : undefined;
}

interface ServerTunnelParts {
  readonly tunnel: Tunnel;
  readonly head: RequestHead;
  readonly options: ServerSessionOptions;
}

class ServerTunnel implements InboundTunnel {
  readonly peer: SpiffeId;
  readonly remote: SocketAddress;
  readonly local: SocketAddress;
  readonly authority: string;
  readonly headers: ReadonlyMap<string, string>;
  readonly signal = new LightAbort();
  readonly #session: ServerSession;
  readonly #tunnel: Tunnel;
  #over: TunnelResult | undefined;

  constructor(session: ServerSession, { tunnel, head, options }: ServerTunnelParts) {
    this.peer = options.secure.peer;
    this.remote = options.remote;
    this.local = options.local;
    this.authority = head.authority ?? "";
    this.headers = head.headers;
    this.#session = session;
    this.#tunnel = tunnel;
    tunnel.onFinished = (result) => {
      this.#over = result;
      this.signal.abort(result.error);
    };
  }

  get closed(): boolean {
    return this.#over !== undefined;
  }

  accept(
    socket: TcpSocket,
    options: { baggage?: string | undefined; onEnd: (result: TunnelResult) => void },
  ): TunnelHandle {
    if (this.#over !== undefined) {
      socket.reset();
      options.onEnd(this.#over);
      return this.#tunnel;
    }
    this.#tunnel.onFinished = options.onEnd; // this, and the request's headers, are of no use any more
    this.#session.answer(this.#tunnel, options.baggage);
    this.#tunnel.attach(socket);
    return this.#tunnel;
  }

  refuse(status: number): void {
    this.#session.refuse(this.#tunnel, status);
  }
}
