import { readdirSync, readFileSync } from "node:fs";
import { getPriority, setPriority } from "node:os";

/**
 * Lowers the calling thread to a niceness of the kernel's scheduler, from 0, as usual, to 19, the least; one that has less
 * already keeps it. Threads that this one starts from now on have the same, the others of the process keep theirs.
 */
export function lowerPriority(niceness: number): void {
  if (getPriority() < niceness) setPriority(niceness); // on Linux "this process" is the thread that asks
}

/**
 * Lowers V8's helpers in the same way. All threads of a process share them, and they run at the priority that the process was
 * started with, whichever thread they work for. Returns how many there are.
 */
export function lowerHelpers(niceness: number): number {
  const threads = readdirSync("/proc/self/task").map(Number);
  const helpers = threads.filter((thread) => nameOf(thread) === "V8Worker");
  for (const helper of helpers) if (getPriority(helper) < niceness) setPriority(helper, niceness);
  return helpers.length;
}

/** Empty for a thread that has ended. */
function nameOf(thread: number): string {
  try {
    return readFileSync(`/proc/self/task/${thread}/comm`, "utf8").trim();
  } catch {
    return "";
  }
}
