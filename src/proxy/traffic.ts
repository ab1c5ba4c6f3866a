import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import type { ThreadSamples } from "./looks.ts";
import type { DataThreads } from "./threads.ts";

/** What the end of the traffic is made of. */
export interface TrafficParts {
  readonly threads: Pick<DataThreads, "drain" | "samples">;
  readonly clock: Clock;
  readonly log: Log;
  /** Aborted by whoever does not want to wait for the end of a drain: what is left is reset at once. */
  readonly hurry: AbortSignal;
}

/** The pods' connections, at the end: nothing new is taken, and what runs may go on until the deadline. */
export class Traffic implements Service {
  readonly name = "connections";
  readonly #parts: TrafficParts;
  /** No new connections are taken any more. */
  draining = false;

  constructor(parts: TrafficParts) {
    this.#parts = parts;
  }

  /** Does nothing: connections come when there are pods. */
  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    return Promise.resolve();
  }

  async drain(deadlineMs: number): Promise<void> {
    this.draining = true;
    const { threads, clock, log, hurry } = this.#parts;
    const startMs = clock.monotonic();
    log.info({ deadlineMs: Math.round(deadlineMs) }, "draining: no new connections");
    const breakOff = (): void => {
      log.warn({}, "drain cut short: connections are reset");
      threads.drain(0).catch(() => undefined); // the drain that waits fails for the same reason
    };
    hurry.addEventListener("abort", breakOff, { once: true });
    try {
      await threads.drain(hurry.aborted ? 0 : deadlineMs);
      const reset = sumOf(await threads.samples(), "veil_proxy_drained_total");
      log.info({ tookMs: Math.round(clock.monotonic() - startMs), reset }, "drained");
    } catch (error) {
      log.error({ error: messageOf(error) }, "not drained cleanly");
    } finally {
      hurry.removeEventListener("abort", breakOff);
    }
  }
}

function sumOf(samples: ThreadSamples, name: string): number {
  return samples.reduce((sum, sample) => (sample.name === name ? sum + sample.value : sum), 0);
}
