import type { Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import type { StreamOwner, TcpSocket } from "#linux";
import { sharedBuffer, type Slab } from "./buffers.ts";
import { Downlink, type DownlinkHost } from "./downlink.ts";
import { H2_CODE, hboneError } from "./errors.ts";
import { FRAME } from "./frames.ts";
import type { FrameParser } from "./frame-parser.ts";
import type { SessionWindow } from "./session-window.ts";
import { TunnelWindow } from "./tunnel-window.ts";
import { Uplink, type UplinkHost } from "./uplink.ts";
import type { SessionWriter } from "./writer.ts";

/** How a tunnel (or a plain copy) ended. */
export interface TunnelResult {
  /** From the local plain socket into the tunnel. */
  readonly bytesSent: number;
  /** From the tunnel to the local plain socket. */
  readonly bytesReceived: number;
  /** Undefined when both directions ended as they should. */
  readonly error: CodedError | undefined;
}

/** What a tunnel asks of its plain socket. */
export type TunnelSocket = Pick<TcpSocket, "stream" | "close" | "reset">;

/** What whoever opened a tunnel holds on to. */
export interface TunnelHandle {
  /** Ends it now, with a reset of both sides; `onEnd` is called with `error`. Twice is harmless. */
  abort(error: CodedError): void;
  /** So far. */
  readonly bytes: { readonly sent: number; readonly received: number };
}

/** What a tunnel needs of its session. */
export interface TunnelSession {
  readonly writer: SessionWriter;
  readonly clock: Clock;
  readonly window: SessionWindow;
  /** The tunnel has ended. `reset`: RST_STREAM was sent, so that late frames of it are no error. */
  forget(tunnel: Tunnel, reset: boolean): void;
}

/**
 * One CONNECT stream and its plain socket. FIN and END_STREAM, and reset and RST_STREAM, are each other's pictures:
 *
 *     plain socket ── Uplink ──▶ session        plain socket ◀── Downlink ── session
 *
 * The tunnel owns the socket from `attach` on and closes it exactly once.
 */
export class Tunnel implements StreamOwner, UplinkHost, DownlinkHost, TunnelHandle {
  readonly id: number;
  readonly uplink: Uplink;
  readonly downlink: Downlink;
  readonly window: TunnelWindow;
  readonly writer: SessionWriter;
  readonly clock: Clock;
  closed = false;
  /** The final answer (to CONNECT) has been sent or received. */
  answered = false;
  /** Client side: gets the answer. */
  onAnswer: ((status: number, headers: ReadonlyMap<string, string>) => void) | undefined;
  /** Called once, when all is over. */
  onFinished: ((result: TunnelResult) => void) | undefined;
  readonly #session: TunnelSession;
  #socket: TunnelSocket | undefined;

  constructor(id: number, session: TunnelSession) {
    this.id = id;
    this.#session = session;
    this.writer = session.writer;
    this.clock = session.clock;
    this.uplink = new Uplink(id, session.writer.peerInitialWindow, this);
    this.downlink = new Downlink(this);
    this.window = new TunnelWindow(session.window, session.clock);
  }

  get bytes(): { readonly sent: number; readonly received: number } {
    return { sent: this.uplink.bytes, received: this.downlink.bytes };
  }

  /** The session has nothing more to do for it: both directions have ended there. */
  get complete(): boolean {
    return this.answered && this.downlink.ended && this.uplink.endSent;
  }

  /** Has a plain socket. */
  get attached(): boolean {
    return this.#socket !== undefined;
  }

  /** Ties the plain socket to the tunnel and begins to copy. */
  attach(socket: TunnelSocket): void {
    this.#socket = socket;
    const { stream } = socket;
    this.uplink.attach(stream);
    this.downlink.attach(stream);
    stream.start(this, sharedBuffer);
  }

  // From the plain socket.

  onRead(count: number): Uint8Array | undefined {
    return this.uplink.read(count);
  }

  onEnd(): void {
    this.uplink.end();
  }

  onWritten(): void {
    this.downlink.written();
  }

  onBroken(error: CodedError): void {
    this.fail(error, H2_CODE.CANCEL);
  }

  // From the session.

  receive(slab: Slab, piece: FrameParser): void {
    this.downlink.receive(slab, piece);
  }

  /** END_STREAM came. */
  receiveEnd(): void {
    this.downlink.end();
  }

  /** RST_STREAM came. NO_ERROR after the peer's end only means that it reads no more. */
  receiveReset(code: number): void {
    const graceful = code === H2_CODE.NO_ERROR && this.answered;
    if (graceful) {
      this.uplink.abandon();
      this.downlink.end();
      return;
    }
    const refused = code === H2_CODE.REFUSED_STREAM;
    const details = { h2Code: code };
    this.#close(
      refused
        ? hboneError("HBONE_STREAM_REFUSED", "the peer's proxy refused the tunnel", { details })
        : hboneError("HBONE_STREAM_RESET", `the tunnel was reset by the peer (code ${code})`, { details }),
      false,
    );
  }

  /** The session is gone; nothing more is sent on it. */
  sessionLost(error: CodedError): void {
    this.#close(error, false);
  }

  // From the two directions.

  onUplinkEnded(): void {
    this.#closeIfDone();
  }

  onDownlinkFinished(): void {
    if (this.uplink.endSent) this.#closeIfDone();
    else this.#socket?.stream.shutdown();
  }

  onDownlinkFailed(error: CodedError): void {
    this.fail(error, H2_CODE.CANCEL);
  }

  onDelivered(count: number): void {
    this.#session.window.credit(count);
    this.creditStream(count);
  }

  /** Gives the peer's window of this tunnel back, in batches. */
  creditStream(count: number): void {
    if (this.closed || this.downlink.ended) return;
    const increment = this.window.credit(count);
    if (increment > 0) this.writer.control32(FRAME.WINDOW_UPDATE, this.id, increment);
  }

  /** Ends the tunnel because of a failure here: the peer is told with RST_STREAM, the plain socket is reset. */
  fail(error: CodedError, h2Code: number): void {
    if (this.closed) return;
    this.writer.control32(FRAME.RST_STREAM, this.id, h2Code);
    this.#close(error, true);
  }

  abort(error: CodedError): void {
    this.fail(error, H2_CODE.CANCEL);
  }

  #closeIfDone(): void {
    if (this.uplink.endSent && this.downlink.finished) this.#close(undefined, false);
  }

  #close(error: CodedError | undefined, resetSent: boolean): void {
    if (this.closed) return;
    this.closed = true;
    if (error === undefined) this.#socket?.close();
    else this.#socket?.reset();
    this.uplink.drop();
    const undelivered = this.downlink.drop();
    this.window.close();
    if (undelivered > 0) this.#session.window.credit(undelivered);
    this.#session.forget(this, resetSent);
    const { sent, received } = this.bytes;
    this.onFinished?.({ bytesSent: sent, bytesReceived: received, error });
  }
}
