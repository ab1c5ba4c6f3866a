import { spawn, type ChildProcess } from "node:child_process";
import type { Readable } from "node:stream";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
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
  /** Aborted after `signal`: the child gets a second SIGTERM, which it takes as "at once". */
  readonly hurry: AbortSignal;
}

/** Exit code of a child that cannot serve for a reason that another try does not mend, such as a taken port. */
export const UNUSABLE_EXIT = 78;
/** Exit code of a child whose flags are wrong; it has said so. */
const USAGE_EXIT = 2;

/** A child that lived shorter is not replaced at once: the next one would fail for the same reason. */
const SHORT_LIFE_MS = 2_000;
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 5_000;
/** When the next child is prepared: late enough not to take the processor from the one that begins to serve. */
const PREPARE_AFTER_MS = 3_000;
const GO = "go\n";

/**
 * Keeps one child at work, and a second one loaded and waiting: when the first dies, the second is told to go on at once,
 * also on a machine that is too busy to start a program in a second. Children that keep dying young get pauses.
 *
 *     prepared ── "go" ──▶ at work ── dies ──▶ the prepared one becomes the one at work; another is prepared
 *
 * Resolves with the exit code of the child at work when that has ended after the signal, when it has ended with 0 (it was
 * asked to quit), or when the very first one ended with {@link UNUSABLE_EXIT} or with 2 (wrong flags).
 */
export async function supervise(options: SupervisorOptions): Promise<number> {
  const { clock, log, signal, hurry } = options;
  let child = startChild(options);
  let isFirst = true;
  let pauseMs = 0;
  for (;;) {
    const startMs = clock.monotonic();
    child.go();
    log.info({ child: child.pid }, "data path process at work");
    const standby = new Standby(options);
    const end = await untilEnded(child, signal, hurry).catch((error: unknown) => {
      standby.stop(); // it could not be started, so the next one could not either
      throw error;
    });
    const livedMs = Math.round(clock.monotonic() - startMs);
    const isHopeless = isFirst && (end.code === UNUSABLE_EXIT || end.code === USAGE_EXIT);
    const isOver = signal.aborted || end.code === 0 || isHopeless;
    if (!isOver) {
      pauseMs = livedMs >= SHORT_LIFE_MS ? 0 : Math.min(LONGEST_PAUSE_MS, Math.max(FIRST_PAUSE_MS, 2 * pauseMs));
      log.error({ ...end, livedMs, pauseMs }, "data path process ended: the next one takes over");
      if (pauseMs > 0) await sleep(clock, pauseMs, signal).catch(() => undefined); // aborted: seen below
    }
    if (isOver || signal.aborted) {
      standby.stop();
      return end.code ?? 1;
    }
    isFirst = false;
    child = standby.take();
  }
}

/** In the child: resolves with true when it is told to go, with false when it is not wanted any more. */
export async function whenTold(input: Readable, signal: AbortSignal): Promise<boolean> {
  if (signal.aborted) return false;
  return new Promise((resolve) => {
    const answer = (told: boolean): void => {
      signal.removeEventListener("abort", onAbort);
      input.destroy(); // an open pipe would keep the process alive at its end
      resolve(told);
    };
    const onAbort = (): void => {
      answer(false);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    input.once("data", () => {
      answer(true);
    });
    input.once("end", onAbort);
    input.on("error", onAbort);
  });
}

interface End {
  readonly code: number | undefined;
  readonly killedBy: string | undefined;
}

interface Child {
  readonly pid: number | undefined;
  readonly ended: Promise<End>;
  go(): void;
  kill(signal: NodeJS.Signals): void;
}

function startChild({ command, args, env }: SupervisorOptions): Child {
  const child: ChildProcess = spawn(command, args, {
    env,
    stdio: ["pipe", "inherit", "inherit"],
    detached: true, // Ctrl-C is for the supervisor, which passes it on: two signals would mean "at once"
  });
  child.stdin?.on("error", () => undefined); // it has died: its end says so
  const ended = new Promise<End>((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, killedBy) => {
      resolve({ code: code ?? undefined, killedBy: killedBy ?? undefined });
    });
  });
  ended.catch(() => undefined); // looked at when it is this child's turn
  return { pid: child.pid, ended, go: () => child.stdin?.write(GO), kill: (signal) => child.kill(signal) };
}

async function untilEnded(child: Child, ...signals: readonly AbortSignal[]): Promise<End> {
  const onAbort = (): void => {
    child.kill("SIGTERM");
  };
  for (const signal of signals) {
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
  }
  try {
    return await child.ended;
  } finally {
    for (const signal of signals) signal.removeEventListener("abort", onAbort);
  }
}

/** The child that waits. One that dies while it waits is replaced after a pause. */
class Standby {
  readonly #options: SupervisorOptions;
  #child: Child | undefined;
  #cancel: () => void;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#cancel = this.#prepareAfter(PREPARE_AFTER_MS);
  }

  /** The child that waits; a new one when none is there yet. */
  take(): Child {
    this.#cancel();
    const child = this.#child ?? startChild(this.#options);
    this.#child = undefined;
    return child;
  }

  stop(): void {
    this.#cancel();
    this.#child?.kill("SIGKILL"); // it serves nobody
    this.#child = undefined;
  }

  #prepareAfter(delayMs: number): () => void {
    return this.#options.clock.after(delayMs, () => {
      const child = startChild(this.#options);
      this.#child = child;
      void this.#watch(child);
    });
  }

  async #watch(child: Child): Promise<void> {
    const why = await child.ended.then(
      (end) => end,
      (error: unknown) => ({ error: messageOf(error) }),
    );
    if (this.#child !== child) return;
    this.#options.log.warn({ ...why }, "prepared data path process ended");
    this.#child = undefined;
    this.#cancel = this.#prepareAfter(LONGEST_PAUSE_MS);
  }
}
