import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { ByteStream, StreamOwner } from "#linux";
import { commonSlab } from "./buffers.ts";
import { Departure, discarded } from "./departure.ts";
import { H2_CODE, h2CodeOf, hboneError, lossError } from "./errors.ts";
import { FrameParser, type FrameSink } from "./frame-parser.ts";
import { FLAG, FRAME, goawayFrame, LARGEST_WINDOW, STREAM_WINDOW_BYTES } from "./frames.ts";
import { HpackDecoder, HpackEncoder, TABLE_BYTES, type HeaderList } from "./hpack.ts";
import { Intake } from "./intake.ts";
import { KeepAlive } from "./keep-alive.ts";
import type { HboneLimits } from "./limits.ts";
import { NuisanceGuard } from "./nuisance-guard.ts";
import { RecentStreams } from "./recent-streams.ts";
import { SessionWindow } from "./session-window.ts";
import { changeWindows, readSettings, sendPreface } from "./settings.ts";
import { Tunnel, type TunnelSession } from "./tunnel.ts";
import { SessionWriter } from "./writer.ts";

/** A smaller WINDOW_UPDATE is hardly worth its frame. */
const LEAST_INCREMENT = 64;

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
  /** The peer's first SETTINGS are in force. */
  onPeerSettings(): void;
  /** Exactly once: nothing goes through it any more. Undefined: it ended as it should. */
  onClosed(error: CodedError | undefined): void;
  /** Exactly once, after `onClosed`: its stream is closed, too, and what came on it is with the plain sockets. */
  onGone(): void;
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
  /** The peer has ours in force. */
  settingsAcknowledged = false;
  /** The highest stream that the peer opened (server) or we opened (client). */
  lastStreamId = 0;
  closed = false;
  readonly intake = new Intake();
  /** Of our header blocks. */
  readonly fields = new HpackEncoder();
  readonly #role: SessionRole;
  readonly #limits: HboneLimits;
  readonly #parser: FrameParser;
  readonly #decoder: HpackDecoder;
  readonly #keepAlive: KeepAlive;
  readonly window: SessionWindow;
  #stream: ByteStream | undefined;
  #departure: Departure | undefined;
  /** The tunnel of the current DATA frame. */
  #current: Tunnel | undefined;
  /** Late frames of streams that we reset are no error. */
  readonly resets = new RecentStreams();
  readonly nuisances: NuisanceGuard;
  #finishing = false;
  #reading = false; // in `onRead`
  #streamGone = false;

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
    this.window = new SessionWindow((increment) => {
      if (!this.closed) this.writer.control32(FRAME.WINDOW_UPDATE, 0, increment);
    });
    this.#keepAlive = new KeepAlive(this, limits);
    this.nuisances = new NuisanceGuard(clock, limits.nuisancePoints);
  }

  /** Begins: our settings go out. */
  start(stream: ByteStream): void {
    this.#stream = stream;
    this.#departure = new Departure(stream, this.clock, () => {
      this.#close(undefined);
      this.#streamGone = true;
      this.#checkGone();
    });
    sendPreface(this.writer, this.#role.kind, this.#limits);
    this.writer.attach(stream);
    stream.start(this, commonSlab.bytes);
    this.#keepAlive.start();
  }

  // From the stream.

  onRead(count: number): Uint8Array | undefined {
    if (this.closed) {
      this.#departure?.discard(count);
      return undefined;
    }
    this.#keepAlive.heard();
    this.#reading = true;
    this.#parse(this.intake.position, count);
    this.#reading = false;
    return this.closed ? discarded : this.intake.next(count);
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
    this.#close(this.#lossOf(cause), { keepsComplete: true });
    this.#departure?.leave();
  }

  #lossOf(cause: CodedError | undefined): CodedError | undefined {
    const refused = this.#role.kind === "client" && !this.settingsSeen;
    const isWhole = [...this.tunnels.values()].every(({ complete }) => complete);
    return isWhole && (this.#finishing || (!refused && cause === undefined)) ? undefined : lossError(refused, cause);
  }

  // Frames.

  onDataFrame(streamId: number, length: number): void {
    this.window.take(length);
    const tunnel = this.tunnels.get(streamId);
    this.#current = tunnel;
    if (tunnel === undefined) {
      this.#checkUsed(streamId, "DATA");
      const left = this.resets.take(streamId, length);
      if (left === undefined) throw hboneError("HBONE_STREAM_CLOSED", `DATA on the closed stream ${streamId}`);
      if (left < 0) throw hboneError("HBONE_FLOW_CONTROL", `the peer overran stream ${streamId}, which was reset`);
      return;
    }
    if (this.#role.kind === "client" && !tunnel.answered) {
      throw hboneError("HBONE_PROTOCOL", `DATA before the answer on stream ${streamId}`);
    }
    tunnel.window.left -= length;
    if (tunnel.window.left < 0) throw hboneError("HBONE_FLOW_CONTROL", `the peer overran stream ${streamId}`);
    if (tunnel.downlink.ended) this.failTunnel(tunnel, hboneError("HBONE_STREAM_CLOSED", "DATA after the end"));
  }

  onData(piece: FrameParser): void {
    const tunnel = this.#current;
    if (tunnel === undefined || tunnel.closed) this.window.credit(piece.count);
    else tunnel.receive(this.intake.slab, piece);
  }

  onPadding(_streamId: number, count: number): void {
    this.window.credit(count);
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
      if (!tunnel.downlink.ended) this.#role.onTunnelHeaders(tunnel, list, endStream);
      else this.failTunnel(tunnel, hboneError("HBONE_STREAM_CLOSED", "HEADERS after the end"));
      return;
    }
    if (this.resets.has(streamId)) return;
    this.#role.onRequest(streamId, list, endStream);
  }

  onReset(streamId: number, code: number): void {
    this.#checkUsed(streamId, "RST_STREAM");
    const tunnel = this.tunnels.get(streamId);
    if (tunnel === undefined) {
      if (!this.resets.forget(streamId)) this.nuisances.frame("RST_STREAM");
      return;
    }
    if (!tunnel.answered) this.nuisances.stream("RST_STREAM before the answer");
    tunnel.receiveReset(code);
  }

  onSettings(settings: readonly (readonly [number, number])[]): void {
    const first = !this.settingsSeen;
    if (!first) this.nuisances.frame("SETTINGS");
    const { writer } = this;
    const peer = readSettings(settings, this.#role.kind === "server" ? "client" : "server");
    if (peer.maxFrame !== undefined) writer.peerMaxFrame = peer.maxFrame;
    if (peer.maxStreams !== undefined) this.peerMaxStreams = Math.min(peer.maxStreams, this.#limits.streamsPerSession);
    if ((peer.headerTableBytes ?? TABLE_BYTES) < TABLE_BYTES) this.fields.close();
    if (peer.initialWindow !== undefined) changeWindows(this.tunnels.values(), writer, peer.initialWindow);
    this.settingsSeen = true;
    if (first) this.#role.onPeerSettings();
    writer.control({ type: FRAME.SETTINGS, flags: FLAG.ACK, streamId: 0, length: 0 });
  }

  onSettingsAck(): void {
    if (this.settingsAcknowledged) throw hboneError("HBONE_PROTOCOL", "SETTINGS are acknowledged that were not sent");
    this.settingsAcknowledged = true;
  }

  onPing(payload: Uint8Array, ack: boolean): void {
    this.nuisances.frame("PING");
    if (ack) {
      if (this.#keepAlive.isDrainPong(payload)) this.#role.onDrainPong();
      return;
    }
    const at = this.writer.control({ type: FRAME.PING, flags: FLAG.ACK, streamId: 0, length: 8 });
    this.writer.buffer.set(payload, at);
  }

  onGoaway(lastStreamId: number, code: number): void {
    this.nuisances.frame("GOAWAY");
    this.#role.onGoaway(lastStreamId, code);
  }

  onWindowUpdate(streamId: number, increment: number): void {
    if (increment < LEAST_INCREMENT) this.nuisances.frame("WINDOW_UPDATE");
    if (streamId === 0) {
      this.#enlargeSession(increment);
      return;
    }
    const tunnel = this.tunnels.get(streamId);
    if (tunnel === undefined) {
      this.#checkUsed(streamId, "WINDOW_UPDATE");
      if (increment === 0) throw hboneError("HBONE_PROTOCOL", `WINDOW_UPDATE of 0 on the closed stream ${streamId}`);
    } else if (increment === 0) {
      this.failTunnel(tunnel, hboneError("HBONE_PROTOCOL", "WINDOW_UPDATE of 0"));
    } else if (tunnel.uplink.window + increment > LARGEST_WINDOW) {
      this.failTunnel(tunnel, hboneError("HBONE_FLOW_CONTROL", "the peer's window overflows"));
    } else {
      tunnel.uplink.addWindow(increment);
    }
  }

  #enlargeSession(increment: number): void {
    if (increment === 0) throw hboneError("HBONE_PROTOCOL", "WINDOW_UPDATE of 0");
    this.writer.sendWindow += increment;
    if (this.writer.sendWindow > LARGEST_WINDOW) {
      throw hboneError("HBONE_FLOW_CONTROL", "the session's window overflows");
    }
    this.writer.windowOpened();
  }

  onIgnored(type: number): void {
    this.nuisances.frame(type === FRAME.DATA ? "empty DATA" : `type ${type}`);
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

  /** The peer broke a rule that concerns one stream alone (RFC 9113 §5.4.2). */
  failTunnel(tunnel: Tunnel, error: CodedError): void {
    tunnel.fail(error, h2CodeOf(error.code));
    this.nuisances.stream(error.message);
  }

  /** Refuses a stream that got no tunnel. */
  refuseStream(streamId: number, code: number): void {
    this.resets.add(streamId, STREAM_WINDOW_BYTES);
    this.writer.control32(FRAME.RST_STREAM, streamId, code);
    this.nuisances.stream("a request that is refused");
  }

  forget(tunnel: Tunnel, reset: boolean): void {
    this.tunnels.delete(tunnel.id);
    if (reset) this.resets.add(tunnel.id, tunnel.window.left);
    if (!this.closed) this.#role.onTunnelEnded();
    else this.#checkGone();
  }

  #checkGone(): void {
    if (this.#streamGone && this.tunnels.size === 0) this.#role.onGone();
  }

  /** A header block on a stream, as one frame. */
  sendHeaders(streamId: number, fields: readonly Uint8Array[], endStream: boolean): void {
    this.writer.headers(streamId, this.fields.block(fields), endStream);
  }

  sendGoaway(lastStreamId: number): void {
    this.writer.raw(goawayFrame(lastStreamId, H2_CODE.NO_ERROR));
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
      if (!this.closed) this.#departure?.begin();
    });
  }

  /** Ends the session because of `error`: every tunnel is reset, and the peer is told, if it still listens. */
  fail(error: CodedError): void {
    if (this.closed) {
      for (const tunnel of this.tunnels.values()) tunnel.sessionLost(error);
      return;
    }
    this.writer.finish(goawayFrame(this.#role.kind === "server" ? this.lastStreamId : 0, h2CodeOf(error.code)));
    this.#close(error);
    if (this.#stream?.error === undefined) this.#departure?.begin();
    else this.#departure?.leave();
  }

  /** `keepsComplete`: tunnels of which everything has come and gone stay until their plain socket has taken it. */
  #close(error: CodedError | undefined, { keepsComplete = false } = {}): void {
    if (this.closed) return;
    this.closed = true;
    this.#parser.stop();
    this.writer.stop();
    this.#keepAlive.stop();
    const gone = error ?? hboneError("HBONE_SESSION_LOST", "the session has ended");
    for (const tunnel of this.tunnels.values()) if (!keepsComplete || !tunnel.complete) tunnel.sessionLost(gone);
    this.window.close();
    if (!this.#reading) this.#stream?.replaceBuffer(discarded);
    this.intake.close();
    this.#role.onClosed(error);
  }
}
