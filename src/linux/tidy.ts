import { readFileSync } from "node:fs";
import { getHeapStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { every, type Clock } from "#base/clock";
import { trimMemory } from "./memory.ts";

/** Collects this thread's garbage now, and gives back what is free. */
export function collectGarbage(): void {
  setFlagsFromString("--expose-gc");
  const collect: unknown = runInNewContext("gc");
  if (typeof collect === "function") collect();
  trimMemory();
}

const LOOK_MS = 30_000;
/** A process that has grown by this much since the last time is tidied: below, it is not worth it. */
const GROWN_BYTES = 1 << 20;
/** Larger heaps are V8's own business: all of theirs at once would take longer than anybody should wait. */
const LARGE_HEAP_BYTES = 128 << 20;

/** Memory of this process without what it has mapped of files: the kernel takes that back as it likes. */
function ownBytes(): number {
  const kib = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return Number(kib ?? 0) * 1024;
}

/** What {@link keepTidy} looks at; this process, unless a test says otherwise. */
export interface TidyParts {
  readonly clock: Clock;
  readonly sizeBytes?: () => number;
  readonly heapBytes?: () => number;
  readonly collect?: () => void;
}

/**
 * Collects garbage and gives back what is free whenever the process has grown a little: one that has next to nothing to do
 * makes garbage so slowly that V8 would let it grow for hours. For processes of one thread that can wait for some tens of
 * milliseconds. The returned function ends it.
 */
export function keepTidy({
  clock,
  sizeBytes = ownBytes,
  heapBytes = () => getHeapStatistics().used_heap_size,
  collect = collectGarbage,
}: TidyParts): () => void {
  /** The smallest that it was since the last time: what was collected is given back a little later. */
  let leastBytes = 0;
  return every(clock, LOOK_MS, () => {
    const size = sizeBytes();
    leastBytes = Math.min(leastBytes, size);
    if (size - leastBytes < GROWN_BYTES || heapBytes() > LARGE_HEAP_BYTES) return;
    collect();
    leastBytes = size;
  });
}
