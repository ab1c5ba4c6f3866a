import { constants, openSync, writeSync } from "node:fs";
import { isatty } from "node:tty";

const STANDARD_ERROR = 2;

/**
 * Writes to standard error what it takes now; throws when it takes nothing. Pipes and files are opened anew: that such a
 * description does not block is then no matter of whoever shares the old one. A socket cannot be, and blocks.
 */
export function writeError(bytes: Uint8Array): number {
  return writeSync(descriptor, bytes);
}

const descriptor = openAnew();

function openAnew(): number {
  if (isatty(STANDARD_ERROR)) return STANDARD_ERROR;
  try {
    return openSync(`/proc/self/fd/${STANDARD_ERROR}`, constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK);
  } catch {
    return STANDARD_ERROR;
  }
}
