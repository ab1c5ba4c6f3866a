import { constants, openSync, write } from "node:fs";
import type { Clock } from "#base/clock";

/** Where lines are written to. It never blocks: whoever reads may stall. */
export interface RecordOutput {
  write(bytes: Uint8Array): void;
  /** Bytes that were given and not written yet. */
  readonly waitingBytes: number;
  /** Resolves when everything that was given is written. */
  whenEmpty(): Promise<void>;
}

/** A pipe that nobody reads, or has open for it any more, a disk that is full: nothing is taken now. */
const NO_ROOM: ReadonlySet<string | undefined> = new Set(["EAGAIN", "EPIPE", "ENOSPC", "EDQUOT"]);
/** What takes nothing now is tried again after this, doubled up to the second. */
const FIRST_RETRY_MS = 1;
const LAST_RETRY_MS = 64;

/**
 * Writes to a descriptor without ever waiting for its reader, as a write to standard output would: one that stalls would hold
 * the event loop, or a thread of the pool, and then also the end of the process. A full disk is a reader that stalls, and so
 * is a reader that has gone. Bounded by whoever gives: see {@link waitingBytes}.
 */
export class LineOutput implements RecordOutput {
  readonly #fd: number;
  readonly #clock: Clock;
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #isWriting = false;
  #onEmpty: (() => void)[] = [];
  /** The reader has gone: it is of no use to wait for it. */
  isAbandoned = false;

  /** Pipes and files are opened anew; a socket, which cannot be, is used as it is. */
  constructor(fd: number, clock: Clock) {
    this.#fd = reopen(fd);
    this.#clock = clock;
  }

  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  write(bytes: Uint8Array): void {
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (!this.#isWriting) this.#next();
  }

  async whenEmpty(): Promise<void> {
    if (this.#waitingBytes === 0) return;
    await new Promise<void>((resolve) => this.#onEmpty.push(resolve));
  }

  #next(): void {
    const bytes = Buffer.concat(this.#waiting);
    this.#waiting = [];
    this.#isWriting = bytes.length > 0;
    if (this.#isWriting) this.#writeAll(bytes);
    else for (const resolve of this.#onEmpty.splice(0)) resolve();
  }

  #writeAll(bytes: Buffer, retryMs = FIRST_RETRY_MS): void {
    write(this.#fd, bytes, (error, written) => {
      this.isAbandoned = error?.code === "EPIPE";
      if (error !== null && NO_ROOM.has(error.code)) {
        this.#clock.after(retryMs, () => this.#writeAll(bytes, Math.min(2 * retryMs, LAST_RETRY_MS)));
        return;
      }
      const done = error === null ? written : bytes.length;
      this.#waitingBytes -= done;
      if (done < bytes.length) this.#writeAll(bytes.subarray(done));
      else this.#next();
    });
  }
}

/** A description of our own: that it does not block is then no matter of whoever shares the descriptor. */
function reopen(fd: number): number {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK);
  } catch {
    return fd;
  }
}
