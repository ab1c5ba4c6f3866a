import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { CommanderError } from "commander";
import { systemClock } from "#base/clock";
import { explain, findCodedError } from "#base/errors";
import { createLog } from "#base/log";
import { buildProgram, type CliContext } from "#cli";

/** Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. */
const FAILED = 1;
const USAGE = 2;
const INTERRUPTED = 130;

const stop = new AbortController();
const hurry = new AbortController();
let takesHurry = false;
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    if (!stop.signal.aborted) {
      process.exitCode = signal === "SIGINT" ? INTERRUPTED : 0;
      stop.abort(new Error(`stopped by ${signal}`));
      return;
    }
    if (!takesHurry || hurry.signal.aborted) process.exit(INTERRUPTED); // asked twice: leave at once
    process.exitCode = INTERRUPTED;
    hurry.abort(new Error(`stopped at once by ${signal}`));
  });
}

const root = new URL("../../", import.meta.url);
const context: CliContext = {
  env: process.env,
  signal: stop.signal,
  untilHurried: () => {
    takesHurry = true;
    return hurry.signal;
  },
  clock: systemClock(),
  program: fileURLToPath(new URL("bin/veil", root)),
  self: { command: process.execPath, args: [...process.execArgv, ...process.argv.slice(1)], pid: process.pid },
  out: (text) => void process.stdout.write(text),
  note: (text) => void process.stderr.write(text),
  interactive: process.stderr.isTTY,
  log: createLog,
};

const { version } = JSON.parse(readFileSync(new URL("package.json", root), "utf8")) as { version: string }; // our own file

try {
  await buildProgram(context, version).parseAsync(process.argv);
} catch (error) {
  process.exitCode = report(error);
}

function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
  if (stop.signal.aborted) return INTERRUPTED;
  context.note(`veil: ${explain(error)}\n`);
  const isUnknown = findCodedError(error) === undefined;
  if (isUnknown && error instanceof Error && context.env["VEIL_DEBUG"] !== undefined) {
    context.note(`${error.stack ?? ""}\n`);
  }
  return FAILED;
}
