import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { Occasion } from "#base/occasion";
import { listenTcp, type Netns, type SocketAddress, type TcpListener, type TcpSocket } from "#linux";
import type { TlsIdentity } from "#model/tls-identity";
import { hboneError } from "./errors.ts";
import { DEFAULT_LIMITS, type HboneLimits } from "./limits.ts";
import type { PeerRevocations } from "./revocation.ts";
import { ServerSession, type InboundTunnel } from "./server-session.ts";
import { TlsAcceptor, type SecureStream } from "./tls.ts";

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
  /** Asked at each handshake. While there is none peers wait, a while: see `certificateArrived`. */
  readonly certificate: () => TlsIdentity | undefined;
  readonly clock: Clock;
  readonly limits?: Partial<HboneLimits> | undefined;
  readonly revocations?: PeerRevocations | undefined;
  readonly onTunnel: (tunnel: InboundTunnel) => void;
  /** A peer that got no session, lost it because of what it did, or asked for something that is no tunnel. */
  readonly onRejected?: ((info: { remote: SocketAddress; error: CodedError }) => void) | undefined;
}

/** How long broken sessions have for telling their peers. */
const LAST_WORDS_MS = 2000;

/** Listens for HBONE: mutual TLS, HTTP/2, CONNECT. */
export class HboneServer {
  readonly #options: HboneServerOptions;
  readonly #limits: HboneLimits;
  readonly #acceptor = new TlsAcceptor();
  readonly #sessions = new Set<ServerSession>();
  /** Peers that came before the certificate, and what cancels their deadline. */
  readonly #waiting = new Map<TcpSocket, () => void>();
  #listener: TcpListener | undefined;
  #draining = false;
  readonly #emptied = new Occasion();

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

  /** The workload's certificate may have come: peers that wait for it are let in. */
  certificateArrived(): void {
    if (this.#options.certificate() === undefined) return;
    for (const [socket, cancel] of this.#waiting) {
      cancel();
      this.#waiting.delete(socket);
      this.#accept(socket);
    }
  }

  #accept(socket: TcpSocket): void {
    const refusal = this.#refusal(socket);
    if (refusal !== undefined) {
      this.#turnAway(socket, refusal);
      return;
    }
    const identity = this.#options.certificate();
    if (identity === undefined) this.#hold(socket);
    else this.#shake(socket, identity);
  }

  #turnAway(socket: TcpSocket, error: CodedError): void {
    const { remote } = socket;
    socket.reset();
    this.#options.onRejected?.({ remote, error });
  }

  /** A pod may be asked before its certificate is there: its peer waits a moment, rather than fail. */
  #hold(socket: TcpSocket): void {
    const { certificateWaitMs } = this.#limits;
    const cancel = this.#options.clock.after(certificateWaitMs, () => {
      this.#waiting.delete(socket);
      const message = `this workload got no certificate within ${certificateWaitMs} ms`;
      this.#turnAway(socket, hboneError("HBONE_NO_CERTIFICATE", message));
      this.#checkEmpty();
    });
    this.#waiting.set(socket, cancel);
  }

  #shake(socket: TcpSocket, identity: TlsIdentity): void {
    const { remote, local } = socket;
    const reject = (error: CodedError): void => {
      this.#options.onRejected?.({ remote, error });
    };
    const { handshakeTimeoutMs: timeoutMs } = this.#limits;
    const onDone = (result: SecureStream | CodedError): void => {
      if (result instanceof CodedError) reject(result);
      else {
        const session = this.#begin(result, { remote, local, reject });
        // Trust has changed during the handshake: the peer was judged by what was in force before.
        if (this.#draining || identity.rootsPem !== this.#options.certificate()?.rootsPem) session.drain();
      }
      this.#checkEmpty();
    };
    const { clock, revocations } = this.#options;
    this.#acceptor.accept({ socket, identity, revocations, clock, timeoutMs, onDone });
  }

  #refusal({ isLastFile }: TcpSocket): CodedError | undefined {
    const { sessionsPerListener, handshakesPerListener } = this.#limits;
    if (isLastFile) return hboneError("HBONE_NO_FILES", "the process has no descriptor left for a session");
    if (this.#sessions.size >= sessionsPerListener) {
      return hboneError("HBONE_LIMIT", `this listener has ${sessionsPerListener} sessions already`);
    }
    if (this.#acceptor.size + this.#waiting.size >= handshakesPerListener) {
      return hboneError("HBONE_LIMIT", `this listener has ${handshakesPerListener} handshakes under way already`);
    }
    return undefined;
  }

  #begin(
    secure: SecureStream,
    peer: { remote: SocketAddress; local: SocketAddress; reject: (error: CodedError) => void },
  ): ServerSession {
    const { clock, onTunnel } = this.#options;
    const session = new ServerSession({
      ...peer,
      secure,
      clock,
      limits: this.#limits,
      onTunnel,
      onGone: () => {
        this.#sessions.delete(session);
        this.#checkEmpty();
      },
    });
    this.#sessions.add(session);
    session.start();
    return session;
  }

  /** The trusted roots changed: peers are asked to come again with their next tunnels, and are judged anew then. */
  trustChanged(): void {
    for (const session of this.#sessions) session.drain();
  }

  #checkEmpty(): void {
    if (this.#isEmpty) this.#emptied.happen();
  }

  get #isEmpty(): boolean {
    return this.#sessions.size + this.#acceptor.size + this.#waiting.size === 0;
  }

  /** Takes no new sessions and tunnels (GOAWAY), waits for the running ones, breaks what is left at the deadline. */
  async drain(deadlineMs: number): Promise<void> {
    this.#draining = true;
    this.#listener?.stop();
    for (const session of this.#sessions) session.drain();
    if (deadlineMs > 0) await this.#untilEmpty(deadlineMs);
    const error = hboneError("HBONE_DRAINING", "the proxy shuts down");
    for (const [socket, cancel] of this.#waiting) {
      cancel();
      this.#turnAway(socket, error);
    }
    this.#waiting.clear();
    this.#acceptor.close(error);
    for (const session of this.#sessions) session.fail(error);
    await this.#untilEmpty(LAST_WORDS_MS);
  }

  async #untilEmpty(deadlineMs: number): Promise<void> {
    if (!this.#isEmpty) await this.#emptied.within(this.#options.clock, deadlineMs);
  }
}
