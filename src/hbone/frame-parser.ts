import { hboneError } from "./errors.ts";
import { FLAG, FRAME, getUint32, HEADER_BYTES, MAX_FRAME_BYTES, PREFACE } from "./frames.ts";

/**
 * Who acts on frames. A call may throw; the parser then stops where it is. Facts are read from the parser: they are
 * valid during the call.
 */
export interface FrameSink {
  /** A DATA frame begins; `length` counts against the windows, padding included. */
  onDataFrame(streamId: number, length: number): void;
  /** A piece of a DATA frame's content: `bytes[offset .. offset + count]`. `whole`: the frame came in one piece. */
  onData(piece: FrameParser): void;
  /** Padding of the current DATA frame, `count` bytes. */
  onPadding(streamId: number, count: number): void;
  onDataEnd(streamId: number, endStream: boolean): void;
  /** A complete header block: `bytes[offset .. offset + count]`, `streamId`, `endStream`. */
  onHeaders(block: FrameParser): void;
  onReset(streamId: number, code: number): void;
  onSettings(settings: readonly (readonly [number, number])[]): void;
  onSettingsAck(): void;
  onPing(payload: Uint8Array, ack: boolean): void;
  onGoaway(lastStreamId: number, code: number): void;
  onWindowUpdate(streamId: number, increment: number): void;
  /** A frame that is allowed and means nothing to us; DATA without content that does not end its stream is one, too. */
  onIgnored(type: number): void;
}

type Stage = "preface" | "header" | "padLength" | "data" | "padding" | "control" | "skip";

/** The largest header block as it is on the wire, over all its frames. */
const MAX_BLOCK_BYTES = 64 * 1024;
/** The largest frame that is neither DATA nor part of a header block. */
const MAX_CONTROL_BYTES = 16 * 1024;
/** How many CONTINUATION frames one block may have. */
const MAX_CONTINUATIONS = 32;

/**
 * Takes HTTP/2 apart, strictly, in pieces of any size. DATA is handed on as it comes, without copying; other frames are
 * gathered when they come in pieces. Throws `HBONE_*` codes; nothing may be pushed after that.
 */
export class FrameParser {
  readonly #sink: FrameSink;
  #stage: Stage;
  #prefaceSeen = 0;
  #settingsSeen = false;
  readonly #header = new Uint8Array(HEADER_BYTES);
  #headerSeen = 0;
  #type = 0;
  #flags = 0;
  #left = 0;
  #padding = 0;
  #pieces = 0;
  #gathered = new Uint8Array(256);
  #gatheredCount = 0;
  /** A header block that goes on in CONTINUATION frames. */
  #block: { streamId: number; endStream: boolean; bytes: Uint8Array; count: number; frames: number } | undefined;
  #stopped = false;

  streamId = 0;
  endStream = false;
  bytes: Uint8Array = new Uint8Array(0);
  offset = 0;
  count = 0;
  whole = false;

  /** A server's parser expects the preface first. */
  constructor(sink: FrameSink, role: "client" | "server") {
    this.#sink = sink;
    this.#stage = role === "server" ? "preface" : "header";
  }

  /** The rest of what is being pushed is ignored, and all that is pushed later. */
  stop(): void {
    this.#stopped = true;
  }

  /** Takes `bytes[start .. end]`. Content handed to the sink lies in `bytes`. */
  push(bytes: Uint8Array, start: number, end: number): void {
    this.bytes = bytes;
    let at = start;
    while (at < end && !this.#stopped) {
      if (this.#stage === "header") at = this.#readHeader(bytes, at, end);
      else if (this.#stage === "data") at = this.#readData(at, end);
      else if (this.#stage === "control") at = this.#readControl(bytes, at, end);
      else at = this.#readRest(bytes, at, end);
    }
  }

  #readRest(bytes: Uint8Array, at: number, end: number): number {
    if (this.#stage === "preface") return this.#readPreface(bytes, at, end);
    if (this.#stage === "padLength") return this.#readPadLength(bytes, at);
    const count = Math.min(this.#left, end - at);
    this.#left -= count;
    if (this.#stage === "padding") this.#sink.onPadding(this.streamId, count);
    if (this.#left === 0) this.#endFrame();
    return at + count;
  }

  #readPreface(bytes: Uint8Array, from: number, end: number): number {
    let at = from;
    while (at < end && this.#prefaceSeen < PREFACE.length) {
      if (bytes[at] !== PREFACE[this.#prefaceSeen]) {
        throw hboneError("HBONE_PREFACE", "the peer did not begin with the HTTP/2 preface");
      }
      at++;
      this.#prefaceSeen++;
    }
    if (this.#prefaceSeen === PREFACE.length) this.#stage = "header";
    return at;
  }

  #readHeader(bytes: Uint8Array, from: number, end: number): number {
    if (this.#headerSeen === 0 && end - from >= HEADER_BYTES) {
      this.#beginFrame(bytes, from);
      return from + HEADER_BYTES;
    }
    let at = from;
    while (at < end && this.#headerSeen < HEADER_BYTES) this.#header[this.#headerSeen++] = bytes[at++] ?? 0;
    if (this.#headerSeen === HEADER_BYTES) {
      this.#headerSeen = 0;
      this.#beginFrame(this.#header, 0);
    }
    return at;
  }

  #beginFrame(bytes: Uint8Array, at: number): void {
    const length = ((bytes[at] ?? 0) << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
    const type = bytes[at + 3] ?? 0;
    this.#type = type;
    this.#flags = bytes[at + 4] ?? 0;
    this.streamId = getUint32(bytes, at + 5) & 0x7fff_ffff;
    this.#left = length;
    this.#pieces = 0;
    this.#checkOrder(type, length);
    if (type === FRAME.DATA) this.#beginData(length);
    else this.#beginControl(type, length);
  }

  #checkOrder(type: number, length: number): void {
    if (length > MAX_FRAME_BYTES) {
      throw hboneError(
        "HBONE_FRAME_SIZE",
        `a frame of type ${type} has ${length} bytes, ${MAX_FRAME_BYTES} are allowed`,
      );
    }
    if (!this.#settingsSeen && (type !== FRAME.SETTINGS || (this.#flags & FLAG.ACK) !== 0)) {
      throw hboneError("HBONE_PROTOCOL", `the first frame is of type ${type}, not SETTINGS`);
    }
    if (this.#block !== undefined && (type !== FRAME.CONTINUATION || this.streamId !== this.#block.streamId)) {
      throw hboneError("HBONE_PROTOCOL", `a header block is interrupted by a frame of type ${type}`);
    }
  }

  #beginData(length: number): void {
    if (this.streamId === 0) throw hboneError("HBONE_PROTOCOL", "DATA on stream 0");
    this.endStream = (this.#flags & FLAG.END_STREAM) !== 0;
    const padded = (this.#flags & FLAG.PADDED) !== 0;
    if (padded && length === 0) throw hboneError("HBONE_FRAME_SIZE", "a padded DATA frame is empty");
    this.#sink.onDataFrame(this.streamId, length);
    this.#padding = 0;
    this.#stage = padded ? "padLength" : "data";
    if (length === 0) this.#endEmpty();
  }

  #readPadLength(bytes: Uint8Array, at: number): number {
    this.#padding = bytes[at] ?? 0;
    this.#left--;
    if (this.#padding > this.#left) throw hboneError("HBONE_PROTOCOL", "the padding of a DATA frame exceeds the frame");
    this.#sink.onPadding(this.streamId, 1);
    this.#pieces = 1;
    this.#stage = this.#left === this.#padding ? "padding" : "data";
    if (this.#left === this.#padding && !this.endStream) this.#sink.onIgnored(FRAME.DATA);
    if (this.#left === 0) this.#endFrame();
    return at + 1;
  }

  #endEmpty(): void {
    if (!this.endStream) this.#sink.onIgnored(FRAME.DATA);
    this.#endFrame();
  }

  #readData(at: number, end: number): number {
    const content = this.#left - this.#padding;
    const count = Math.min(content, end - at);
    this.offset = at;
    this.count = count;
    this.whole = count === content && this.#pieces === 0;
    this.#pieces++;
    this.#left -= count;
    this.#sink.onData(this);
    if (this.#left === 0) this.#endFrame();
    else if (this.#left === this.#padding) this.#stage = "padding";
    return at + count;
  }

  #endFrame(): void {
    this.#stage = "header";
    if (this.#type === FRAME.DATA) this.#sink.onDataEnd(this.streamId, this.endStream);
  }

  #beginControl(type: number, length: number): void {
    if (type > FRAME.CONTINUATION) {
      this.#sink.onIgnored(type);
      this.#stage = length === 0 ? "header" : "skip";
      return;
    }
    if (type === FRAME.PUSH_PROMISE) throw hboneError("HBONE_PROTOCOL", "PUSH_PROMISE is not allowed here");
    const block = type === FRAME.HEADERS || type === FRAME.CONTINUATION;
    if (block && length > MAX_BLOCK_BYTES) {
      throw hboneError("HBONE_HEADERS_TOO_LARGE", `a header block has more than ${MAX_BLOCK_BYTES} bytes`);
    }
    if (!block && length > MAX_CONTROL_BYTES) {
      throw hboneError("HBONE_FRAME_SIZE", `a frame of type ${type} has ${length} bytes`);
    }
    this.#gatheredCount = 0;
    this.#stage = "control";
    if (length === 0) this.#control(this.bytes, 0, 0);
  }

  #readControl(bytes: Uint8Array, at: number, end: number): number {
    const count = Math.min(this.#left, end - at);
    this.#left -= count;
    if (this.#gatheredCount === 0 && this.#left === 0) {
      this.#control(bytes, at, count);
      return at + count;
    }
    this.#gathered = grown(this.#gathered, this.#gatheredCount, count + this.#left);
    this.#gathered.set(bytes.subarray(at, at + count), this.#gatheredCount);
    this.#gatheredCount += count;
    if (this.#left === 0) {
      this.#control(this.#gathered, 0, this.#gatheredCount);
      this.bytes = bytes;
    }
    return at + count;
  }

  /** A complete frame other than DATA. */
  #control(bytes: Uint8Array, at: number, length: number): void {
    this.#stage = "header";
    switch (this.#type) {
      case FRAME.HEADERS:
        this.#headers(bytes, at, length);
        return;
      case FRAME.CONTINUATION:
        this.#continuation(bytes, at, length);
        return;
      case FRAME.SETTINGS:
        this.#settings(bytes, at, length);
        return;
      case FRAME.PRIORITY:
        this.#expect(length === 5, "PRIORITY", length);
        this.#expectStream("PRIORITY");
        this.#checkDependency(bytes, at);
        this.#sink.onIgnored(this.#type);
        return;
      case FRAME.RST_STREAM:
        this.#expect(length === 4, "RST_STREAM", length);
        this.#expectStream("RST_STREAM");
        this.#sink.onReset(this.streamId, getUint32(bytes, at));
        return;
      case FRAME.WINDOW_UPDATE:
        this.#expect(length === 4, "WINDOW_UPDATE", length);
        this.#sink.onWindowUpdate(this.streamId, getUint32(bytes, at) & 0x7fff_ffff);
        return;
      default:
        this.#sessionFrame(bytes, at, length);
    }
  }

  #sessionFrame(bytes: Uint8Array, at: number, length: number): void {
    if (this.streamId !== 0) throw hboneError("HBONE_PROTOCOL", `a frame of type ${this.#type} on a stream`);
    if (this.#type === FRAME.PING) {
      this.#expect(length === 8, "PING", length);
      this.#sink.onPing(bytes.slice(at, at + 8), (this.#flags & FLAG.ACK) !== 0);
      return;
    }
    this.#expect(length >= 8, "GOAWAY", length);
    this.#sink.onGoaway(getUint32(bytes, at) & 0x7fff_ffff, getUint32(bytes, at + 4));
  }

  #settings(bytes: Uint8Array, at: number, length: number): void {
    if (this.streamId !== 0) throw hboneError("HBONE_PROTOCOL", "SETTINGS on a stream");
    if ((this.#flags & FLAG.ACK) !== 0) {
      this.#expect(length === 0, "SETTINGS with ACK", length);
      this.#sink.onSettingsAck();
      return;
    }
    this.#expect(length % 6 === 0, "SETTINGS", length);
    this.#settingsSeen = true;
    const settings: [number, number][] = [];
    for (let i = at; i < at + length; i += 6) {
      settings.push([((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0), getUint32(bytes, i + 2)]);
    }
    this.#sink.onSettings(settings);
  }

  #headers(bytes: Uint8Array, from: number, length: number): void {
    this.#expectStream("HEADERS");
    let at = from;
    let end = from + length;
    if ((this.#flags & FLAG.PADDED) !== 0) {
      this.#expect(length >= 1, "HEADERS", length);
      end -= bytes[at++] ?? 0;
    }
    const prioritised = (this.#flags & FLAG.PRIORITY) !== 0;
    if (prioritised) at += 5;
    if (at > end) throw hboneError("HBONE_PROTOCOL", "the padding of a HEADERS frame exceeds the frame");
    if (prioritised) this.#checkDependency(bytes, at - 5);
    const endStream = (this.#flags & FLAG.END_STREAM) !== 0;
    if ((this.#flags & FLAG.END_HEADERS) !== 0) {
      this.endStream = endStream;
      this.#emitBlock(bytes, at, end - at);
      return;
    }
    const first = bytes.slice(at, end);
    this.#block = { streamId: this.streamId, endStream, bytes: first, count: first.length, frames: 0 };
  }

  #continuation(bytes: Uint8Array, at: number, length: number): void {
    const block = this.#block;
    if (block === undefined) throw hboneError("HBONE_PROTOCOL", "CONTINUATION without a header block");
    block.frames++;
    if (block.count + length > MAX_BLOCK_BYTES || block.frames > MAX_CONTINUATIONS) {
      throw hboneError(
        "HBONE_HEADERS_TOO_LARGE",
        `a header block has more than ${MAX_BLOCK_BYTES} bytes or too many frames`,
      );
    }
    block.bytes = grown(block.bytes, block.count, length);
    block.bytes.set(bytes.subarray(at, at + length), block.count);
    block.count += length;
    if ((this.#flags & FLAG.END_HEADERS) === 0) return;
    this.#block = undefined;
    this.endStream = block.endStream;
    const back = this.bytes;
    this.#emitBlock(block.bytes, 0, block.count);
    this.bytes = back;
  }

  #emitBlock(bytes: Uint8Array, offset: number, count: number): void {
    this.bytes = bytes;
    this.offset = offset;
    this.count = count;
    this.#sink.onHeaders(this);
  }

  /** Priorities mean nothing any more (RFC 9113 §5.3.2), but a stream that depends on itself never was allowed. */
  #checkDependency(bytes: Uint8Array, at: number): void {
    if ((getUint32(bytes, at) & 0x7fff_ffff) === this.streamId) {
      throw hboneError("HBONE_PROTOCOL", `stream ${this.streamId} depends on itself`);
    }
  }

  #expect(right: boolean, frame: string, length: number): void {
    if (!right) throw hboneError("HBONE_FRAME_SIZE", `a ${frame} frame has ${length} bytes`);
  }

  #expectStream(frame: string): void {
    if (this.streamId === 0) throw hboneError("HBONE_PROTOCOL", `${frame} on stream 0`);
  }
}

/** `buffer`, or a larger copy of its first `used` bytes, with room for `more`. */
function grown(buffer: Uint8Array<ArrayBuffer>, used: number, more: number): Uint8Array<ArrayBuffer>;
function grown(buffer: Uint8Array, used: number, more: number): Uint8Array;
function grown(buffer: Uint8Array, used: number, more: number): Uint8Array {
  if (used + more <= buffer.length) return buffer;
  const larger = new Uint8Array(Math.max(buffer.length * 2, used + more));
  larger.set(buffer.subarray(0, used));
  return larger;
}
