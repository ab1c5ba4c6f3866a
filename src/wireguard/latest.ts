import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";

/** What a {@link LatestWrite} writes with. */
export interface LatestWriteOptions<T> {
  /** Constant text for the log. */
  readonly what: string;
  readonly write: (value: T, signal: AbortSignal) => Promise<unknown>;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** Writes a value that keeps changing: one write at a time, always of the newest, again and again until it succeeds. */
export class LatestWrite<T> {
  readonly #options: LatestWriteOptions<T>;
  readonly #stop = new AbortController();
  #next: { readonly value: T } | undefined;
  #running: Promise<void> | undefined;

  constructor(options: LatestWriteOptions<T>) {
    this.#options = options;
  }

  /** Takes a value in place of one that waits. */
  take(value: T): void {
    this.#next = { value };
    this.#running ??= this.#run();
  }

  /** Ends what is under way; nothing is written any more. */
  async stop(): Promise<void> {
    this.#stop.abort(new Error("stopped"));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { what, write, clock, random, log } = this.#options;
    const { signal } = this.#stop;
    const backoff = new Backoff({ initialMs: 100, maxMs: 5_000 }, random);
    for (let at = this.#next; at !== undefined && !signal.aborted; at = this.#next) {
      try {
        await write(at.value, signal);
        if (this.#next === at) this.#next = undefined;
        backoff.reset();
      } catch (error) {
        if (signal.aborted) break;
        log.warn({ what, error: messageOf(error) }, "cannot be written yet, trying again");
        await sleep(clock, backoff.next(), signal).catch(() => undefined);
      }
    }
    this.#running = undefined;
  }
}
