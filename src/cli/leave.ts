import { Command } from "commander";
import { systemRandom } from "#base/random";
import type { CliContext } from "./context.ts";

interface Flags {
  readonly kubeconfig?: string;
  readonly namespace: string;
}

/** `veil leave`: what has to happen before an installation is deleted. `helm uninstall` runs it in the cluster. */
export function leaveCommand(context: CliContext): Command {
  return new Command("leave")
    .description("un-enrol all pods of a cluster and take the CNI plugin off its nodes, before Veil is deleted")
    .option("--kubeconfig <file>", "how to reach Kubernetes (default: the pod's own service account)")
    .option("--namespace <namespace>", "where Veil is installed", "veil-system")
    .action(async ({ kubeconfig, namespace }: Flags) => {
      const { leave } = await import("#install");
      const { inClusterConfig, KubeClient, loadKubeConfig } = await import("#kube");
      const { clock, env, signal, out } = context;
      const config = kubeconfig === undefined ? await inClusterConfig(env) : await loadKubeConfig(kubeconfig);
      const client = new KubeClient({ config, log: context.log("leave"), clock, random: systemRandom });
      try {
        await leave({ client, namespace, clock, signal, note: (line) => out(`${line}\n`) });
      } finally {
        client.close();
      }
    });
}
