import { Session } from "node:inspector/promises";
import { sleep, type Clock } from "#base/clock";
import type { ThreadProfile } from "./pprof.ts";

/** What is recorded, for how long, how finely. */
export interface ProfileRequest {
  readonly kind: ThreadProfile["kind"];
  readonly durationMs: number;
  /** Microseconds between two looks at the stack (`cpu`), or bytes between two samples of allocations (`heap`). */
  readonly interval: number;
}

/**
 * Records what the thread that calls it does, by V8's own profilers; it costs a few per cent meanwhile. Aborted: it stops at
 * once and rejects with the signal's reason.
 */
export async function recordProfile(
  request: ProfileRequest,
  thread: string,
  { clock, signal }: { readonly clock: Clock; readonly signal: AbortSignal },
): Promise<ThreadProfile> {
  const { kind, durationMs, interval } = request;
  const session = new Session();
  session.connect();
  try {
    if (kind === "heap") {
      await session.post("HeapProfiler.startSampling", { samplingInterval: interval });
      await sleep(clock, durationMs, signal);
      const { profile } = await session.post("HeapProfiler.stopSampling");
      return { kind, thread, profile };
    }
    await session.post("Profiler.enable");
    await session.post("Profiler.setSamplingInterval", { interval });
    await session.post("Profiler.start");
    await sleep(clock, durationMs, signal);
    const { profile } = await session.post("Profiler.stop");
    return { kind, thread, profile };
  } finally {
    session.disconnect(); // ends what was started
  }
}
