import type { CodedError } from "#base/errors";
import type { ByteStream } from "#linux";
import { giveBlock, SHARED_BYTES, takeBlock, type Piece } from "./buffers.ts";
import { hboneError } from "./errors.ts";
import {
  DEFAULT_MAX_FRAME,
  DEFAULT_WINDOW,
  FLAG,
  FRAME,
  HEADER_BYTES,
  putEndStream,
  putFrameHeader,
  putUint32,
} from "./frames.ts";
import { turn, type FlushableSession } from "./turn.ts";
import type { Uplink, UplinkWriter } from "./uplink.ts";

/** At most this many bytes are copied together into one write. */
const GATHER_BYTES = 512 * 1024;
/** The gather buffer begins with this size and shrinks back to it. */
const GATHER_START_BYTES = 16 * 1024;
/** Beyond this a peer makes us answer more than it reads. */
const GATHER_LIMIT_BYTES = 2 << 20;
/** Copies shorter than this are faster in a loop. */
const LOOP_COPY_BYTES = 48;

/**
 * The sending half of a session: gathers frames and the bytes of tunnels, and writes once per turn, one write at a time.
 * Bulk bytes leave straight from their read buffer, with the gathered frames and the frame header in its headroom.
 * The session's stream takes bytes at once (it encrypts them), so buffers are free again when a write returns.
 */
export class SessionWriter implements FlushableSession, UplinkWriter {
  queued = false;
  expectsMore = false;
  hasWaited = false;
  /** What the peer lets the session send. */
  sendWindow = DEFAULT_WINDOW;
  peerInitialWindow = DEFAULT_WINDOW;
  peerMaxFrame = DEFAULT_MAX_FRAME;
  #stream: ByteStream | undefined;
  #out = takeBlock(GATHER_START_BYTES);
  #count = 0;
  /** Where the last frame begins, when it is DATA of {@link #lastStreamId}. */
  #lastData = -1;
  #lastStreamId = 0;
  #ready: Uplink[] = [];
  #writing = false;
  #stopped = false;
  #onIdle: (() => void) | undefined;
  readonly #onFailure: (error: CodedError) => void;

  /** `onFailure` is called when the stream takes no more bytes, or when too much has gathered. */
  constructor(onFailure: (error: CodedError) => void) {
    this.#onFailure = onFailure;
  }

  /** The stream is there: what has gathered leaves with the next turn. */
  attach(stream: ByteStream): void {
    this.#stream = stream;
    turn.addSession(this);
  }

  /** Writes the last frames if no write is pending, then nothing any more. */
  finish(lastFrames: Uint8Array): void {
    if (!this.#writing && !this.#stopped && this.#count + lastFrames.length <= this.#out.length) {
      this.raw(lastFrames);
      this.#stream?.write(new Uint8Array(this.#out.buffer, 0, this.#count));
    }
    this.stop();
  }

  /** Nothing is written any more. */
  stop(): void {
    this.#stopped = true;
    this.#ready = [];
    this.#count = 0;
  }

  /** Calls `callback` once everything that has gathered is out. */
  whenIdle(callback: () => void): void {
    this.#onIdle = callback;
    if (!this.#writing && this.#count === 0 && this.#ready.length === 0) this.#becomeIdle();
  }

  /** Whether `count` bytes of a tunnel can be gathered now. */
  takes(count: number): boolean {
    return count <= this.sendWindow && this.#count + count + HEADER_BYTES <= GATHER_BYTES && !this.#stopped;
  }

  /** Gathers bytes of a tunnel. Only after `takes`. */
  data(streamId: number, bytes: Uint8Array, count: number): void {
    this.sendWindow -= count;
    let from = 0;
    while (from < count) {
      const length = Math.min(count - from, this.peerMaxFrame);
      const at = this.#room(HEADER_BYTES + length);
      putFrameHeader(this.#out, at, { length, type: FRAME.DATA, flags: 0, streamId });
      this.#copyIn(at + HEADER_BYTES, from === 0 ? bytes : bytes.subarray(from), length);
      this.#lastData = at;
      this.#lastStreamId = streamId;
      from += length;
    }
    this.#schedule();
  }

  /** Ends a tunnel's direction: with its last frame when that is still here, else with an empty one. */
  endStream(streamId: number): void {
    const at = this.#lastData;
    if (at >= 0 && this.#lastStreamId === streamId) putEndStream(this.#out, at);
    else this.control({ type: FRAME.DATA, flags: FLAG.END_STREAM, streamId, length: 0 });
  }

  /** Reserves a frame and writes its header; the result is where its content belongs in `buffer`. */
  control(frame: { type: number; flags: number; streamId: number; length: number }): number {
    const at = this.#room(HEADER_BYTES + frame.length);
    putFrameHeader(this.#out, at, frame);
    this.#schedule();
    return at + HEADER_BYTES;
  }

  /** A header block on a stream, as one frame. */
  headers(streamId: number, fields: readonly Uint8Array[], endStream: boolean): void {
    const length = fields.reduce((sum, field) => sum + field.length, 0);
    const flags = FLAG.END_HEADERS | (endStream ? FLAG.END_STREAM : 0);
    let at = this.control({ type: FRAME.HEADERS, flags, streamId, length });
    for (const field of fields) {
      this.#out.set(field, at);
      at += field.length;
    }
  }

  /** A frame whose content is one number (RST_STREAM, WINDOW_UPDATE). */
  control32(type: number, streamId: number, value: number): void {
    const at = this.control({ type, flags: 0, streamId, length: 4 });
    putUint32(this.#out, at, value);
  }

  /** Bytes as they are: the preface, a header block with its frame header. */
  raw(bytes: Uint8Array): void {
    const at = this.#room(bytes.length);
    this.#out.set(bytes, at);
    this.#schedule();
  }

  /** The gather buffer; it changes with every reservation. */
  get buffer(): Uint8Array {
    return this.#out;
  }

  /** A tunnel has bytes (or its end) to send that were not gathered at once. */
  ready(uplink: Uplink): void {
    if (this.#stopped) return;
    if (!uplink.ready) {
      uplink.ready = true;
      this.#ready.push(uplink);
    }
    this.#schedule();
  }

  /** The peer has enlarged the session's window. */
  windowOpened(): void {
    if (this.#ready.length > 0) this.#schedule();
  }

  /** The pending write is out. */
  written(): void {
    this.#writing = false;
    if (this.#stopped) return;
    if (this.#count > 0 || this.#ready.length > 0) this.#schedule();
    else this.#becomeIdle();
  }

  flush(): void {
    if (this.#writing || this.#stopped || this.#stream === undefined) return;
    const bulk = this.#gatherReady();
    if (bulk !== undefined && this.#sendBulk(bulk)) return;
    if (this.#count === 0) return;
    const count = this.#count;
    this.#count = 0;
    this.#lastData = -1;
    this.#write(new Uint8Array(this.#out.buffer, 0, count));
    if (this.#out.length > 4 * GATHER_START_BYTES && count < GATHER_START_BYTES) {
      giveBlock(this.#out);
      this.#out = takeBlock(GATHER_START_BYTES);
    }
  }

  /**
   * Goes once through the tunnels that wait: small remainders are gathered; the first with bulk bytes is returned, the
   * others keep their turn.
   */
  #gatherReady(): Uplink | undefined {
    const waiting = this.#ready;
    if (waiting.length === 0) return undefined;
    this.#ready = [];
    let bulk: Uplink | undefined;
    for (const uplink of waiting) {
      const fate = this.#gatherOne(uplink, bulk !== undefined);
      if (fate === "bulk") bulk = uplink;
      else if (fate === "keep") this.#ready.push(uplink);
      else uplink.ready = false;
    }
    return bulk;
  }

  #gatherOne(uplink: Uplink, haveBulk: boolean): "bulk" | "keep" | "done" {
    const piece = uplink.first;
    if (piece === undefined) {
      uplink.sendEnd();
      return "done";
    }
    let count = Math.min(piece.count, uplink.window, this.sendWindow);
    if (count <= 0) return uplink.window > 0 ? "keep" : "done";
    if (piece.start > 0 && count > SHARED_BYTES && count <= this.peerMaxFrame) return haveBulk ? "keep" : "bulk";
    count = Math.min(count, GATHER_BYTES - this.#count - HEADER_BYTES);
    if (count <= 0) return "keep";
    uplink.window -= count;
    this.data(uplink.id, piece.bytes.subarray(piece.offset), count);
    uplink.consumed(count);
    if (uplink.first !== undefined) return "keep";
    uplink.sendEnd();
    return "done";
  }

  /** Writes a tunnel's bulk bytes from where they are. False: what has gathered does not fit in front of them. */
  #sendBulk(uplink: Uplink): boolean {
    const piece = uplink.first;
    const count = Math.min(piece?.count ?? 0, uplink.window, this.sendWindow);
    if (piece === undefined || count <= 0 || HEADER_BYTES + this.#count > piece.offset) {
      this.#ready.unshift(uplink);
      return false;
    }
    const last = count === piece.count && uplink.second === undefined && uplink.ended;
    this.sendWindow -= count;
    uplink.window -= count;
    this.#write(this.#prepend(piece, count, { streamId: uplink.id, flags: last ? FLAG.END_STREAM : 0 }));
    if (this.#stopped) return true;
    if (last) uplink.endSent = true;
    uplink.consumed(count);
    uplink.ready = uplink.hasMore;
    if (uplink.ready) this.#ready.push(uplink);
    return true;
  }

  /** Puts what has gathered and a frame header into the room in front of a piece's first `count` bytes. */
  #prepend(piece: Piece, count: number, frame: { streamId: number; flags: number }): Uint8Array {
    const { bytes, offset } = piece;
    const start = offset - HEADER_BYTES - this.#count;
    if (this.#count > 0) bytes.set(new Uint8Array(this.#out.buffer, 0, this.#count), start);
    this.#count = 0;
    this.#lastData = -1;
    putFrameHeader(bytes, offset - HEADER_BYTES, { length: count, type: FRAME.DATA, ...frame });
    return bytes.subarray(start, offset + count);
  }

  #write(bytes: Uint8Array): void {
    const stream = this.#stream;
    if (stream === undefined) return;
    const outcome = stream.write(bytes);
    if (outcome === "pending") this.#writing = true;
    else if (outcome === "done") this.written();
    else this.#onFailure(stream.error ?? hboneError("HBONE_SESSION_LOST", "the session takes no more bytes"));
  }

  #room(count: number): number {
    this.#lastData = -1;
    const needed = this.#count + count;
    if (needed > this.#out.length) {
      if (needed > GATHER_LIMIT_BYTES) this.#tooMuch();
      const larger = takeBlock(needed);
      larger.set(new Uint8Array(this.#out.buffer, 0, this.#count));
      giveBlock(this.#out);
      this.#out = larger;
    }
    const at = this.#count;
    this.#count = needed;
    return at;
  }

  #tooMuch(): void {
    this.#count = 0;
    this.#onFailure(hboneError("HBONE_FLOOD", "the peer asks for more answers than it reads"));
  }

  #copyIn(at: number, bytes: Uint8Array, count: number): void {
    const out = this.#out;
    if (count < LOOP_COPY_BYTES) {
      for (let i = 0; i < count; i++) out[at + i] = bytes[i] ?? 0;
    } else {
      out.set(bytes.length === count ? bytes : bytes.subarray(0, count), at);
    }
  }

  #schedule(): void {
    if (!this.#writing && !this.#stopped) turn.addSession(this);
  }

  #becomeIdle(): void {
    const callback = this.#onIdle;
    this.#onIdle = undefined;
    callback?.();
  }
}
