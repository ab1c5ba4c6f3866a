import type { Clock } from "#base/clock";
import { hboneError } from "./errors.ts";

/** How many frames that carry nothing are taken per window of time. */
const MOST_FRAMES = 10_000;
const WINDOW_MS = 10_000;

/** Counts frames that cost us work and carry nothing; too many of them in a short time are a flood. */
export class NuisanceGuard {
  readonly #clock: Clock;
  #count = 0;
  #sinceMs: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#sinceMs = clock.monotonic();
  }

  /** Throws `HBONE_FLOOD`, naming the frame that was one too many. */
  count(frame: string): void {
    const now = this.#clock.monotonic();
    if (now - this.#sinceMs > WINDOW_MS) {
      this.#sinceMs = now;
      this.#count = 0;
    }
    this.#count++;
    if (this.#count > MOST_FRAMES) {
      throw hboneError("HBONE_FLOOD", `more than ${MOST_FRAMES} frames without use within 10 s, the last: ${frame}`);
    }
  }
}
