import { hboneError } from "./errors.ts";
import { MOST_SESSION_WINDOW_BYTES, SESSION_CREDIT_BYTES, SESSION_WINDOW_BYTES } from "./frames.ts";

/** By how much all session windows of a thread together may exceed what sessions begin with. */
const THREAD_GROWTH_BYTES = 256 << 20;
/** A session's window grows in steps, so that not each new tunnel costs a frame. */
const GROWTH_STEP_BYTES = 1 << 20;
let growthLeft = THREAD_GROWTH_BYTES;

/**
 * What a peer may send on one session. It is never smaller than the windows of its open tunnels together (within the
 * caps), so that tunnels whose sockets take nothing, however many, leave the others theirs: it grows with them, and
 * shrinks again by giving less back.
 */
export class SessionWindow {
  /** What the peer may still send. */
  #left = SESSION_WINDOW_BYTES;
  /** What it may have under way at most. */
  #size = SESSION_WINDOW_BYTES;
  /** What the open tunnels may have under way at most, together. */
  #promised = 0;
  /** Used up and not yet given back. */
  #used = 0;
  readonly #announce: (increment: number) => void;

  /** `announce` sends WINDOW_UPDATE. */
  constructor(announce: (increment: number) => void) {
    this.#announce = announce;
  }

  get size(): number {
    return this.#size;
  }

  /** A DATA frame has come. Throws `HBONE_FLOW_CONTROL`. */
  take(byteCount: number): void {
    this.#left -= byteCount;
    if (this.#left < 0) throw hboneError("HBONE_FLOW_CONTROL", "the peer overran the session's window");
  }

  /** A tunnel's window begins with, or grows by, so much. False: there is no room to grow, nothing has changed. */
  promise(byteCount: number): boolean {
    if (this.#promised + byteCount > this.#size) {
      const missing = Math.ceil((this.#promised + byteCount - this.#size) / GROWTH_STEP_BYTES) * GROWTH_STEP_BYTES;
      if (missing > growthLeft || this.#size + missing > MOST_SESSION_WINDOW_BYTES) return false;
      growthLeft -= missing;
      this.#size += missing;
      this.#left += missing;
      this.#announce(missing);
    }
    this.#promised += byteCount;
    return true;
  }

  /** A tunnel has ended whose window was so large. */
  release(byteCount: number): void {
    this.#promised -= byteCount;
  }

  /** Received bytes are used up: the peer may send as many again, but for what the window is to shrink by. */
  credit(byteCount: number): void {
    this.#used += byteCount;
    if (this.#used < SESSION_CREDIT_BYTES) return;
    const excess = this.#size - Math.max(this.#promised, SESSION_WINDOW_BYTES);
    const kept = Math.min(Math.max(excess, 0), this.#used);
    const given = this.#used - kept;
    this.#size -= kept;
    growthLeft += kept;
    this.#used = 0;
    if (given === 0) return;
    this.#left += given;
    this.#announce(given);
  }

  /** The session has ended. */
  close(): void {
    growthLeft += this.#size - SESSION_WINDOW_BYTES;
    this.#size = SESSION_WINDOW_BYTES;
  }
}
