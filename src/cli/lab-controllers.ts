import { Command } from "commander";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { runRole, type CliContext } from "./context.ts";

const DRAIN_MS = 2_000;

/** `veil lab controllers`: what makes pods out of Deployments and DaemonSets, and binds them to nodes. */
export function labControllersCommand(context: CliContext): Command {
  return new Command("controllers")
    .description("schedules pods and keeps Deployments, DaemonSets and EndpointSlices (the lab starts it)")
    .requiredOption("--kubeconfig <file>", "credentials of an administrator")
    .action(async ({ kubeconfig }: { kubeconfig: string }) => {
      const [{ loadKubeConfig }, { LabControllers }] = await Promise.all([import("#kube"), import("#lab")]);
      const config = await loadKubeConfig(kubeconfig);
      const log = context.log("controllers");
      const clock = systemClock({ unref: true });
      await runRole(context, [new LabControllers({ config, log, clock, random: systemRandom })], DRAIN_MS);
    });
}
