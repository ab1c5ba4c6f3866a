import { InvalidArgumentError } from "commander";
import { every, type Clock } from "#base/clock";
import type { Log, LogLevel } from "#base/log";
import { drainAll, startAll, type Service } from "#base/service";

/** What a command may use of the process: nothing else reads argv, env or signals. */
export interface CliContext {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborted by SIGINT or SIGTERM: finish, clean up, and leave. */
  readonly signal: AbortSignal;
  /**
   * For a role that takes its time after `signal`: the result is aborted by a second SIGINT or SIGTERM, and the role ends
   * at once then. Unless this is called, a second one ends the process on the spot, as a third one does in any case.
   */
  readonly untilHurried: () => AbortSignal;
  readonly clock: Clock;
  /** Absolute path of the program's start script, for starting other roles with it. */
  readonly program: string;
  /** Writes to standard output: what was asked for. */
  readonly out: (text: string) => void;
  /** Writes to standard error: progress and remarks. */
  readonly note: (text: string) => void;
  /** True when standard error is a terminal. */
  readonly interactive: boolean;
  readonly log: (role: string, level?: LogLevel) => Log;
}

/**
 * Runs a role: starts its services, waits for SIGTERM or SIGINT, drains them in reverse within `drainMs`.
 * Rejects when a service cannot start.
 */
export async function runRole(context: CliContext, services: readonly Service[], drainMs: number): Promise<void> {
  // A role lives until it is told to stop, also while all that it does is wait with timers that hold nobody.
  const release = every(context.clock, HOLD_MS, () => {});
  try {
    await startAll(services, context.signal);
    await new Promise<void>((resolve) => {
      if (context.signal.aborted) resolve();
      context.signal.addEventListener("abort", () => resolve(), { once: true });
    });
    await drainAll(services, drainMs);
  } finally {
    release();
  }
}

const HOLD_MS = 3_600_000;

/** Parses an option that is on or off, so that a flag and a variable can say both. */
export function trueOrFalse(text: string): boolean {
  if (text !== "true" && text !== "false") throw new InvalidArgumentError("It is true or false.");
  return text === "true";
}
