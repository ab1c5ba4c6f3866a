import type { Clock } from "#base/clock";
import { hboneError } from "./errors.ts";

/** Over how long points add up. */
const WINDOW_MS = 10_000;
/** What a frame costs that is dealt with where it is read. */
const FRAME_POINTS = 1;
/**
 * What a stream costs that came to nothing: a request was read, perhaps a connection begun and given up. Applications that
 * give up on a hung one do this, too, hundreds of times a second: ending their session would end other tunnels with it.
 */
const STREAM_POINTS = 2;
/** What a tunnel that came to be makes up for: its peer may send a few frames without use with each. */
const RELIEF_POINTS = 4;

/**
 * Counts what costs us work and carries nothing; too much of it in a short time is a flood (CVE-2019-9512 and its kin;
 * for streams, CVE-2023-44487 and CVE-2025-8671). Tunnels that carry something make up for it, so that a busy peer is
 * never taken for a hostile one.
 */
export class NuisanceGuard {
  readonly #clock: Clock;
  readonly #mostPoints: number;
  #points = 0;
  #sinceMs: number;

  /** `mostPoints`: what is taken in 10 s. */
  constructor(clock: Clock, mostPoints: number) {
    this.#clock = clock;
    this.#mostPoints = mostPoints;
    this.#sinceMs = clock.monotonic();
  }

  /** A frame without use. Throws `HBONE_FLOOD`, naming the frame that was one too many. */
  frame(name: string): void {
    this.#add(FRAME_POINTS, name);
  }

  /** A stream that came to nothing through its peer. Throws `HBONE_FLOOD`. */
  stream(why: string): void {
    this.#add(STREAM_POINTS, why);
  }

  /** A tunnel came to be. */
  useful(): void {
    this.#points = Math.max(this.#points - RELIEF_POINTS, 0);
  }

  #add(points: number, last: string): void {
    const now = this.#clock.monotonic();
    if (now - this.#sinceMs > WINDOW_MS) {
      this.#sinceMs = now;
      this.#points = 0;
    }
    this.#points += points;
    if (this.#points > this.#mostPoints) {
      throw hboneError("HBONE_FLOOD", `the peer sends masses of what carries nothing, the last: ${last}`);
    }
  }
}
