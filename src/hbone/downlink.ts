import type { CodedError } from "#base/errors";
import type { ByteStream } from "#linux";
import { commonSlab, releaseSlab, takeLoose, type Slab } from "./buffers.ts";
import { hboneError } from "./errors.ts";
import type { FrameParser } from "./frame-parser.ts";
import { turn, type Flushable } from "./turn.ts";

/** A frame up to this size that came whole is written at once. */
const INLINE_BYTES = 4096;
/** From so many slabs on that only stalled sockets hold, bytes for stalled sockets are copied out of the slabs. */
const MOST_PINNED_SLABS = 16;

const NONE: readonly Slab[] = [];

/** What a downlink needs of its tunnel. */
export interface DownlinkHost {
  /** `count` bytes are with the kernel: the peer may send as many again. */
  onDelivered(count: number): void;
  /** The last byte is with the kernel, and the peer has ended. */
  onDownlinkFinished(): void;
  /** The plain socket takes no more. */
  onDownlinkFailed(error: CodedError): void;
}

/**
 * One tunnel's direction from the session to the plain socket. Bytes stay in the slab that the session read them into
 * until the socket has taken them; one write at a time, once per turn. While the socket takes nothing, the peer's window
 * bounds what gathers here, and the copying of small parts bounds the slabs that they hold.
 */
export class Downlink implements Flushable {
  queued = false;
  /** The peer has ended its direction. */
  ended = false;
  /** All is with the kernel. */
  finished = false;
  /** Bytes received for the plain socket. */
  bytes = 0;
  readonly #host: DownlinkHost;
  #stream: ByteStream | undefined;
  /** Ranges that wait: slab i holds `#ranges[2i]` (offset) and `#ranges[2i + 1]` (count). */
  #slabs: Slab[] = [];
  #ranges: number[] = [];
  #inFlight: readonly Slab[] = NONE;
  #inFlightCount = 0;
  #dropped = false;

  constructor(host: DownlinkHost) {
    this.#host = host;
  }

  /** The socket is there: what has gathered is written as soon as the caller is done. */
  attach(stream: ByteStream): void {
    this.#stream = stream;
    if (this.#slabs.length > 0 || this.ended) queueMicrotask(() => this.flush());
  }

  /** Bytes of a DATA frame, in `slab`. */
  receive(slab: Slab, piece: FrameParser): void {
    const { offset, count } = piece;
    this.bytes += count;
    const idle = this.#inFlightCount === 0 && this.#stream !== undefined;
    if (idle && piece.whole && count <= INLINE_BYTES && this.#slabs.length === 0) {
      this.#writeInline(slab, piece);
      return;
    }
    const pinned = slab.pinner?.pinnedSlabs ?? 0;
    if (slab === commonSlab || (!idle && pinned >= MOST_PINNED_SLABS)) this.#copy(slab, offset, count);
    else this.#append(slab, offset, count);
    if (idle) turn.addPlain(this);
  }

  #writeInline(slab: Slab, { offset, count, endStream }: FrameParser): void {
    const stream = this.#stream;
    if (stream === undefined) return;
    const block = slab === commonSlab ? copyToScratch(slab, offset, count) : slab;
    const start = block === slab ? offset : 0;
    const outcome = stream.write(new Uint8Array(block.bytes.buffer, block.bytes.byteOffset + start, count), endStream);
    if (outcome === "done") {
      this.#host.onDelivered(count);
    } else if (outcome === "pending") {
      if (block === scratch) scratch = undefined; // it belongs to the write now
      block.refs++;
      this.#inFlight = [block];
      this.#inFlightCount = count;
    } else {
      this.#fail(stream);
    }
  }

  #append(slab: Slab, offset: number, count: number): void {
    const last = this.#slabs.length - 1;
    const lastOffset = this.#ranges[2 * last] ?? 0;
    const lastCount = this.#ranges[2 * last + 1] ?? 0;
    if (last >= 0 && this.#slabs[last] === slab && lastOffset + lastCount === offset) {
      this.#ranges[2 * last + 1] = lastCount + count;
      return;
    }
    slab.refs++;
    this.#slabs.push(slab);
    this.#ranges.push(offset, count);
  }

  /** Into blocks of our own, so that a slab is free again. */
  #copy(slab: Slab, offset: number, count: number): void {
    let block = this.#slabs.at(-1);
    if (block?.loose !== true) block = takeLoose(count);
    else if (block.bytes.length - block.used < count) block = takeLoose(count, block.bytes.length);
    slab.copied += count;
    block.bytes.set(slab.bytes.subarray(offset, offset + count), block.used);
    this.#append(block, block.used, count);
    block.used += count;
  }

  /** The peer has ended: the plain socket is told after the last byte. */
  end(): void {
    this.ended = true;
    turn.addPlain(this); // not at once: a reset right behind the end makes it none
  }

  flush(): void {
    const stream = this.#stream;
    if (stream === undefined || this.#inFlightCount > 0 || this.#dropped) return;
    if (this.#slabs.length > 0) this.#write(stream);
    if (this.ended && !this.finished && this.#slabs.length === 0 && this.#inFlightCount === 0 && !this.#dropped) {
      this.finished = true;
      this.#host.onDownlinkFinished();
    }
  }

  #write(stream: ByteStream): void {
    const slabs = this.#slabs;
    const ranges = this.#ranges;
    let total = 0;
    const views = slabs.map((slab, index) => {
      const count = ranges[2 * index + 1] ?? 0;
      total += count;
      return new Uint8Array(slab.bytes.buffer, slab.bytes.byteOffset + (ranges[2 * index] ?? 0), count);
    });
    const [only] = views;
    const outcome = views.length === 1 && only !== undefined ? stream.write(only, this.ended) : stream.writeAll(views);
    if (outcome === "failed") {
      this.#fail(stream);
      return;
    }
    this.#slabs = [];
    this.#ranges = [];
    if (outcome === "pending") {
      this.#inFlight = slabs;
      this.#inFlightCount = total;
      return;
    }
    for (const slab of slabs) releaseSlab(slab);
    this.#host.onDelivered(total);
  }

  /** The pending write is out. */
  written(): void {
    const count = this.#inFlightCount;
    for (const slab of this.#inFlight) releaseSlab(slab);
    this.#inFlight = NONE;
    this.#inFlightCount = 0;
    if (this.#dropped) return;
    this.#host.onDelivered(count);
    this.flush();
  }

  /**
   * Forgets everything; the result is how many bytes were received and not delivered. The plain socket must be closed
   * already: the kernel no longer reads from the slabs then.
   */
  drop(): number {
    if (this.#dropped) return 0;
    this.#dropped = true;
    let count = this.#inFlightCount;
    for (const slab of this.#inFlight) releaseSlab(slab);
    for (const slab of this.#slabs) releaseSlab(slab);
    for (let index = 1; index < this.#ranges.length; index += 2) count += this.#ranges[index] ?? 0;
    this.#inFlight = NONE;
    this.#inFlightCount = 0;
    this.#slabs = [];
    this.#ranges = [];
    return count;
  }

  #fail(stream: ByteStream): void {
    this.#host.onDownlinkFailed(stream.error ?? hboneError("HBONE_STREAM_RESET", "the socket takes no more bytes"));
  }
}

/** Where small frames are copied to be written from: taken by a write that does not end at once. */
let scratch: Slab | undefined;

function copyToScratch(slab: Slab, offset: number, count: number): Slab {
  scratch ??= takeLoose(INLINE_BYTES);
  scratch.bytes.set(slab.bytes.subarray(offset, offset + count));
  return scratch;
}
