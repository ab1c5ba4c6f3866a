import { Command } from "commander";
import { CNI_CREDENTIALS } from "./agent.ts";
import type { CliContext } from "./context.ts";

interface Flags {
  readonly confDir: string;
  readonly binDir: string;
  readonly credentials: string;
}

/** `veil cni …`: what is left to do on a node when Veil goes. The agent installs the plugin (`--cni-conf-dir`). */
export function cniCommand(context: CliContext): Command {
  const uninstall = new Command("uninstall")
    .description("take the plugin off this node, after its agent was stopped for good")
    .option("--conf-dir <folder>", "the node's CNI configuration", "/etc/cni/net.d")
    .option("--bin-dir <folder>", "the node's CNI plugins", "/opt/cni/bin")
    .option("--credentials <file>", "what the plugin asks the API with", CNI_CREDENTIALS)
    .action(async (flags: Flags) => {
      const { uninstall } = await import("#cni");
      const removed = await uninstall(flags);
      context.out(
        removed.length === 0 ? "nothing of Veil's plugin is on this node\n" : `removed ${removed.join(", ")}\n`,
      );
    });
  return new Command("cni").description("the CNI plugin of this node").addCommand(uninstall);
}
