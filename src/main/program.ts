import { Command, CommanderError } from "commander";
import { systemClock } from "#base/clock";
import { messageOf } from "#base/errors";
import { podProgramsCommand } from "#programs";

/**
 * The entry point of `veil program …`: pods run many of these, so this loads none of the other commands (half the time
 * and memory of a start). `bin/veil` chooses it.
 */
const USAGE = 2;

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stop.abort());

const context = {
  env: process.env,
  signal: stop.signal,
  clock: systemClock(),
  out: (text: string) => void process.stdout.write(text),
};

/** Wrong usage throws, here and in each command below. */
function throwing(command: Command): Command {
  command.exitOverride().showHelpAfterError("(add --help for what is possible)");
  for (const child of command.commands) throwing(child);
  return command;
}

try {
  await throwing(new Command("veil").addCommand(podProgramsCommand(context))).parseAsync(process.argv);
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : USAGE;
  else {
    process.stderr.write(`veil: ${messageOf(error)}\n`);
    process.exitCode = 1;
  }
}
