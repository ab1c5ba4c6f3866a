import type { Clock } from "./clock.ts";

/** Something that several wait for, each with a deadline of its own; it may happen again and again. */
export class Occasion {
  readonly #waiters = new Set<() => void>();

  /** It happens: whoever waits goes on. */
  happen(): void {
    for (const waiter of this.#waiters) waiter();
  }

  /** Resolves when it happens next, after `deadlineMs` at the latest. */
  async within(clock: Clock, deadlineMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const done = (): void => {
        cancel();
        this.#waiters.delete(done);
        resolve();
      };
      const cancel = clock.after(deadlineMs, done);
      this.#waiters.add(done);
    });
  }
}
