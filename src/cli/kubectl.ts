import { spawn } from "node:child_process";
import { Command } from "commander";
import type { CliContext } from "./context.ts";

/** `veil kubectl …`: runs the pinned kubectl with everything that follows, and leaves with its exit code. */
export function kubectlCommand(context: CliContext): Command {
  return new Command("kubectl")
    .description("run the pinned kubectl (fetched into a cache on first use)")
    .argument("[arguments...]", "what kubectl gets, unchanged")
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(async (given: string[]) => {
      const { ensureKubectl } = await import("#apiserver");
      const path = await ensureKubectl({ env: context.env, signal: context.signal, note: context.note });
      const child = spawn(path, given, { stdio: "inherit" });
      process.exitCode = await new Promise<number>((resolve, reject) => {
        child.once("error", reject);
        child.once("exit", (code, signal) => resolve(code ?? (signal === "SIGINT" ? 130 : 1)));
      });
    });
}
