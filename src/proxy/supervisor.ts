import { spawn, type ChildProcess } from "node:child_process";
import { sleep, type Clock } from "#base/clock";
import type { Log } from "#base/log";

/** What a supervisor keeps running. */
export interface SupervisorOptions {
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock: Clock;
  readonly log: Log;
  /** Aborted: the child gets SIGTERM and its end is waited for. */
  readonly signal: AbortSignal;
}

/** A child that lived shorter is not started again at once: it would fail for the same reason. */
const SHORT_LIFE_MS = 2_000;
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 5_000;

/**
 * Keeps one child running: a child that dies is replaced at once; one that keeps dying young, after pauses. Resolves
 * when the child has ended after the signal. The child's exit code is 0 then, or what it says.
 */
export async function supervise(options: SupervisorOptions): Promise<number> {
  const { clock, log, signal } = options;
  let pauseMs = 0;
  for (;;) {
    const startMs = clock.monotonic();
    const end = await runOnce(options);
    if (signal.aborted) return end.code ?? 1;
    const livedMs = Math.round(clock.monotonic() - startMs);
    pauseMs = livedMs >= SHORT_LIFE_MS ? 0 : Math.min(LONGEST_PAUSE_MS, Math.max(FIRST_PAUSE_MS, 2 * pauseMs));
    log.error(
      { code: end.code, killedBy: end.killedBy, livedMs, pauseMs },
      "data path process ended: starting the next",
    );
    await sleep(clock, pauseMs, signal).catch(() => undefined); // aborted: seen below
    if (signal.aborted) return 0;
  }
}

interface End {
  readonly code: number | undefined;
  readonly killedBy: string | undefined;
}

async function runOnce({ command, args, env, signal, log }: SupervisorOptions): Promise<End> {
  const child = spawn(command, args, { env, stdio: ["ignore", "inherit", "inherit"] });
  log.info({ child: child.pid }, "data path process started");
  const onAbort = (): void => {
    child.kill("SIGTERM");
  };
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await ended(child);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

async function ended(child: ChildProcess): Promise<End> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, killedBy) => {
      resolve({ code: code ?? undefined, killedBy: killedBy ?? undefined });
    });
  });
}
