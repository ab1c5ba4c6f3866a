import type { CodedError } from "#base/errors";
import type { ByteStream, StreamOwner, TcpSocket } from "#linux";
import { allocate, SHARED_BYTES, sharedBuffer } from "./buffers.ts";
import { hboneError } from "./errors.ts";
import type { TunnelHandle, TunnelResult } from "./tunnel.ts";

/** A socket that fills the shared buffer gets one of its own, of this size. */
const OWN_BYTES = 256 * 1024;

/**
 * Copies between two plain sockets, in both directions, until both have ended (half-close is passed on), or one broke
 * (the other is reset). Owns both sockets. In the result, `sent` is from `a` to `b`.
 */
export function copyPlain(
  a: TcpSocket,
  b: TcpSocket,
  options: { onEnd: (result: TunnelResult) => void },
): TunnelHandle {
  return new PlainCopy(a, b, options.onEnd);
}

class PlainCopy implements TunnelHandle {
  readonly #a: TcpSocket;
  readonly #b: TcpSocket;
  readonly #forth: Direction;
  readonly #back: Direction;
  readonly #onEnd: (result: TunnelResult) => void;
  #over = false;

  constructor(a: TcpSocket, b: TcpSocket, onEnd: (result: TunnelResult) => void) {
    this.#a = a;
    this.#b = b;
    this.#onEnd = onEnd;
    this.#forth = new Direction(a.stream, b.stream, this);
    this.#back = new Direction(b.stream, a.stream, this);
    a.stream.start(new Side(this.#forth, this.#back, this), sharedBuffer);
    b.stream.start(new Side(this.#back, this.#forth, this), sharedBuffer);
  }

  get bytes(): { readonly sent: number; readonly received: number } {
    return { sent: this.#forth.bytes, received: this.#back.bytes };
  }

  abort(error: CodedError): void {
    this.end(error);
  }

  /** A direction has passed its end on. */
  directionEnded(): void {
    if (this.#forth.finished && this.#back.finished) this.end(undefined);
  }

  end(error: CodedError | undefined): void {
    if (this.#over) return;
    this.#over = true;
    for (const socket of [this.#a, this.#b]) {
      if (error === undefined) socket.close();
      else socket.reset();
    }
    this.#onEnd({ bytesSent: this.#forth.bytes, bytesReceived: this.#back.bytes, error });
  }
}

/** One of the two sockets: the source of one direction, the target of the other. */
class Side implements StreamOwner {
  readonly #from: Direction;
  readonly #to: Direction;
  readonly #copy: PlainCopy;

  constructor(from: Direction, to: Direction, copy: PlainCopy) {
    this.#from = from;
    this.#to = to;
    this.#copy = copy;
  }

  onRead(count: number): Uint8Array | undefined {
    return this.#from.read(count);
  }

  onEnd(): void {
    this.#from.end();
  }

  onWritten(): void {
    this.#to.written();
  }

  onBroken(error: CodedError): void {
    this.#copy.end(error);
  }
}

/** Reads from one socket and writes to the other, one write at a time; while it is pending nothing is read. */
class Direction {
  bytes = 0;
  finished = false;
  readonly #source: ByteStream;
  readonly #target: ByteStream;
  readonly #copy: PlainCopy;
  #own: Uint8Array | undefined;
  #pending = false;
  #ended = false;

  constructor(source: ByteStream, target: ByteStream, copy: PlainCopy) {
    this.#source = source;
    this.#target = target;
    this.#copy = copy;
  }

  read(count: number): Uint8Array | undefined {
    this.bytes += count;
    const outcome = this.#target.write(this.#own === undefined ? takeCopy(count) : this.#own.subarray(0, count));
    if (outcome === "failed") {
      this.#copy.end(this.#target.error ?? hboneError("HBONE_STREAM_RESET", "the socket takes no more bytes"));
      return undefined;
    }
    if (outcome === "pending") {
      this.#pending = true;
      this.#source.pause();
      if (this.#own === undefined) scratch = undefined; // it belongs to the write now
    }
    if (this.#own !== undefined || count < SHARED_BYTES) return undefined;
    this.#own = allocate(OWN_BYTES);
    return this.#own;
  }

  written(): void {
    this.#pending = false;
    if (this.#ended) this.#finish();
    else this.#source.resume();
  }

  end(): void {
    this.#ended = true;
    if (!this.#pending) this.#finish();
  }

  #finish(): void {
    this.finished = true;
    this.#target.shutdown();
    this.#copy.directionEnded();
  }
}

/** Where small reads are copied to be written from: taken by a write that does not end at once. */
let scratch: Uint8Array | undefined;

function takeCopy(count: number): Uint8Array {
  scratch ??= allocate(SHARED_BYTES);
  scratch.set(count === SHARED_BYTES ? sharedBuffer : sharedBuffer.subarray(0, count));
  return scratch.subarray(0, count);
}
