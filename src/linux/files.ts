import { libc } from "./libc.ts";

const RLIMIT_NOFILE = 7;
const getrlimit = libc.func("int getrlimit(int resource, void *limit)");
/** Descriptors that are kept back: from connections that are accepted, half of them from those that we make. */
const MOST_KEPT = 128;
/** A process with few has an eighth of them kept back. */
const KEPT_SHARE = 8;
/** The limit may be changed from outside at any time (prlimit): it is read again after so many descriptors. */
const READ_EVERY = 16;

const limits = new BigUint64Array(2);
let limit = 0;
let uses = 0;

/**
 * Whether a new descriptor is one of the last: the kernel gives out the lowest number that is free, so the number says it.
 * When accept itself fails for want of descriptors, libuv accepts and closes whatever waits, without a word to anybody:
 * the ones kept back are what a refusal with a reason is made with. `kind`: accepted, or made for a connection that runs.
 */
export function isLastFile(fd: number, kind: "accepted" | "made"): boolean {
  if (uses-- <= 0) {
    uses = READ_EVERY;
    limit = Number(getrlimit(RLIMIT_NOFILE, limits)) === 0 ? Number(limits[0]) : Number.POSITIVE_INFINITY;
  }
  const kept = Math.min(MOST_KEPT, limit / KEPT_SHARE);
  return fd >= limit - (kind === "accepted" ? kept : kept / 2);
}
