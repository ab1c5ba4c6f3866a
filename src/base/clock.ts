/** Time, injected so that tests can turn it. All other code takes a `Clock`; nothing reads the system's clock directly. */
export interface Clock {
  /** Milliseconds since the epoch (wall clock, may jump). */
  now(): number;
  /** Milliseconds on a clock that never goes back; only differences mean something. */
  monotonic(): number;
  /** Calls `callback` once after `delayMs` (capped at 2^31-1, about 24 days); the returned function cancels it. */
  after(delayMs: number, callback: () => void): () => void;
}

const MAX_DELAY_MS = 2 ** 31 - 1;

/** The machine's clock. Its timers do not keep the process alive when `unref` is set. */
export function systemClock(options: { unref?: boolean } = {}): Clock {
  const { performance } = globalThis; // a getter that loads lazily
  return {
    now: () => Date.now(),
    monotonic: () => performance.now(),
    after(delayMs, callback) {
      const timer = setTimeout(callback, Math.min(Math.max(delayMs, 0), MAX_DELAY_MS));
      if (options.unref === true) timer.unref();
      return () => {
        clearTimeout(timer);
      };
    },
  };
}

/** Waits. Rejects with the signal's reason when it is aborted first. */
export async function sleep(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const onAbort = (): void => {
      cancel();
      reject(signal?.reason);
    };
    const cancel = clock.after(delayMs, () => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    });
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** Calls `callback` every `periodMs`, the first time after one period; the returned function stops it. */
export function every(clock: Clock, periodMs: number, callback: () => void): () => void {
  let cancel = (): void => {};
  const arm = (): void => {
    cancel = clock.after(periodMs, () => {
      arm();
      callback();
    });
  };
  arm();
  return () => {
    cancel();
  };
}

/** A signal that aborts after `delayMs` with `reason`, or when `parent` does. Call `clear` when the work is done. */
export function deadline(
  clock: Clock,
  delayMs: number,
  options: { reason: Error; parent?: AbortSignal },
): { signal: AbortSignal; clear: () => void } {
  const controller = new AbortController();
  const cancel = clock.after(delayMs, () => {
    controller.abort(options.reason);
  });
  const signal = options.parent ? AbortSignal.any([controller.signal, options.parent]) : controller.signal;
  return { signal, clear: cancel };
}

/** A clock for tests: time stands still until `advance` is called. Timers fire in order of their due time. */
export class FakeClock implements Clock {
  #nowMs: number;
  #timers: { dueMs: number; callback: () => void }[] = [];

  constructor(startMs = 0) {
    this.#nowMs = startMs;
  }

  now(): number {
    return this.#nowMs;
  }

  monotonic(): number {
    return this.#nowMs;
  }

  after(delayMs: number, callback: () => void): () => void {
    const timer = { dueMs: this.#nowMs + Math.max(delayMs, 0), callback };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  /** Moves time forward and fires what becomes due. Lets pending microtasks run after each timer. */
  async advance(byMs: number): Promise<void> {
    const endMs = this.#nowMs + byMs;
    for (;;) {
      const next = this.#timers.toSorted((a, b) => a.dueMs - b.dueMs)[0];
      if (next === undefined || next.dueMs > endMs) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.#nowMs = next.dueMs;
      next.callback();
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#nowMs = endMs;
    await new Promise((resolve) => setImmediate(resolve));
  }
}
