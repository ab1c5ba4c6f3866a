import { Command, InvalidArgumentError } from "commander";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { runRole, type CliContext } from "./context.ts";

const DRAIN_MS = 2_000;

interface Options {
  readonly node: string;
  readonly kubeconfig: string;
  readonly state: string;
  readonly address: string;
  readonly podCidr: string;
  readonly serviceCidr: string;
  readonly dns: string;
  readonly port: number;
  readonly cniSocket: string;
}

/** `veil lab kubelet`: runs the pods of one node. Started by the lab inside the node's namespaces. */
export function labKubeletCommand(context: CliContext): Command {
  return new Command("kubelet")
    .description("runs the pods of one node (the lab starts it inside the node's namespaces)")
    .requiredOption("--node <name>", "name of the Node object")
    .requiredOption("--kubeconfig <file>", "credentials of the node")
    .requiredOption("--state <folder>", "what must outlive a restart")
    .requiredOption("--address <ip>", "the node's own address")
    .requiredOption("--pod-cidr <range>", "addresses of the node's pods")
    .option("--service-cidr <range>", "addresses of services", "10.96.0.0/16")
    .option("--dns <ip>", "address of the cluster's DNS", "10.96.0.10")
    .option("--port <port>", "port for logs and exec", portNumber, 10250)
    .option("--cni-socket <path>", "where the agent enrols pods before they start", "/run/veil/cni.sock")
    .action((options: Options) => run(context, options));
}

async function run(context: CliContext, options: Options): Promise<void> {
  const [{ loadKubeConfig }, { Kubelet, ServiceNetwork }] = await Promise.all([import("#kube"), import("#lab")]);
  const { kubeconfig, ...node } = options;
  const config = await loadKubeConfig(kubeconfig);
  const parts = {
    config,
    log: context.log("kubelet").child({ node: options.node }),
    // Nothing that waits keeps a kubelet alive which has drained: its pods go on without it.
    clock: systemClock({ unref: true }),
    random: systemRandom,
  };
  const environment = podEnvironment(context);
  const kubelet = new Kubelet({ ...node, ...parts, version: "v1.34.0-veil", environment });

  const services = new ServiceNetwork({ ...node, ...parts });
  await kubelet.resume(); // before anything that needs the API: pods are looked after while it is away
  await runRole(context, [services, kubelet], DRAIN_MS);
}

/** What every container starts with: `veil` is on its path, and finds its compiled programs. */
function podEnvironment({ env, program }: CliContext): Record<string, string> {
  const bin = program.slice(0, program.lastIndexOf("/"));
  const kept = ["HOME", "LANG", "NODE_COMPILE_CACHE", "VEIL_LAB"].flatMap((name) => {
    const value = env[name];
    return value === undefined ? [] : [[name, value] as const];
  });
  return {
    PATH: `/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:${bin}`,
    ...Object.fromEntries(kept),
  };
}

function portNumber(text: string): number {
  const port = Number(text);
  if (!/^\d+$/.test(text) || port < 1 || port > 65_535) throw new InvalidArgumentError("It is no port.");
  return port;
}
