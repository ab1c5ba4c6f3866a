import { getPriority, setPriority } from "node:os";

/**
 * Lowers the calling thread to a niceness of the kernel's scheduler, from 0, as usual, to 19, the least; one that has less
 * already keeps it. Threads that this one starts from now on have the same, the others of the process keep theirs.
 */
export function lowerPriority(niceness: number): void {
  if (getPriority() < niceness) setPriority(niceness); // on Linux "this process" is the thread that asks
}
