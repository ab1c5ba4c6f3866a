/**
 * Something that runs until it is told to stop. It has exactly one owner, which starts it once and stops it once.
 */
export interface Service {
  /** For logs and readiness. */
  readonly name: string;
  /** Resolves when it serves. Rejects when it cannot, or when `signal` aborts first; nothing is left running then. */
  start(signal: AbortSignal): Promise<void>;
  /** Stops taking new work and waits for the work it has, at most `deadlineMs`; then ends the rest. Never rejects. */
  drain(deadlineMs: number): Promise<void>;
}

/** Starts services in order; when one fails, those already started are drained in reverse and its error is thrown. */
export async function startAll(services: readonly Service[], signal: AbortSignal): Promise<void> {
  const started: Service[] = [];
  try {
    for (const service of services) {
      await service.start(signal);
      started.push(service);
    }
  } catch (error) {
    await drainAll(started, 0);
    throw error;
  }
}

/** Drains services in reverse order of their start; together they get `deadlineMs`. */
export async function drainAll(services: readonly Service[], deadlineMs: number): Promise<void> {
  const endMs = performance.now() + deadlineMs;
  for (const service of services.toReversed()) await service.drain(Math.max(0, endMs - performance.now()));
}
