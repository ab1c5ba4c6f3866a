import { Duplex } from "node:stream";
import { CodedError } from "#base/errors";
import type { ByteStream, StreamOwner, WriteOutcome } from "#linux";
import { hboneError } from "./errors.ts";

/**
 * A tunnel's plain socket that leads back into the program: what is written to `far` goes into the tunnel, and what comes
 * out of the tunnel is read from `far`. Both ways are bounded: one piece each, then the writer waits.
 *
 * Nothing is handed over from inside a call of the other side: sessions on both sides share their thread's buffers.
 */
export class LoopSocket implements ByteStream {
  readonly far: Duplex;
  error: CodedError | undefined;
  #owner: StreamOwner | undefined;
  #buffer: Uint8Array = new Uint8Array(0);
  #paused = false;
  #closed = false;
  /** Written to `far` and not taken by the tunnel yet, and what tells its writer that it has been. */
  #left: Uint8Array | undefined;
  #taken: (() => void) | undefined;
  #farEnded = false;
  /** The tunnel's last write is with `far`, which takes no more until it is read. */
  #full = false;

  constructor() {
    this.far = new Duplex({
      allowHalfOpen: true,
      autoDestroy: false, // the tunnel still sends what was written last
      write: (chunk: Uint8Array, _encoding, done) => {
        this.#left = chunk;
        this.#taken = done;
        this.#later(this.#deliver);
      },
      final: (done) => {
        this.#farEnded = true;
        this.#later(this.#deliver);
        done();
      },
      read: () => {
        if (!this.#full) return;
        this.#full = false;
        this.#later(() => this.#owner?.onWritten());
      },
      destroy: (error, done) => {
        this.#later(() => {
          const cause = error instanceof CodedError ? error : undefined;
          this.#owner?.onBroken(cause ?? hboneError("HBONE_SESSION_LOST", "the inner session ended", { cause: error }));
        });
        done(error);
      },
    });
    this.far.on("error", () => undefined); // whoever destroys it knows why
  }

  /** What a tunnel asks of its socket. */
  get stream(): ByteStream {
    return this;
  }

  start(owner: StreamOwner, buffer: Uint8Array): void {
    this.#owner = owner;
    this.#buffer = buffer;
    this.#later(this.#deliver);
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#later(this.#deliver);
  }

  replaceBuffer(buffer: Uint8Array): void {
    this.#buffer = buffer;
  }

  write(bytes: Uint8Array): WriteOutcome {
    return this.writeAll([bytes]);
  }

  writeAll(pieces: readonly Uint8Array[]): WriteOutcome {
    const copy = Buffer.concat(pieces);
    this.#later(() => {
      this.#full = !this.far.push(copy);
      if (!this.#full) this.#owner?.onWritten();
    });
    return "pending";
  }

  shutdown(): void {
    this.#later(() => this.far.push(null));
  }

  /** As of a real socket: what was written is still read from `far`, then its end. */
  close(): void {
    if (!this.#leave()) return;
    this.far.once("end", () => this.far.destroy());
    queueMicrotask(() => this.far.push(null));
  }

  reset(): void {
    if (this.#leave()) this.far.destroy();
  }

  /** The tunnel has nothing to do with it any more; false: it had not before. */
  #leave(): boolean {
    const isFirst = !this.#closed;
    this.#closed = true;
    this.#owner = undefined;
    return isFirst;
  }

  readonly #deliver = (): void => {
    while (this.#left !== undefined && !this.#paused && this.#owner !== undefined) {
      const count = Math.min(this.#left.length, this.#buffer.length);
      this.#buffer.set(this.#left.subarray(0, count));
      this.#left = count === this.#left.length ? undefined : this.#left.subarray(count);
      this.#buffer = this.#owner.onRead(count) ?? this.#buffer;
    }
    if (this.#left !== undefined || this.#owner === undefined) return;
    const taken = this.#taken;
    this.#taken = undefined;
    taken?.();
    if (!this.#farEnded || this.#paused) return;
    this.#farEnded = false;
    this.#owner.onEnd();
  };

  #later(work: () => void): void {
    queueMicrotask(() => {
      if (!this.#closed) work();
    });
  }
}
