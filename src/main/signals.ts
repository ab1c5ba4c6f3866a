/** Ended by SIGINT, or by a second signal. */
export const INTERRUPTED = 130;

/** What SIGINT and SIGTERM ask for. */
export interface Stopping {
  /** Aborted by the first signal: finish, clean up, and leave. */
  readonly stop: AbortSignal;
  /**
   * Aborted by the second signal, when this was ever called: leave without waiting for anybody. Otherwise, and by a third
   * signal, the process ends at once.
   */
  readonly untilHurried: () => AbortSignal;
}

/** Listens to SIGINT and SIGTERM from now on. */
export function stopOnSignals(): Stopping {
  const stop = new AbortController();
  const hurry = new AbortController();
  let takesHurry = false;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      if (!stop.signal.aborted) {
        process.exitCode = signal === "SIGINT" ? INTERRUPTED : 0;
        stop.abort(new Error(`stopped by ${signal}`));
        return;
      }
      if (!takesHurry || hurry.signal.aborted) process.exit(INTERRUPTED); // asked twice: leave at once
      process.exitCode = INTERRUPTED;
      hurry.abort(new Error(`stopped at once by ${signal}`));
    });
  }
  return {
    stop: stop.signal,
    untilHurried: () => {
      takesHurry = true;
      return hurry.signal;
    },
  };
}
