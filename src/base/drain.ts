/**
 * Counts work in flight, so that a shutdown can wait for it.
 *
 *     using work = drain.hold();   // undefined once draining has begun: refuse the work
 */
export class Drain {
  readonly #controller = new AbortController();
  readonly #idle = Promise.withResolvers<void>();
  #held = 0;

  /** Aborted when draining begins. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** How many pieces of work are held. */
  get held(): number {
    return this.#held;
  }

  /** Takes part in the count until disposed (once). Returns undefined when draining has begun. */
  hold(): Disposable | undefined {
    if (this.#controller.signal.aborted) return undefined;
    this.#held++;
    let released = false;
    return {
      [Symbol.dispose]: () => {
        if (released) return;
        released = true;
        this.#held--;
        if (this.#held === 0 && this.#controller.signal.aborted) this.#idle.resolve();
      },
    };
  }

  /** Begins draining. Resolves with true when all work has ended, with false when `deadline` resolves first. */
  async begin(deadline: Promise<unknown>): Promise<boolean> {
    this.#controller.abort(new Error("draining"));
    if (this.#held === 0) return true;
    return Promise.race([this.#idle.promise.then(() => true), deadline.then(() => false)]);
  }
}
