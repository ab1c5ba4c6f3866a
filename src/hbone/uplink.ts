import type { Clock } from "#base/clock";
import type { ByteStream } from "#linux";
import { allocate, bulkBuffers, Piece, SHARED_BYTES, sharedBuffer, type BulkHolder } from "./buffers.ts";

/** Less room than this at the end of a bulk buffer: the next read goes to the other one. */
const LEAST_READ_BYTES = 64 * 1024;
/** Reads below this size count as small. */
const SMALL_READ_BYTES = 16 * 1024;
/** So many small reads in a row end bulk mode. */
const SMALL_READS = 32;
/** How often one socket may get bulk buffers: each return to the shared buffer costs Node a little memory. */
const MOST_PROMOTIONS = 256;

/** What an uplink needs of its session's sending half. */
export interface UplinkWriter {
  readonly peerMaxFrame: number;
  /** Set: what has gathered may wait one turn for more. */
  expectsMore: boolean;
  /** Whether `count` bytes can be gathered now. */
  takes(count: number): boolean;
  /** Gathers bytes, copying them. */
  data(streamId: number, bytes: Uint8Array, count: number): void;
  /** Bytes (or the end) wait in the uplink. */
  ready(uplink: Uplink): void;
  endStream(streamId: number): void;
}

/** What an uplink needs to know of its tunnel. */
export interface UplinkHost {
  readonly writer: UplinkWriter;
  readonly clock: Clock;
  /** END_STREAM was put on its way. */
  onUplinkEnded(): void;
}

/**
 * One tunnel's direction from the plain socket into the session. In shared mode a read is copied at once into the
 * session's gather buffer; what does not fit there (windows, a stalled session) is kept and reading stops. A socket that
 * fills the shared buffer gets two large buffers of its own: one is read into while the other is sent.
 *
 * At most two pieces wait (`first`, then `second`); with both full reading stops until `first` is sent.
 */
export class Uplink implements BulkHolder {
  readonly id: number;
  /** What the peer lets the tunnel send. */
  window: number;
  first: Piece | undefined;
  second: Piece | undefined;
  /** The plain socket has ended. */
  ended = false;
  /** END_STREAM is on its way. */
  endSent = false;
  /** In the writer's queue. */
  ready = false;
  bulkBusy = false;
  /** Bytes read from the plain socket. */
  bytes = 0;
  #host: UplinkHost;
  #stream: ByteStream | undefined;
  #current: Piece | undefined;
  #other: Piece | undefined;
  #paused = false;
  #dropped = false;
  #smallReads = 0;
  #promotions = 0;

  constructor(id: number, window: number, host: UplinkHost) {
    this.id = id;
    this.window = window;
    this.#host = host;
  }

  /** Whether there is anything left to send. */
  get hasMore(): boolean {
    return this.first !== undefined || (this.ended && !this.endSent);
  }

  /** The socket that is read, in shared mode first. The caller starts it with the shared buffer. */
  attach(stream: ByteStream): void {
    this.#stream = stream;
  }

  /** `count` bytes were read into the buffer in force. */
  read(count: number): Uint8Array | undefined {
    this.bytes += count;
    return this.#current === undefined ? this.#readShared(count) : this.#readBulk(this.#current, count);
  }

  #readShared(count: number): Uint8Array | undefined {
    const { writer, clock } = this.#host;
    if (this.bytes === count) writer.expectsMore = true; // many say all that they have to say at once, and end
    if (this.first === undefined && count <= this.window && writer.takes(count)) {
      this.window -= count;
      writer.data(this.id, sharedBuffer, count);
    } else {
      this.#keep(sharedBuffer, count);
    }
    const busy = count === SHARED_BYTES && writer.peerMaxFrame > SHARED_BYTES && this.#promotions < MOST_PROMOTIONS;
    const pieces = busy ? bulkBuffers.take(this, clock) : undefined;
    if (pieces === undefined) return undefined;
    [this.#current, this.#other] = pieces;
    this.#promotions++;
    this.#smallReads = 0;
    this.bulkBusy = true;
    return this.#current.view;
  }

  /** Copies bytes that cannot go on yet, and stops reading until they have. */
  #keep(bytes: Uint8Array, count: number): void {
    const piece = new Piece(allocate(count), 0);
    piece.bytes.set(bytes.length === count ? bytes : bytes.subarray(0, count));
    piece.count = count;
    piece.position = count;
    this.first = piece;
    this.#pause();
    this.#host.writer.ready(this);
  }

  #readBulk(piece: Piece, count: number): Uint8Array | undefined {
    this.bulkBusy = true;
    const from = piece.position;
    if (this.#endsBulk(count)) return this.#demote(piece.bytes.subarray(from, from + count));
    if (piece.count === 0) {
      piece.offset = from;
      if (this.first === undefined) this.first = piece;
      else this.second = piece;
    }
    piece.position += count;
    piece.count += count;
    this.#host.writer.ready(this);
    if (piece.bytes.length - piece.position >= LEAST_READ_BYTES) return piece.bytes.subarray(piece.position);
    const next = piece === this.#current ? this.#other : this.#current;
    if (next === undefined) return undefined;
    this.#other = piece;
    this.#current = next;
    if (next.count > 0) this.#pause();
    else next.rewind();
    return next.view;
  }

  /** Whether this read is the last of enough small ones, with nothing waiting and room to copy it. */
  #endsBulk(count: number): boolean {
    if (count >= SMALL_READ_BYTES) {
      this.#smallReads = 0;
      return false;
    }
    this.#smallReads++;
    if (this.#smallReads < SMALL_READS || this.first !== undefined) return false;
    return count <= this.window && this.#host.writer.takes(count);
  }

  #demote(bytes: Uint8Array): Uint8Array {
    this.window -= bytes.length;
    this.#host.writer.data(this.id, bytes, bytes.length);
    this.#releaseBulk();
    return sharedBuffer;
  }

  /** From the sweep: nothing was read for a while. */
  onBulkIdle(): void {
    const busy = this.first !== undefined || this.#paused;
    if (this.#stream === undefined || busy || this.ended) return;
    this.#stream.replaceBuffer(sharedBuffer);
    this.#releaseBulk();
  }

  #releaseBulk(): void {
    if (this.#current === undefined || this.#other === undefined) return;
    bulkBuffers.release(this, [this.#current, this.#other]);
    this.#current = undefined;
    this.#other = undefined;
  }

  /** The writer has taken `count` bytes of `first`. */
  consumed(count: number): void {
    const piece = this.first;
    if (piece === undefined) return;
    piece.offset += count;
    piece.count -= count;
    if (piece.count > 0) return;
    this.first = this.second;
    this.second = undefined;
    if (this.#paused) this.#resume();
    if (this.endSent) this.#ended();
  }

  /** The plain socket has ended: END_STREAM follows the last byte. */
  end(): void {
    this.ended = true;
    if (this.first === undefined) this.sendEnd();
    else this.#host.writer.ready(this);
  }

  /** Sends END_STREAM when it is due. */
  sendEnd(): void {
    if (!this.ended || this.endSent || this.#dropped || this.first !== undefined) return;
    this.endSent = true;
    this.#host.writer.endStream(this.id);
    this.#ended();
  }

  #ended(): void {
    this.#releaseBulk(); // nothing is read after the end
    this.#host.onUplinkEnded();
  }

  /** The peer lets the tunnel send more (or, after a change of settings, less). */
  addWindow(increment: number): void {
    this.window += increment;
    if (this.window > 0 && this.first !== undefined) this.#host.writer.ready(this);
  }

  /** The peer reads no more: what waits is dropped, nothing more is read, and the direction counts as ended. */
  abandon(): void {
    this.#stream?.pause();
    this.ended = true;
    this.endSent = true;
    this.drop();
    this.#host.onUplinkEnded();
  }

  /** Forgets everything. The plain socket must be closed (or paused for good) already. */
  drop(): void {
    this.#dropped = true;
    this.first = undefined;
    this.second = undefined;
    this.#releaseBulk();
  }

  #pause(): void {
    if (this.#paused) return;
    this.#paused = true;
    this.#stream?.pause();
  }

  #resume(): void {
    const current = this.#current;
    if (this.ended || this.#dropped || (current !== undefined && current.count > 0)) return;
    current?.rewind();
    this.#paused = false;
    this.#stream?.resume();
  }
}
