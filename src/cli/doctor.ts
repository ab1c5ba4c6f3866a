import { Command, InvalidArgumentError, Option } from "commander";
import { deadline } from "#base/clock";
import { explain, messageOf } from "#base/errors";
import type { Finding } from "#doctor";
import type { KubeConfig } from "#kube";
import type { CliContext } from "./context.ts";

interface Flags {
  readonly kubeconfig?: string;
  readonly context?: string;
  readonly namespace: string;
  readonly node?: true;
  readonly cniConfDir: string;
  readonly cniBinDir: string;
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
    .option(
      "--node",
      "look at the node that this runs on: kernel, clock, CNI (as root; in the agent's pod, or on the node)",
    )
    .option("--cni-conf-dir <folder>", "with --node: its CNI configuration", env["CNI_CONF_DIR"] ?? "/etc/cni/net.d")
    .option("--cni-bin-dir <folder>", "with --node: its CNI plugins", env["CNI_BIN_DIR"] ?? "/opt/cni/bin")
    .option("--timeout <seconds>", "what is not known by then is not checked", seconds, 30)
    .addOption(new Option("-o, --output <format>", "how to answer").choices(["text", "json"]).default("text"))
    .addHelpText("after", "\nExit code 0: nothing is wrong; 1: something is; 2: something could not be looked at.")
    .action(async (flags: Flags) => {
      const { exitCodeOf, findingsAsJson, formatFindings } = await import("#doctor");
      const findings = await examine(context, flags, version);
      context.signal.throwIfAborted();
      if (findings === undefined) return;
      context.out(flags.output === "json" ? findingsAsJson(findings) : formatFindings(findings));
      process.exitCode = exitCodeOf(findings);
    });
}

/** Undefined when not even the kubeconfig could be read: that is said, and nothing can be asked of the cluster. */
async function examine(context: CliContext, flags: Flags, version: string): Promise<readonly Finding[] | undefined> {
  const { clock, env } = context;
  const { findKubeConfig } = await import("#kube");
  const found = await findKubeConfig(env, flags.kubeconfig, flags.context).then(
    (value) => ({ value }),
    (error: unknown) => ({ unknown: messageOf(error), error }),
  );
  const reason = new Error(`no answer within ${flags.timeout} s`);
  const { signal, clear } = deadline(clock, flags.timeout * 1000, { reason, parent: context.signal });
  try {
    const { examineNode } = await import("#doctor");
    if (flags.node) {
      const { cniConfDir: confDir, cniBinDir: binDir } = flags;
      return await examineNode({ confDir, binDir, config: found, clock, signal });
    }
    if ("value" in found) return await askCluster(context, found.value, { ...flags, version, signal });
    context.note(`veil: ${explain(found.error)}\n`);
    process.exitCode = NOT_CHECKED;
    return undefined;
  } finally {
    clear();
  }
}

async function askCluster(
  { clock, log }: CliContext,
  config: KubeConfig,
  options: { readonly namespace: string; readonly version: string; readonly signal: AbortSignal },
): Promise<readonly Finding[]> {
  const { KubeClient } = await import("#kube");
  const { systemRandom } = await import("#base/random");
  const { examineCluster } = await import("#doctor");
  const client = new KubeClient({ config, log: log("doctor"), clock, random: systemRandom });
  try {
    const { namespace, version, signal } = options;
    return await examineCluster({ client, namespace, version, nowMs: clock.now(), signal });
  } finally {
    client.close();
  }
}

function seconds(text: string): number {
  const number = Number(text);
  if (!(number > 0 && number <= 3600)) throw new InvalidArgumentError("Write seconds, 3600 at most.");
  return number;
}
