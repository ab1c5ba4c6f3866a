import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { ByteStream, StreamOwner } from "#linux";
import { commonSlab, SLAB_BYTES } from "./buffers.ts";
import { H2_CODE, h2CodeOf, hboneError } from "./errors.ts";
import { FrameParser, type FrameSink } from "./frame-parser.ts";
import {
  FLAG,
  FRAME,
  HEADER_BYTES,
  LARGEST_WINDOW,
  putFrameHeader,
  putUint32,
  SESSION_CREDIT_BYTES,
  SESSION_WINDOW_BYTES,
} from "./frames.ts";
import { HpackDecoder, TABLE_BYTES, type HeaderList } from "./hpack.ts";
import { Intake } from "./intake.ts";
import { KeepAlive } from "./keep-alive.ts";
import type { HboneLimits } from "./limits.ts";
import { NuisanceGuard } from "./nuisance-guard.ts";
import { RecentStreams } from "./recent-streams.ts";
import { readSettings, sendPreface } from "./settings.ts";
import { Tunnel, type TunnelSession } from "./tunnel.ts";
import { SessionWriter } from "./writer.ts";

/** How long a closed session waits for the peer's close. */
const LINGER_MS = 1000;

/** What the two roles make of a session's events. */
export interface SessionRole {
  readonly kind: "client" | "server";
  /** A header block that belongs to no open tunnel (server: a request). */
  onRequest(streamId: number, list: HeaderList, endStream: boolean): void;
  /** A header block on an open tunnel. */
  onTunnelHeaders(tunnel: Tunnel, list: HeaderList, endStream: boolean): void;
  /** The peer takes no new tunnels; those above `lastStreamId` were not looked at. */
  onGoaway(lastStreamId: number, code: number): void;
  /** A tunnel has ended. */
  onTunnelEnded(): void;
  /** Our drain ping was answered. */
  onDrainPong(): void;
  /** Exactly once. Undefined: it ended as it should. */
  onClosed(error: CodedError | undefined): void;
}

/** What a session is made of. */
export interface SessionOptions {
  readonly role: SessionRole;
  readonly clock: Clock;
  readonly limits: HboneLimits;
}

/**
 * One HTTP/2 session over one TLS session, client or server: frames in, tunnels, windows, settings, pings, GOAWAY.
 * It owns its stream. Everything that a peer does wrong ends the session, with GOAWAY and a code of its own.
 */
export class Session implements StreamOwner, FrameSink, TunnelSession {
  readonly clock: Clock;
  readonly writer: SessionWriter;
  readonly tunnels = new Map<number, Tunnel>();
  /** How many tunnels the peer lets us open. */
  peerMaxStreams: number;
  settingsSeen = false;
  /** The highest stream that the peer opened (server) or we opened (client). */
  lastStreamId = 0;
  closed = false;
  readonly intake = new Intake();
  /** The peer lowered its header table: our next header block begins with an update to 0. */
  tableUpdateDue = false;
  readonly #role: SessionRole;
  readonly #limits: HboneLimits;
  readonly #parser: FrameParser;
  readonly #decoder: HpackDecoder;
  readonly #keepAlive: KeepAlive;
  #stream: ByteStream | undefined;
  #receiveWindow = SESSION_WINDOW_BYTES;
  #used = 0;
  /** The tunnel of the current DATA frame. */
  #current: Tunnel | undefined;
  /** Late frames of streams that we reset are no error. */
  readonly resets = new RecentStreams();
  readonly #nuisances: NuisanceGuard;
  #finishing = false;
  #cancelLinger: (() => void) | undefined;

  constructor({ role, clock, limits }: SessionOptions) {
    this.clock = clock;
    this.#role = role;
    this.#limits = limits;
    this.peerMaxStreams = limits.streamsPerSession;
    this.#parser = new FrameParser(this, role.kind);
    this.#decoder = new HpackDecoder(role.kind === "server" ? limits.serverHeaderBytes : limits.clientHeaderBytes);
    this.writer = new SessionWriter((error) => {
      this.fail(error);
    });
    this.#keepAlive = new KeepAlive(this, limits);
    this.#nuisances = new NuisanceGuard(clock);
  }

  /** Begins: our settings go out, and what the peer sent already (`early`) is taken. */
  start(stream: ByteStream, early: Uint8Array): void {
    this.#stream = stream;
    sendPreface(this.writer, this.#role.kind, this.#limits);
    this.writer.attach(stream);
    stream.start(this, commonSlab.bytes);
    for (let at = 0; at < early.length && !this.closed; at += SLAB_BYTES) {
      this.intake.takeAside(early.subarray(at), (count) => {
        this.#parse(0, count);
      });
    }
    this.#keepAlive.start();
  }

  // From the stream.

  onRead(count: number): Uint8Array | undefined {
    this.#keepAlive.heard();
    this.#parse(this.intake.position, count);
    return this.closed ? undefined : this.intake.next(count);
  }

  #parse(start: number, count: number): void {
    try {
      this.#parser.push(this.intake.slab.bytes, start, start + count);
    } catch (error) {
      if (!(error instanceof CodedError)) throw error;
      this.fail(error);
    }
  }

  /** From the keep-alive, when nothing comes. */
  becomeQuiet(): void {
    const buffer = this.intake.quiet();
    if (buffer !== undefined) this.#stream?.replaceBuffer(buffer);
  }

  onEnd(): void {
    this.#lost(undefined);
  }

  onWritten(): void {
    this.writer.written();
  }

  onBroken(error: CodedError): void {
    this.#lost(error);
  }

  #lost(cause: CodedError | undefined): void {
    if (this.#finishing && this.tunnels.size === 0) {
      this.#close(undefined);
      return;
    }
    const why = cause === undefined ? "the peer closed it" : cause.message;
    const refused = this.#role.kind === "client" && !this.settingsSeen;
    const error = refused
      ? hboneError("HBONE_SESSION_REFUSED", `the peer closed the session at once: ${why}`, { cause })
      : hboneError("HBONE_SESSION_LOST", `the session ended: ${why}`, { cause });
    this.#close(this.tunnels.size === 0 && !refused && cause === undefined ? undefined : error);
  }

  // Frames.

  onDataFrame(streamId: number, length: number): void {
    this.#receiveWindow -= length;
    if (this.#receiveWindow < 0) throw hboneError("HBONE_FLOW_CONTROL", "the peer overran the session's window");
    const tunnel = this.tunnels.get(streamId);
    this.#current = tunnel;
    if (tunnel === undefined) {
      this.#checkUsed(streamId, "DATA");
      if (!this.resets.has(streamId)) throw hboneError("HBONE_STREAM_CLOSED", `DATA on the closed stream ${streamId}`);
      return;
    }
    if (tunnel.downlink.ended) throw hboneError("HBONE_STREAM_CLOSED", `DATA after the end of stream ${streamId}`);
    if (this.#role.kind === "client" && !tunnel.answered) {
      throw hboneError("HBONE_PROTOCOL", `DATA before the answer on stream ${streamId}`);
    }
    tunnel.receiveWindow -= length;
    if (tunnel.receiveWindow < 0) throw hboneError("HBONE_FLOW_CONTROL", `the peer overran stream ${streamId}`);
    if (length === 0 && !this.#parser.endStream) this.#nuisances.count("empty DATA");
  }

  onData(piece: FrameParser): void {
    const tunnel = this.#current;
    if (tunnel === undefined || tunnel.closed) this.credit(piece.count);
    else tunnel.receive(this.intake.slab, piece);
  }

  onPadding(_streamId: number, count: number): void {
    this.credit(count);
    this.#current?.creditStream(count);
  }

  onDataEnd(_streamId: number, endStream: boolean): void {
    const tunnel = this.#current;
    this.#current = undefined;
    if (endStream && tunnel !== undefined && !tunnel.closed) tunnel.receiveEnd();
  }

  onHeaders(block: FrameParser): void {
    const { streamId, endStream } = block;
    const list = this.#decoder.decode(block.bytes, block.offset, block.offset + block.count);
    const tunnel = this.tunnels.get(streamId);
    if (tunnel !== undefined) {
      if (tunnel.downlink.ended) throw hboneError("HBONE_STREAM_CLOSED", `HEADERS after the end of stream ${streamId}`);
      this.#role.onTunnelHeaders(tunnel, list, endStream);
      return;
    }
    if (this.resets.has(streamId)) return;
    this.#role.onRequest(streamId, list, endStream);
  }

  onReset(streamId: number, code: number): void {
    this.#checkUsed(streamId, "RST_STREAM");
    const tunnel = this.tunnels.get(streamId);
    const early = tunnel === undefined ? !this.resets.has(streamId) : !tunnel.answered;
    if (early) this.#nuisances.count("RST_STREAM");
    tunnel?.receiveReset(code);
  }

  onSettings(settings: readonly (readonly [number, number])[]): void {
    if (this.settingsSeen) this.#nuisances.count("SETTINGS");
    const { writer } = this;
    const peer = readSettings(settings);
    if (peer.maxFrame !== undefined) writer.peerMaxFrame = peer.maxFrame;
    if (peer.maxStreams !== undefined) this.peerMaxStreams = Math.min(peer.maxStreams, this.#limits.streamsPerSession);
    if ((peer.headerTableBytes ?? TABLE_BYTES) < TABLE_BYTES) this.tableUpdateDue = true;
    if (peer.initialWindow !== undefined) {
      const change = peer.initialWindow - writer.peerInitialWindow;
      writer.peerInitialWindow = peer.initialWindow;
      for (const tunnel of this.tunnels.values()) this.#enlarge(tunnel, change);
    }
    this.settingsSeen = true;
    writer.control({ type: FRAME.SETTINGS, flags: FLAG.ACK, streamId: 0, length: 0 });
  }

  #enlarge(tunnel: Tunnel, by: number): void {
    if (tunnel.uplink.window + by > LARGEST_WINDOW) {
      throw hboneError("HBONE_FLOW_CONTROL", `the peer's window of stream ${tunnel.id} is too large`);
    }
    tunnel.uplink.addWindow(by);
  }

  onSettingsAck(): void {}
  onPing(payload: Uint8Array, ack: boolean): void {
    if (ack) {
      if (this.#keepAlive.isDrainPong(payload)) this.#role.onDrainPong();
      return;
    }
    this.#nuisances.count("PING");
    const at = this.writer.control({ type: FRAME.PING, flags: FLAG.ACK, streamId: 0, length: 8 });
    this.writer.buffer.set(payload, at);
  }

  onGoaway(lastStreamId: number, code: number): void {
    this.#role.onGoaway(lastStreamId, code);
  }

  onWindowUpdate(streamId: number, increment: number): void {
    if (increment === 0) throw hboneError("HBONE_PROTOCOL", `WINDOW_UPDATE of 0 on stream ${streamId}`);
    if (streamId === 0) {
      this.writer.sendWindow += increment;
      if (this.writer.sendWindow > LARGEST_WINDOW)
        throw hboneError("HBONE_FLOW_CONTROL", "the session's window overflows");
      this.writer.windowOpened();
      return;
    }
    const tunnel = this.tunnels.get(streamId);
    if (tunnel === undefined) this.#checkUsed(streamId, "WINDOW_UPDATE");
    else this.#enlarge(tunnel, increment);
  }

  onIgnored(type: number): void {
    this.#nuisances.count(`type ${type}`);
  }

  /** A stream that nobody has opened yet must not be used. */
  #checkUsed(streamId: number, frame: string): void {
    if (streamId > this.lastStreamId || streamId % 2 === 0) {
      throw hboneError("HBONE_PROTOCOL", `${frame} on stream ${streamId}, which is not open`);
    }
  }

  // For tunnels and roles.

  /** Makes a tunnel for a stream that was just opened, by us or by the peer. */
  addTunnel(streamId: number): Tunnel {
    const tunnel = new Tunnel(streamId, this);
    this.tunnels.set(streamId, tunnel);
    this.lastStreamId = Math.max(this.lastStreamId, streamId);
    return tunnel;
  }

  credit(count: number): void {
    this.#used += count;
    if (this.#used < SESSION_CREDIT_BYTES || this.closed) return;
    this.#receiveWindow += this.#used;
    this.writer.control32(FRAME.WINDOW_UPDATE, 0, this.#used);
    this.#used = 0;
  }

  forget(tunnel: Tunnel, reset: boolean): void {
    this.tunnels.delete(tunnel.id);
    if (reset) this.resets.add(tunnel.id);
    if (!this.closed) this.#role.onTunnelEnded();
  }

  /** A header block on a stream, as one frame. */
  sendHeaders(streamId: number, fields: readonly Uint8Array[], endStream: boolean): void {
    let length = this.tableUpdateDue ? 1 : 0;
    for (const field of fields) length += field.length;
    const flags = FLAG.END_HEADERS | (endStream ? FLAG.END_STREAM : 0);
    let at = this.writer.control({ type: FRAME.HEADERS, flags, streamId, length });
    if (this.tableUpdateDue) this.writer.buffer[at++] = 0x20;
    this.tableUpdateDue = false;
    for (const field of fields) {
      this.writer.buffer.set(field, at);
      at += field.length;
    }
  }

  sendGoaway(lastStreamId: number): void {
    const at = this.writer.control({ type: FRAME.GOAWAY, flags: 0, streamId: 0, length: 8 });
    putUint32(this.writer.buffer, at, lastStreamId);
    putUint32(this.writer.buffer, at + 4, H2_CODE.NO_ERROR);
  }

  /** A ping whose answer is reported to the role: everything that the peer sent before it has come by then. */
  sendDrainPing(): void {
    this.#keepAlive.sendDrainPing();
  }

  /** Ends a session without tunnels: what has gathered still goes out. */
  finish(): void {
    if (this.#finishing || this.closed) return;
    this.#finishing = true;
    this.writer.whenIdle(() => {
      if (this.closed) return;
      this.#stream?.shutdown();
      this.#cancelLinger = this.clock.after(LINGER_MS, () => {
        this.#close(undefined);
      });
    });
  }

  /** Ends the session because of `error`: the peer is told, every tunnel is reset. */
  fail(error: CodedError): void {
    if (this.closed) return;
    const last = new Uint8Array(HEADER_BYTES + 8);
    putFrameHeader(last, 0, { length: 8, type: FRAME.GOAWAY, flags: 0, streamId: 0 });
    putUint32(last, HEADER_BYTES, this.#role.kind === "server" ? this.lastStreamId : 0);
    putUint32(last, HEADER_BYTES + 4, h2CodeOf(error.code));
    this.writer.finish(last);
    this.#close(error);
  }

  #close(error: CodedError | undefined): void {
    if (this.closed) return;
    this.closed = true;
    this.#parser.stop();
    this.writer.stop();
    this.#keepAlive.stop();
    this.#cancelLinger?.();
    this.#stream?.close();
    const gone = error ?? hboneError("HBONE_SESSION_LOST", "the session has ended");
    for (const tunnel of this.tunnels.values()) tunnel.sessionLost(gone);
    this.intake.close();
    this.#role.onClosed(error);
  }
}
