import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { CodedError } from "#base/errors";
import type { ByteStream, StreamOwner, WriteOutcome } from "./byte-stream.ts";
import { socketError } from "./libc.ts";

/**
 * {@link ByteStream} over Node's public streams: the fallback for a Node whose internals have another shape.
 * Bytes are copied into the owner's buffer, every write is pending first.
 */
export class PublicStream implements ByteStream {
  readonly #duplex: Duplex;
  /** Set: bytes are copied before they are handed on, as a TLS handle takes them at once. */
  readonly #copies: boolean;
  #owner: StreamOwner | undefined;
  #buffer: Uint8Array = new Uint8Array(0);
  #paused = false;
  #left: Uint8Array | undefined;
  #ended = false;
  #endSaid = false;
  #scheduled = false;
  #error: CodedError | undefined;
  #closed = false;

  constructor(duplex: Duplex, options: { copies: boolean }) {
    this.#duplex = duplex;
    this.#copies = options.copies;
  }

  get error(): CodedError | undefined {
    return this.#error;
  }

  start(owner: StreamOwner, buffer: Uint8Array): void {
    this.#owner = owner;
    this.#buffer = buffer;
    this.#duplex.on("data", (chunk: Uint8Array) => {
      this.#left = this.#left === undefined ? chunk : Buffer.concat([this.#left, chunk]);
      this.#deliver();
    });
    this.#duplex.on("end", () => {
      this.#ended = true;
      this.#deliver();
    });
    this.#duplex.on("error", (cause) => {
      this.#broken(socketError("socket", cause.message, cause));
    });
    this.#duplex.on("close", () => {
      if (!this.#ended || !this.#duplex.writableFinished) this.#broken(socketError("socket", "it was closed"));
    });
    if (this.#duplex.destroyed) {
      // Its events have passed already.
      setImmediate(() => {
        this.#broken(socketError("socket", this.#duplex.errored?.message ?? "it was closed"));
      });
    }
    this.#duplex.resume();
  }

  pause(): void {
    this.#paused = true;
    this.#duplex.pause();
  }

  resume(): void {
    if (!this.#paused || this.#closed) return;
    this.#paused = false;
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#deliver();
    });
  }

  replaceBuffer(buffer: Uint8Array): void {
    this.#buffer = buffer;
  }

  write(bytes: Uint8Array): WriteOutcome {
    if (this.#duplex.destroyed || this.#duplex.writableEnded) return this.#failed();
    this.#duplex.write(this.#copies ? Uint8Array.from(bytes) : bytes, this.#onWritten);
    return "pending";
  }

  writeAll(pieces: readonly Uint8Array[]): WriteOutcome {
    return this.write(pieces.length === 1 && pieces[0] !== undefined ? pieces[0] : Buffer.concat(pieces));
  }

  shutdown(): void {
    this.#duplex.end();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#owner = undefined;
    this.#left = undefined;
    this.#duplex.on("error", () => {});
    this.#duplex.destroy();
  }

  reset(): void {
    if (this.#closed) return;
    if (this.#duplex instanceof Socket) this.#duplex.resetAndDestroy();
    this.close();
  }

  readonly #onWritten = (error: Error | null | undefined): void => {
    if (error !== null && error !== undefined) this.#broken(socketError("write", error.message, error));
    else this.#owner?.onWritten();
  };

  #failed(): WriteOutcome {
    this.#error = socketError("write", "the socket is closed");
    return "failed";
  }

  #deliver(): void {
    while (this.#left !== undefined && !this.#paused) {
      const count = Math.min(this.#left.length, this.#buffer.length);
      this.#buffer.set(this.#left.subarray(0, count));
      this.#left = count === this.#left.length ? undefined : this.#left.subarray(count);
      const next = this.#owner?.onRead(count);
      if (this.#closed) return;
      if (next !== undefined) this.#buffer = next;
    }
    if (this.#paused) return;
    if (this.#ended) this.#end();
    else this.#duplex.resume();
  }

  #end(): void {
    const owner = this.#owner;
    this.#paused = true;
    if (!this.#endSaid) owner?.onEnd();
    this.#endSaid = true;
  }

  #broken(error: CodedError): void {
    const owner = this.#owner;
    if (owner === undefined) return;
    this.#owner = undefined;
    this.#error ??= error;
    this.#duplex.pause();
    owner.onBroken(error);
  }
}
