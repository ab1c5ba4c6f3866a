import { Command, InvalidArgumentError, Option } from "commander";
import { deadline } from "#base/clock";
import { explain } from "#base/errors";
import type { Finding } from "#doctor";
import type { CliContext } from "./context.ts";

interface Flags {
  readonly kubeconfig?: string;
  readonly context?: string;
  readonly namespace: string;
  readonly timeout: number;
  readonly output: "text" | "json";
}

/** Exit code for "could not look". */
const NOT_CHECKED = 2;

/** `veil doctor`: what is wrong with an installation, and what to do about it. */
export function doctorCommand(context: CliContext, version: string): Command {
  const { env } = context;
  return new Command("doctor")
    .description("say what is wrong with an installation, and what to do about each thing; it changes nothing")
    .option("--kubeconfig <file>", "credentials of the cluster (default: KUBECONFIG, a pod's own, then ~/.kube/config)")
    .option("--context <name>", "context of that file (default: its current one)")
    .option("--namespace <namespace>", "where Veil is installed", env["POD_NAMESPACE"] ?? "veil-system")
    .option("--timeout <seconds>", "what is not known by then is not checked", seconds, 30)
    .addOption(new Option("-o, --output <format>", "how to answer").choices(["text", "json"]).default("text"))
    .addHelpText("after", "\nExit code 0: nothing is wrong; 1: something is; 2: something could not be looked at.")
    .action(async (flags: Flags) => {
      const { exitCodeOf, findingsAsJson, formatFindings } = await import("#doctor");
      const findings = await examine(context, flags, version);
      if (findings === undefined) return;
      context.out(flags.output === "json" ? findingsAsJson(findings) : formatFindings(findings));
      process.exitCode = exitCodeOf(findings);
    });
}

/** Undefined when not even the kubeconfig could be read: that is said, and nothing else can be. */
async function examine(context: CliContext, flags: Flags, version: string): Promise<readonly Finding[] | undefined> {
  const { clock, env, log } = context;
  const { findKubeConfig, KubeClient } = await import("#kube");
  const { systemRandom } = await import("#base/random");
  const config = await findKubeConfig(env, flags.kubeconfig, flags.context).catch((error: unknown) => {
    context.note(`veil: ${explain(error)}\n`);
    process.exitCode = NOT_CHECKED;
  });
  if (config === undefined) return undefined;
  const client = new KubeClient({ config, log: log("doctor"), clock, random: systemRandom });
  const reason = new Error(`no answer within ${flags.timeout} s`);
  const { signal, clear } = deadline(clock, flags.timeout * 1000, { reason, parent: context.signal });
  try {
    const { examineCluster } = await import("#doctor");
    const findings = await examineCluster({ client, namespace: flags.namespace, version, nowMs: clock.now(), signal });
    context.signal.throwIfAborted();
    return findings;
  } finally {
    clear();
    client.close();
  }
}

function seconds(text: string): number {
  const number = Number(text);
  if (!(number > 0 && number <= 3600)) throw new InvalidArgumentError("Write seconds, 3600 at most.");
  return number;
}
