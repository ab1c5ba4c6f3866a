import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { CommanderError } from "commander";
import { systemClock } from "#base/clock";
import { explain, findCodedError } from "#base/errors";
import { createLog } from "#base/log";
import { buildProgram, type CliContext } from "#cli";
import { INTERRUPTED, stopOnSignals } from "./signals.ts";
import { writeError } from "./standard-error.ts";

/** Exit codes beside 0, done, and {@link INTERRUPTED}. */
const FAILED = 1;
const USAGE = 2;

const root = new URL("../../", import.meta.url);
const { stop, untilHurried } = stopOnSignals();
const context: CliContext = {
  env: process.env,
  signal: stop,
  untilHurried,
  clock: systemClock(),
  program: fileURLToPath(new URL("bin/veil", root)),
  out: (text) => void process.stdout.write(text),
  note: (text) => void process.stderr.write(text),
  interactive: process.stderr.isTTY,
  log: (role, level) => createLog(role, writeError, level),
};

const { version } = JSON.parse(readFileSync(new URL("package.json", root), "utf8")) as { version: string }; // our own file

try {
  await buildProgram(context, version).parseAsync(process.argv);
} catch (error) {
  process.exitCode = report(error);
}

function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
  if (stop.aborted) return INTERRUPTED;
  context.note(`veil: ${explain(error)}\n`);
  const isUnknown = findCodedError(error) === undefined;
  if (isUnknown && error instanceof Error && context.env["VEIL_DEBUG"] !== undefined) {
    context.note(`${error.stack ?? ""}\n`);
  }
  return FAILED;
}
