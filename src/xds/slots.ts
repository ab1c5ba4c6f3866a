/** Lets a fixed number of holders in; the others wait in order. */
export class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = Math.max(1, count);
  }

  /** Waits for a slot. False when `signal` aborts first: then there is nothing to give back. */
  async take(signal: AbortSignal): Promise<boolean> {
    if (signal.aborted) return false;
    if (this.#free > 0) {
      this.#free--;
      return true;
    }
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const enter = (): void => resolve(true);
    this.#waiting.push(enter);
    const onAbort = (): void => {
      const at = this.#waiting.indexOf(enter);
      if (at < 0) return; // it has the slot already
      this.#waiting.splice(at, 1);
      resolve(false);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    const taken = await promise;
    signal.removeEventListener("abort", onAbort);
    return taken;
  }

  /** Gives a slot back. */
  release(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free++;
    else next();
  }
}
