import type { Random } from "./random.ts";

/** How long to wait between tries. */
export interface BackoffOptions {
  /** First delay. */
  readonly initialMs: number;
  /** No delay is longer than this (before jitter). */
  readonly maxMs: number;
  /** Each delay is this many times the one before. Default 2. */
  readonly factor?: number;
  /** Each delay is multiplied by a random number in [1 - jitter, 1 + jitter]. Default 0.2. */
  readonly jitter?: number;
}

/** Exponential backoff with jitter. `next` gives the delay to wait now; `reset` after a success. */
export class Backoff {
  readonly #options: Required<BackoffOptions>;
  readonly #random: Random;
  #tries = 0;

  constructor(options: BackoffOptions, random: Random) {
    this.#options = { factor: 2, jitter: 0.2, ...options };
    this.#random = random;
  }

  next(): number {
    const { initialMs, maxMs, factor, jitter } = this.#options;
    const base = Math.min(maxMs, initialMs * factor ** Math.min(this.#tries, 64));
    this.#tries++;
    return base * (1 - jitter + 2 * jitter * this.#random.unit());
  }

  reset(): void {
    this.#tries = 0;
  }
}
