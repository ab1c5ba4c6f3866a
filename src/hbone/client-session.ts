import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { Random } from "#base/random";
import type { SpiffeId } from "#model/spiffe-id";
import { H2_CODE, hboneError } from "./errors.ts";
import { LARGEST_WINDOW } from "./frames.ts";
import { readResponseHead } from "./heads.ts";
import { encodeField, type HeaderList } from "./hpack.ts";
import type { HboneLimits } from "./limits.ts";
import type { TunnelRequest } from "./open-request.ts";
import { peerRevoked } from "./revocation.ts";
import { Session, type SessionRole } from "./session.ts";
import type { SecureStream } from "./tls.ts";
import type { Tunnel, TunnelHandle, TunnelResult } from "./tunnel.ts";

/** What a client's session is made of. */
export interface ClientSessionOptions {
  readonly secure: SecureStream;
  readonly source: SpiffeId;
  readonly clock: Clock;
  readonly random: Random;
  readonly limits: HboneLimits;
  /** How many tunnels the peer takes on other sessions; it says so on this one only after its beginning. */
  readonly peerStreams?: number | undefined;
  /** It closed. */
  readonly onChanged: () => void;
}

/** A tunnel as its opener sees it. */
export interface ClientTunnel extends TunnelHandle {
  /** It failed before the peer answered and before a byte of the plain socket was read: it may be tried again. */
  readonly retriable: boolean;
  forbidRetry(): void;
}

/** A session that was unused for this long may be dead without our knowing: nothing is sent on it before the answer. */
const DOUBTFUL_AFTER_MS = 2000;
/** Stream numbers do not wrap. */
const LAST_STREAM = LARGEST_WINDOW - 1000;
/** A header block larger than every peer's frame is nothing that we make. */
const MOST_HEADER_BYTES = 16_000;

/** One session to a peer's proxy. */
export class ClientSession implements SessionRole {
  readonly kind = "client";
  readonly source: SpiffeId;
  readonly #options: ClientSessionOptions;
  readonly #session: Session;
  #nextStreamId = 1;
  #retired = false;
  #lastUsedMs: number;
  /** Tunnels that wait with their bytes until the peer has said how many it takes. */
  #held: { readonly opened: OpenedTunnel; readonly request: TunnelRequest }[] = [];

  constructor(options: ClientSessionOptions) {
    this.#options = options;
    this.source = options.source;
    const { clock, limits } = options;
    this.#session = new Session({ role: this, clock, limits });
    this.#session.peerMaxStreams = options.peerStreams ?? limits.streamsPerSession;
    this.#lastUsedMs = clock.monotonic();
  }

  start(): void {
    const { stream, watch } = this.#options.secure;
    if (watch !== undefined) watch.onRevoked = () => this.#session.fail(peerRevoked());
    this.#session.start(stream);
  }

  get closed(): boolean {
    return this.#session.closed;
  }

  /** How many more tunnels it takes. */
  get room(): number {
    const { closed, tunnels, peerMaxStreams } = this.#session;
    return this.#retired || closed ? 0 : Math.max(0, peerMaxStreams - tunnels.size);
  }

  /** Whether it takes another tunnel. */
  get hasRoom(): boolean {
    return this.room > 0;
  }

  /** How many tunnels the peer takes on it; undefined until it has said so. */
  get peerStreams(): number | undefined {
    return this.#session.settingsSeen ? this.#session.peerMaxStreams : undefined;
  }

  /** How many tunnels it carries. */
  get tunnels(): number {
    return this.#session.tunnels.size;
  }

  /** Whether it has had no tunnel since `time` (of the monotonic clock). */
  idleSince(time: number): boolean {
    return this.#session.tunnels.size === 0 && this.#lastUsedMs <= time;
  }

  /** Opens a tunnel; `onEnd` is called once, never from inside. */
  open(request: TunnelRequest, onEnd: (result: TunnelResult) => void): ClientTunnel {
    const { clock } = this.#options;
    const now = clock.monotonic();
    const idle = this.#session.tunnels.size === 0;
    const doubtful = idle && this.#session.settingsSeen && now - this.#lastUsedMs > DOUBTFUL_AFTER_MS;
    this.#lastUsedMs = now;
    const streamId = this.#nextStreamId;
    this.#nextStreamId += 2;
    if (streamId > LAST_STREAM) this.#retired = true;
    const tunnel = this.#session.addTunnel(streamId);
    // Before its settings the peer may take fewer tunnels than we think: one it takes in any case.
    const early = !this.#session.settingsSeen && streamId > 1;
    const opened = new OpenedTunnel(tunnel, doubtful || early);
    tunnel.onFinished = (result) => {
      if (result.error !== undefined && !opened.retriable) request.socket.reset();
      onEnd(result);
    };
    tunnel.onAnswer = (status, headers) => {
      if (status !== 200) return;
      opened.attach(request);
      tunnel.onAnswer = undefined;
      tunnel.onFinished = onEnd; // the socket is the tunnel's, and the request of no use any more
      request.onOpen?.({ peer: this.#options.secure.peer, responseBaggage: headers.get("baggage") });
    };
    const fields = this.#fieldsOf(request);
    if (fields === undefined) {
      setImmediate(() => {
        tunnel.sessionLost(hboneError("HBONE_HEADERS_TOO_LARGE", "the header of the tunnel is too large to send"));
      });
      return opened;
    }
    this.#session.sendHeaders(streamId, fields, false);
    if (early) this.#held.push({ opened, request });
    else if (!doubtful) opened.attach(request);
    this.#session.writer.expectsMore = true; // the first bytes travel with the request when they are there
    return opened;
  }

  #fieldsOf({ authority, headers }: TunnelRequest): readonly Uint8Array[] | undefined {
    const { random } = this.#options;
    const { baggage, forwarded, network } = headers;
    const traceparent = headers.traceparent ?? `00-${random.hex(16)}-${random.hex(8)}-00`;
    const values = [authority, baggage, forwarded, traceparent, network ?? ""];
    if (values.reduce((sum, { length }) => sum + length, 0) > MOST_HEADER_BYTES) return undefined;
    const { fields } = this.#session;
    return [
      fields.shared(":method", "CONNECT"),
      fields.shared(":authority", authority),
      fields.shared("baggage", baggage),
      encodeField("forwarded", forwarded),
      encodeField("traceparent", traceparent),
      ...(network === undefined ? [] : [fields.shared("x-forwarded-network", network)]),
    ];
  }

  /** No new tunnels; closes with its last. */
  retire(): void {
    this.#retired = true;
    if (this.#session.tunnels.size === 0) this.#finish();
  }

  #finish(): void {
    if (this.#session.closed) return;
    this.#session.sendGoaway(0);
    this.#session.finish();
  }

  fail(error: CodedError): void {
    this.#session.fail(error);
  }

  onTunnelHeaders(tunnel: Tunnel, list: HeaderList, endStream: boolean): void {
    if (tunnel.answered) {
      // RFC 9113 §8.5: on a connected stream there is DATA and nothing else.
      this.#session.failTunnel(tunnel, hboneError("HBONE_MALFORMED", "HEADERS on a tunnel"));
      return;
    }
    const head = readResponseHead(list);
    if (head instanceof CodedError) {
      tunnel.fail(head, H2_CODE.PROTOCOL_ERROR);
      return;
    }
    const { status, headers } = head;
    if (status < 200 && !endStream) {
      this.#session.nuisances.frame("interim answer");
      return;
    }
    tunnel.answered = true;
    this.#session.nuisances.useful();
    if (status === 200) {
      tunnel.onAnswer?.(status, headers);
      if (endStream && !tunnel.closed) tunnel.receiveEnd();
      return;
    }
    const error = hboneError("HBONE_PEER_STATUS", `the peer's proxy answered ${status}`, { details: { status } });
    tunnel.fail(error, H2_CODE.CANCEL);
  }

  /** The server may send on streams that we have opened, nothing else. */
  onRequest(streamId: number): void {
    if (streamId % 2 === 0 || streamId >= this.#nextStreamId) {
      throw hboneError("HBONE_PROTOCOL", `HEADERS on stream ${streamId}, which is not open`);
    }
  }

  onGoaway(lastStreamId: number, code: number): void {
    this.#retired = true;
    const details = { h2Code: code };
    const error =
      code === H2_CODE.NO_ERROR
        ? hboneError("HBONE_STREAM_REFUSED", "the peer's proxy shuts down", { details })
        : hboneError("HBONE_PEER_ERROR", `the peer ended the session (code ${code})`, { details });
    for (const tunnel of this.#session.tunnels.values()) if (tunnel.id > lastStreamId) tunnel.sessionLost(error);
    if (code !== H2_CODE.NO_ERROR) this.#session.fail(error);
    else if (this.#session.tunnels.size === 0) this.#session.finish();
  }

  onTunnelEnded(): void {
    this.#lastUsedMs = this.#options.clock.monotonic();
    if (this.#retired && this.#session.tunnels.size === 0) this.#finish();
  }

  onDrainPong(): void {}

  /** Those that the peer takes go on; what is beyond its limit waits for its answer, and may be tried elsewhere. */
  onPeerSettings(): void {
    const room = this.#session.peerMaxStreams - (this.#session.tunnels.size - this.#held.length);
    for (const { opened, request } of this.#held.slice(0, Math.max(room, 0))) opened.attach(request);
    this.#held = [];
  }

  onClosed(): void {
    this.#options.secure.watch?.leave();
    this.#held = [];
  }

  onGone(): void {
    this.#options.onChanged();
  }
}

class OpenedTunnel implements ClientTunnel {
  readonly #tunnel: Tunnel;
  #mayRetry: boolean;

  constructor(tunnel: Tunnel, mayRetry: boolean) {
    this.#tunnel = tunnel;
    this.#mayRetry = mayRetry;
  }

  get bytes(): { readonly sent: number; readonly received: number } {
    return this.#tunnel.bytes;
  }

  get retriable(): boolean {
    return this.#mayRetry && !this.#tunnel.answered;
  }

  forbidRetry(): void {
    this.#mayRetry = false;
  }

  attach(request: TunnelRequest): void {
    if (this.#tunnel.attached || this.#tunnel.closed) return;
    this.#mayRetry = false;
    this.#tunnel.attach(request.socket);
  }

  abort(error: CodedError): void {
    this.#tunnel.abort(error);
  }
}
