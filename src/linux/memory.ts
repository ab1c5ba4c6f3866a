import { readFileSync } from "node:fs";
import { libc } from "./libc.ts";

const mallocTrim = libc.func("int malloc_trim(size_t pad)");

/** What the processes of this container use of the memory that they may use together, in bytes. */
export interface MemoryUse {
  readonly usedBytes: number;
  readonly limitBytes: number;
}

/** Beyond this a limit of cgroup v1 means that there is none. */
const NO_LIMIT_BYTES = 2 ** 60;
const VERSIONS = [
  { limit: "memory.max", used: "memory.current", stat: "memory.stat", inactive: "inactive_file" },
  {
    limit: "memory/memory.limit_in_bytes",
    used: "memory/memory.usage_in_bytes",
    stat: "memory/memory.stat",
    inactive: "total_inactive_file",
  },
] as const;

/** Reads it from the container's control group (version 2, or 1); undefined where none sets a limit. */
export function readMemoryUse(root = "/sys/fs/cgroup"): MemoryUse | undefined {
  for (const { limit, used, stat, inactive } of VERSIONS) {
    try {
      const limitBytes = Number(readFileSync(`${root}/${limit}`, "utf8")); // "max": not a number
      if (!(limitBytes < NO_LIMIT_BYTES)) continue;
      const cache = new RegExp(`^${inactive} (\\d+)$`, "m").exec(readFileSync(`${root}/${stat}`, "utf8"))?.[1];
      // Files that nobody reads any more are given up by the kernel before anybody suffers.
      return { limitBytes, usedBytes: Number(readFileSync(`${root}/${used}`, "utf8")) - Number(cache ?? 0) };
    } catch {
      continue; // not this version
    }
  }
  return undefined;
}

/**
 * Gives back what the C library keeps of memory that was freed: holes that are smaller than what is asked of it next stay
 * with the process otherwise. Takes about a millisecond for each MiB of them; whoever allocates meanwhile waits.
 */
export function trimMemory(): void {
  mallocTrim(0);
}
