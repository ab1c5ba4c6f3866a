import { Command } from "commander";
import type { CliContext } from "./context.ts";

/**
 * The command line. Each command lives in a file of its own, declares its options there, and loads the component that
 * does the work only when it runs: `veil --help` loads none of them.
 */
export function buildProgram(context: CliContext, version: string): Command {
  const program = new Command("veil")
    .description("Encrypts the traffic between workloads, without changing them, and proves that it did.")
    .version(version, "-V, --version", "print the version")
    .helpOption("-h, --help", "print this help")
    .showSuggestionAfterError(true)
    .showHelpAfterError("(add --help for what is possible)")
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ writeOut: context.out, writeErr: context.note });
  return program;
}
