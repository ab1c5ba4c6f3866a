import { every, type Clock } from "#base/clock";
import { readMemoryUse, type MemoryUse } from "#linux";
import type { Cause } from "./causes.ts";

/** From this share of the memory on nothing new is taken; below the other one it is taken again. */
const FULL = 0.9;
const ENOUGH = 0.8;
const LOOK_MS = 1_000;
/** While memory is short, what nobody uses is collected this often: it is most of what can be given back. */
const COLLECT_MS = 10_000;

/** What a {@link Pressure} looks at. */
export interface PressureParts {
  readonly clock: Clock;
  /** Undefined: there is no limit. */
  readonly memory: () => MemoryUse | undefined;
  readonly collect: () => void;
  /** Nobody takes the records that connections owe. */
  readonly isLogStalled: () => boolean;
}

/** Says whether there is enough of what a new connection needs. What runs is never touched. */
export class Pressure {
  readonly #parts: PressureParts;
  #short: MemoryUse | undefined;
  #collectedMs = Number.NEGATIVE_INFINITY;

  constructor(parts: PressureParts) {
    this.#parts = parts;
    every(parts.clock, LOOK_MS, () => {
      this.#look();
    });
  }

  /** Why nothing new is taken; undefined: it is. */
  refusal(): Cause | undefined {
    if (this.#parts.isLogStalled()) {
      return { reason: "log_stalled", detail: "PROXY_LOG_STALLED: nobody reads the access log" };
    }
    if (this.#short === undefined) return undefined;
    const { usedBytes, limitBytes } = this.#short;
    const detail = `PROXY_MEMORY: ${mib(usedBytes)} of ${mib(limitBytes)} MiB of memory are in use`;
    return { reason: "limit_reached", detail };
  }

  #look(): void {
    const { clock, memory, collect } = this.#parts;
    const use = memory();
    const share = use === undefined ? 0 : use.usedBytes / use.limitBytes;
    this.#short = share >= (this.#short === undefined ? FULL : ENOUGH) ? use : undefined;
    if (this.#short === undefined || clock.monotonic() - this.#collectedMs < COLLECT_MS) return;
    this.#collectedMs = clock.monotonic();
    collect();
  }
}

/** Of this process, against a limit of its own in bytes; or of its container. */
export function memoryReader(limitBytes: number | undefined): () => MemoryUse | undefined {
  if (limitBytes === undefined) return () => readMemoryUse();
  return () => ({ usedBytes: process.memoryUsage.rss(), limitBytes });
}

function mib(bytes: number): number {
  return Math.round(bytes / (1 << 20));
}
