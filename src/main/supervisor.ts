import { flushCompileCache } from "node:module";
import { systemClock } from "#base/clock";
import { createLog, LOG_LEVELS } from "#base/log";
import { supervise, UNUSABLE_EXIT } from "#proxy";
import { stopOnSignals } from "./signals.ts";

/**
 * What `veil proxy` turns into once its flags have been read: the supervisor alone, in a process that has loaded nothing
 * else. Its arguments: the level of its log, then those of the children.
 */
const [level, ...args] = process.argv.slice(2);

const { stop, untilHurried } = stopOnSignals();
flushCompileCache(); // see cli/proxy.ts
const code = await supervise({
  command: process.execPath,
  args,
  env: process.env,
  clock: systemClock(),
  log: createLog(
    "proxy-supervisor",
    LOG_LEVELS.find((known) => known === level),
  ),
  signal: stop,
  hurry: untilHurried(),
});
if (code !== 0) process.exitCode = code === UNUSABLE_EXIT ? 1 : code;
