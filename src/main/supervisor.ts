import { flushCompileCache } from "node:module";
import { systemClock } from "#base/clock";
import { explain } from "#base/errors";
import { createLog, LOG_LEVELS } from "#base/log";
import { supervise, UNUSABLE_EXIT } from "#proxy";
import { stopOnSignals } from "./signals.ts";
import { writeError } from "./standard-error.ts";

// The supervisor of `veil proxy`: starts this very command as its children, which know by one more flag that they are.

/**
 * For all threads: V8 would let the heap of a main thread's short-lived objects grow to 3 x 16 MiB while it loads, and keep it; and
 * what connections need for a moment is collected with less work while it fits the processor's cache. So little is collected best
 * by the thread whose it is: helpers would take the processor from the data threads, at whose priority they run, whenever the main
 * thread collects. One helper compiles: what each has needed for that stays with it.
 */
const SMALL_HEAP = [
  "--max-semi-space-size=2",
  "--no-parallel-scavenge",
  "--heap-growing-percent=80",
  "--v8-pool-size=1",
];

/**
 * What a connection needs runs once per connection, so that V8 takes 14,000 of them to compile all of it as well as it can: it waits for
 * 400 and 3,000 calls of a function, and 500 more after each new kind of value. See docs/adr/0047-compiled-sooner.md.
 */
const COMPILED_SOON = [
  "--invocation-count-for-maglev=150",
  "--invocation-count-for-turbofan=800",
  "--minimum-invocations-after-ic-update=100",
];

/**
 * For the C library: buffers have mappings of their own, which go back to the kernel when they are freed. Left to itself it takes
 * room for ever larger ones from its arenas, where they leave holes that small things keep open.
 */
const SMALL_ARENAS = { MALLOC_MMAP_THRESHOLD_: String(128 << 10), MALLOC_TRIM_THRESHOLD_: String(1 << 20) };

const { stop, untilHurried } = stopOnSignals();
const given = /--log-level[= ](\w+)/.exec(process.argv.join(" "))?.[1]; // a wrong one is the child's to refuse
const log = createLog(
  "proxy-supervisor",
  writeError,
  LOG_LEVELS.find((level) => level === given),
);
flushCompileCache(); // see cli/proxy.ts
try {
  const code = await supervise({
    command: process.execPath,
    args: [
      ...SMALL_HEAP,
      ...COMPILED_SOON,
      ...process.execArgv,
      ...process.argv.slice(1),
      "--child-of",
      String(process.pid),
    ],
    env: { ...SMALL_ARENAS, ...process.env },
    clock: systemClock(),
    log,
    signal: stop,
    hurry: untilHurried(),
  });
  if (code !== 0) process.exitCode = code === UNUSABLE_EXIT ? 1 : code;
} catch (error) {
  process.stderr.write(`veil: ${explain(error)}\n`);
  process.exitCode = 1;
}
