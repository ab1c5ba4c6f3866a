import type { Clock } from "#base/clock";

/**
 * Waiters by key, each with a deadline: what a held connection waits in. `settle` wakes all of a key.
 */
export class Waiting<T> {
  readonly #clock: Clock;
  readonly #most: number;
  readonly #waiters = new Map<string, Set<(value: T | undefined) => void>>();
  #count = 0;

  /** At most `most` wait at once. */
  constructor(clock: Clock, most: number) {
    this.#clock = clock;
    this.#most = most;
  }

  /** How many wait. */
  get count(): number {
    return this.#count;
  }

  /** True when somebody waits for this key. */
  has(key: string): boolean {
    return this.#waiters.has(key);
  }

  /** Resolves with what `settle` brings; with undefined after `timeoutMs`, or at once when too many wait. */
  async wait(key: string, timeoutMs: number): Promise<T | undefined> {
    if (this.#count >= this.#most) return undefined;
    this.#count++;
    const { promise, resolve } = Promise.withResolvers<T | undefined>();
    const waiters = this.#waiters.get(key) ?? new Set();
    this.#waiters.set(key, waiters.add(resolve));
    const cancel = this.#clock.after(timeoutMs, () => {
      resolve(undefined);
    });
    const value = await promise;
    cancel();
    this.#count--;
    waiters.delete(resolve);
    if (waiters.size === 0 && this.#waiters.get(key) === waiters) this.#waiters.delete(key);
    return value;
  }

  /** Wakes those who wait for `key`. */
  settle(key: string, value: T): void {
    const waiters = this.#waiters.get(key);
    this.#waiters.delete(key);
    for (const resolve of waiters ?? []) resolve(value);
  }
}
