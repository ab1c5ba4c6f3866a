import { LightAbort, type AbortView } from "#base/abort";
import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { findHostPort } from "#base/ip";
import { listenTcp, type Netns, type SocketAddress, type TcpListener, type TcpSocket } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { H2_CODE, hboneError } from "./errors.ts";
import { FRAME, LARGEST_WINDOW } from "./frames.ts";
import { readRequestHead, type RequestHead } from "./heads.ts";
import { encodeField, type HeaderList } from "./hpack.ts";
import { DEFAULT_LIMITS, type HboneLimits } from "./limits.ts";
import { Session, type SessionRole } from "./session.ts";
import { TlsAcceptor, type SecureStream } from "./tls.ts";
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

/** What an inbound listener is made of. */
export interface HboneServerOptions {
  readonly netns?: Netns | undefined;
  readonly ip: string;
  readonly port: number;
  readonly mark?: number | undefined;
  /** Lets a second process take the port over without a gap. */
  readonly reusePort?: boolean | undefined;
  /** Accepted sockets may be answered from addresses that are not the machine's. */
  readonly transparent?: boolean | undefined;
  /** Asked at each handshake. */
  readonly certificate: () => TlsIdentity | undefined;
  readonly clock: Clock;
  readonly limits?: Partial<HboneLimits> | undefined;
  readonly onTunnel: (tunnel: InboundTunnel) => void;
  /** A peer that got no session, lost it because of what it did, or asked for something that is no tunnel. */
  readonly onRejected?: ((info: { remote: SocketAddress; error: CodedError }) => void) | undefined;
}

/** The client hears nothing new for this long after the first GOAWAY when it does not answer the ping. */
const DRAIN_PING_MS = 1000;

/** Listens for HBONE: mutual TLS, HTTP/2, CONNECT. */
export class HboneServer {
  readonly #options: HboneServerOptions;
  readonly #limits: HboneLimits;
  readonly #acceptor = new TlsAcceptor();
  readonly #sessions = new Set<ServerSession>();
  #listener: TcpListener | undefined;
  #draining = false;
  #whenEmpty: (() => void) | undefined;

  constructor(options: HboneServerOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
  }

  /** Listens. Throws as `listenTcp` does. */
  start(): void {
    this.#listener = listenTcp(this.#options, (socket) => {
      this.#accept(socket);
    });
  }

  /** The port, after `start`. */
  get port(): number {
    return this.#listener?.port ?? this.#options.port;
  }

  /** Sessions that are open. */
  get sessions(): number {
    return this.#sessions.size;
  }

  #accept(socket: TcpSocket): void {
    const { remote, local } = socket;
    const reject = (error: CodedError): void => {
      this.#options.onRejected?.({ remote, error });
    };
    const identity = this.#options.certificate();
    const refusal = this.#refusal(identity);
    if (identity === undefined || refusal !== undefined) {
      socket.reset();
      reject(refusal ?? hboneError("HBONE_NO_CERTIFICATE", "this workload has no certificate yet"));
      return;
    }
    const { handshakeTimeoutMs: timeoutMs } = this.#limits;
    const onDone = (result: SecureStream | CodedError): void => {
      if (result instanceof CodedError) reject(result);
      else this.#begin(result, { remote, local, reject });
      this.#checkEmpty();
    };
    this.#acceptor.accept({ socket, identity, clock: this.#options.clock, timeoutMs, onDone });
  }

  #refusal(identity: TlsIdentity | undefined): CodedError | undefined {
    const { sessionsPerListener, handshakesPerListener } = this.#limits;
    if (identity === undefined) return hboneError("HBONE_NO_CERTIFICATE", "this workload has no certificate yet");
    if (this.#sessions.size >= sessionsPerListener) {
      return hboneError("HBONE_LIMIT", `this listener has ${sessionsPerListener} sessions already`);
    }
    if (this.#acceptor.size >= handshakesPerListener) {
      return hboneError("HBONE_LIMIT", `this listener has ${handshakesPerListener} handshakes under way already`);
    }
    return undefined;
  }

  #begin(secure: SecureStream, peer: { remote: SocketAddress; local: SocketAddress; reject: Rejecter }): void {
    const { clock, onTunnel } = this.#options;
    const session = new ServerSession({
      ...peer,
      secure,
      clock,
      limits: this.#limits,
      onTunnel,
      onClosed: () => {
        this.#sessions.delete(session);
        this.#checkEmpty();
      },
    });
    this.#sessions.add(session);
    session.start();
    if (this.#draining) session.drain();
  }

  #checkEmpty(): void {
    if (this.#sessions.size === 0 && this.#acceptor.size === 0) this.#whenEmpty?.();
  }

  /** Takes no new sessions and tunnels (GOAWAY), waits for the running ones, breaks what is left at the deadline. */
  async drain(deadlineMs: number): Promise<void> {
    this.#draining = true;
    this.#listener?.stop();
    for (const session of this.#sessions) session.drain();
    const { clock } = this.#options;
    const error = hboneError("HBONE_DRAINING", "the proxy shuts down");
    if (this.#sessions.size + this.#acceptor.size > 0 && deadlineMs > 0) {
      await new Promise<void>((resolve) => {
        const cancel = clock.after(deadlineMs, resolve);
        this.#whenEmpty = () => {
          cancel();
          resolve();
        };
      });
    }
    this.#acceptor.close(error);
    for (const session of this.#sessions) session.fail(error);
  }
}

type Rejecter = (error: CodedError) => void;

interface ServerSessionOptions {
  readonly secure: SecureStream;
  readonly remote: SocketAddress;
  readonly local: SocketAddress;
  readonly clock: Clock;
  readonly limits: HboneLimits;
  readonly onTunnel: (tunnel: InboundTunnel) => void;
  readonly reject: Rejecter;
  readonly onClosed: () => void;
}

const STATUS_200 = encodeField(":status", "200");

/** One peer's session: its requests become {@link InboundTunnel}s. */
class ServerSession implements SessionRole {
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
    const { stream, early } = this.#options.secure;
    this.#session.start(stream, early);
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
      this.#reset(streamId, H2_CODE.REFUSED_STREAM);
      return;
    }
    const head = readRequestHead(list);
    if (head instanceof CodedError) {
      this.#reset(streamId, H2_CODE.PROTOCOL_ERROR);
      this.#options.reject(head);
      return;
    }
    const tunnel = session.addTunnel(streamId);
    if (endStream) tunnel.receiveEnd();
    const wrong = wrongRequest(head);
    if (wrong !== undefined) {
      this.refuse(tunnel, 400);
      this.#options.reject(hboneError("HBONE_MALFORMED", wrong, { details: { peer: this.#options.secure.peer } }));
      return;
    }
    this.#options.onTunnel(new ServerTunnel(this, { tunnel, head, options: this.#options }));
  }

  #reset(streamId: number, code: number): void {
    this.#session.resets.add(streamId);
    this.#session.writer.control32(FRAME.RST_STREAM, streamId, code);
  }

  /** Trailers may end a tunnel; anything else is an error of the peer. */
  onTunnelHeaders(tunnel: Tunnel, _list: HeaderList, endStream: boolean): void {
    if (endStream) tunnel.receiveEnd();
    else tunnel.fail(hboneError("HBONE_MALFORMED", "trailers do not end the stream"), H2_CODE.PROTOCOL_ERROR);
  }

  /** Answers 200. */
  answer(tunnel: Tunnel, baggage: string | undefined): void {
    tunnel.answered = true;
    const fields = baggage === undefined ? [STATUS_200] : [STATUS_200, encodeField("baggage", baggage)];
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

  onClosed(error: CodedError | undefined): void {
    this.#cancelDrain?.();
    this.#options.onClosed();
    if (error !== undefined && error.code !== "HBONE_DRAINING") this.#options.reject(error);
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
  #onEnd: ((result: TunnelResult) => void) | undefined;

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
      this.#onEnd?.(result);
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
    this.#onEnd = options.onEnd;
    this.#session.answer(this.#tunnel, options.baggage);
    this.#tunnel.attach(socket);
    return this.#tunnel;
  }

  refuse(status: number): void {
    this.#session.refuse(this.#tunnel, status);
  }
}
