import { Command } from "commander";
import { podProgramsCommand } from "#programs";
import { adminCommand } from "./admin.ts";
import { agentCommand } from "./agent.ts";
import { apiserverCommand } from "./apiserver.ts";
import { cniCommand } from "./cni.ts";
import type { CliContext } from "./context.ts";
import { controllerCommand } from "./controller.ts";
import { labCommand } from "./lab.ts";
import { leaveCommand } from "./leave.ts";
import { demoCommand } from "./demo.ts";
import { doctorCommand } from "./doctor.ts";
import { kubectlCommand } from "./kubectl.ts";
import { manifestsCommand } from "./manifests.ts";
import { proxyCommand } from "./proxy.ts";
import { whyCommand } from "./why.ts";
import { wireguardCommand } from "./wireguard.ts";

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
  const commands = [
    demoCommand(context),
    labCommand(context),
    whyCommand(context),
    doctorCommand(context, version),
    wireguardCommand(context),
    kubectlCommand(context),
    manifestsCommand(context, version),
    controllerCommand(context),
    agentCommand(context, version),
    cniCommand(context),
    leaveCommand(context),
    proxyCommand(context, version),
    apiserverCommand(context),
    podProgramsCommand(context),
    adminCommand(context),
  ];
  for (const command of commands) program.addCommand(inherit(command, program));
  return program;
}

/** Gives a command, and those below it, the program's way of failing: suggestions, and exit code 2 for wrong usage. */
function inherit(command: Command, parent: Command): Command {
  command.copyInheritedSettings(parent);
  for (const child of command.commands) inherit(child, command);
  return command;
}
