import { Backoff } from "#base/backoff";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";

const RETRY = { initialMs: 50, maxMs: 5_000 };

/**
 * Calls `work` for keys that were added: one call at a time per key, again when a key was added meanwhile, and again
 * after a delay when it failed. A key is the name of an object, so the queue is as long as there are objects.
 */
export class WorkQueue {
  readonly #work: (key: string) => Promise<void>;
  readonly #parts: { name: string; clock: Clock; random: Random; log: Log };
  readonly #waiting = new Set<string>();
  readonly #running = new Set<string>();
  readonly #backoffs = new Map<string, Backoff>();
  #stopped = false;

  constructor(work: (key: string) => Promise<void>, parts: { name: string; clock: Clock; random: Random; log: Log }) {
    this.#work = work;
    this.#parts = parts;
  }

  add(key: string): void {
    if (this.#stopped || this.#waiting.has(key)) return;
    this.#waiting.add(key);
    if (!this.#running.has(key)) queueMicrotask(() => void this.#run(key));
  }

  stop(): void {
    this.#stopped = true;
    this.#waiting.clear();
  }

  async #run(key: string): Promise<void> {
    if (this.#running.has(key)) return;
    this.#running.add(key);
    try {
      while (this.#waiting.delete(key) && !this.#stopped) await this.#work(key);
      this.#backoffs.delete(key);
    } catch (error) {
      this.#retry(key, error);
    } finally {
      this.#running.delete(key);
    }
  }

  #retry(key: string, error: unknown): void {
    const { name, clock, random, log } = this.#parts;
    const backoff = this.#backoffs.get(key) ?? new Backoff(RETRY, random);
    this.#backoffs.set(key, backoff);
    const delayMs = backoff.next();
    this.#waiting.delete(key);
    log.debug({ controller: name, key, error: messageOf(error), delayMs }, "could not reconcile, trying again");
    clock.after(delayMs, () => this.add(key));
  }
}
