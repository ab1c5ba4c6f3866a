import type { Clock } from "#base/clock";
import { MOST_STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES } from "./frames.ts";
import type { SessionWindow } from "./session-window.ts";

/** A windowful that is used up within this time shows that a larger window is of use: it covers the longest ways. */
const GROW_WITHIN_MS = 100;
const GROW_FACTOR = 4;

/**
 * What the peer may send on one tunnel. Begins small, so that many stalled tunnels hold little, and grows while its bytes
 * find their reader quickly.
 */
export class TunnelWindow {
  /** What the peer may still send. */
  left = STREAM_WINDOW_BYTES;
  /** Used up and not yet given back. */
  #used = 0;
  /** What it may have under way at most. */
  #size = STREAM_WINDOW_BYTES;
  /** What of it counts against the session's window. */
  #promised: number;
  #sinceUsed = 0;
  #sinceMs: number;
  readonly #session: SessionWindow;
  readonly #clock: Clock;

  constructor(session: SessionWindow, clock: Clock) {
    this.#session = session;
    this.#clock = clock;
    this.#sinceMs = clock.monotonic();
    this.#promised = session.promise(STREAM_WINDOW_BYTES) ? STREAM_WINDOW_BYTES : 0;
  }

  /** Received bytes are used up. The result is what the peer may send more; 0 while it is not worth a frame. */
  credit(byteCount: number): number {
    this.#used += byteCount;
    if (this.#used < this.#size / 4) return 0;
    const increment = this.#used + this.#growth();
    this.#used = 0;
    this.left += increment;
    return increment;
  }

  #growth(): number {
    if (this.#size >= MOST_STREAM_WINDOW_BYTES) return 0;
    this.#sinceUsed += this.#used;
    if (this.#sinceUsed < this.#size) return 0;
    const now = this.#clock.monotonic();
    const quick = now - this.#sinceMs <= GROW_WITHIN_MS;
    this.#sinceUsed = 0;
    this.#sinceMs = now;
    const more = Math.min(this.#size * GROW_FACTOR, MOST_STREAM_WINDOW_BYTES) - this.#size;
    if (!quick || !this.#session.promise(more)) return 0;
    this.#promised += more;
    this.#size += more;
    return more;
  }

  /** The tunnel has ended. */
  close(): void {
    this.#session.release(this.#promised);
    this.#promised = 0;
  }
}
