import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { libc } from "./libc.ts";

const mallocTrim = libc.func("int malloc_trim(size_t pad)");

/** What the processes of this container use of the memory that they may use together, in bytes. */
export interface MemoryUse {
  readonly usedBytes: number;
  readonly limitBytes: number;
}

/** Beyond this a limit of cgroup v1 means that there is none. */
const NO_LIMIT_BYTES = 2 ** 60;
/** `own`: this process's group in /proc/self/cgroup. */
const VERSIONS = [
  {
    own: /^0::(\/.*)$/m,
    folder: "",
    limit: "memory.max",
    used: "memory.current",
    stat: "memory.stat",
    inactive: "inactive_file",
  },
  {
    own: /^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(\/.*)$/m,
    folder: "memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    stat: "memory.stat",
    inactive: "total_inactive_file",
  },
] as const;
type Version = (typeof VERSIONS)[number];

/**
 * Reads it from the process's control group and those around it, of version 2 or 1: the one that is nearest to its limit counts. In a container the groups
 * begin with its own, which is the root there. Undefined where none sets a limit.
 */
export function readMemoryUse(root = "/sys/fs/cgroup", proc = "/proc/self"): MemoryUse | undefined {
  const own = readIfThere(join(proc, "cgroup"));
  const found = VERSIONS.flatMap((version) => {
    const path = version.own.exec(own)?.[1] ?? "/";
    return pathsUp(path).flatMap((group) => readGroup(join(root, version.folder, group), version) ?? []);
  });
  return found.toSorted((a, b) => b.usedBytes / b.limitBytes - a.usedBytes / a.limitBytes).at(0);
}

/** A path and those above it, to the root. One of another namespace of groups (`/../…`) is not seen from here. */
function pathsUp(path: string): string[] {
  if (path === "/" || path.startsWith("/..")) return ["/"];
  return [path, ...pathsUp(dirname(path))];
}

/** Undefined without a limit, or without the group: a container of version 1 is named by its place on the node. */
function readGroup(folder: string, { limit, used, stat, inactive }: Version): MemoryUse | undefined {
  const limitBytes = Number(readIfThere(join(folder, limit)) || Number.NaN); // "max": not a number
  if (!(limitBytes < NO_LIMIT_BYTES)) return undefined;
  const cache = new RegExp(`^${inactive} (\\d+)$`, "m").exec(readIfThere(join(folder, stat)))?.[1];
  // Files that nobody reads any more are given up by the kernel before anybody suffers.
  return { limitBytes, usedBytes: Number(readIfThere(join(folder, used))) - Number(cache ?? 0) };
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // not of this version
  }
}

/**
 * Gives back what the C library keeps of memory that was freed: holes that are smaller than what is asked of it next stay
 * with the process otherwise. Takes about a millisecond for each MiB of them; whoever allocates meanwhile waits.
 */
export function trimMemory(): void {
  mallocTrim(0);
}
