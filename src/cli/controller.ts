import { hostname } from "node:os";
import { Command, InvalidArgumentError, Option } from "commander";
import { findHostPort } from "#base/ip";
import { LOG_LEVELS, type LogLevel } from "#base/log";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { DEFAULT_TRUST_BUNDLE } from "#model/authority-objects";
import { runRole, type CliContext } from "./context.ts";

const DRAIN_MS = 5000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

interface Flags {
  readonly kubeconfig?: string;
  readonly namespace: string;
  readonly podName: string;
  readonly replicaApp: string;
  readonly listen: { host: string; port: number };
  readonly metricsListen: { host: string; port: number };
  readonly trustDomain: string;
  readonly trustBundle: string;
  readonly clusterId: string;
  readonly network: string;
  readonly clusterDomain: string;
  readonly rootNamespace: string;
  readonly enforceWaypoints: boolean;
  readonly nodeAccount?: readonly string[];
  readonly workloadLifeHours: number;
  readonly intermediateLifeDays: number;
  readonly rootLifeDays: number;
  readonly wireguard: "off" | "on";
  readonly logLevel: LogLevel;
}

/** `veil controller`: watches Kubernetes, serves workloads and certificates to the nodes. */
export function controllerCommand(context: CliContext): Command {
  return new Command("controller")
    .description("watch Kubernetes, own the certificate authority, tell the nodes who is where")
    .option("--kubeconfig <file>", "how to reach Kubernetes (default: the pod's own service account)")
    .option("--namespace <namespace>", "where Veil is installed", "veil-system")
    .addOption(
      new Option("--pod-name <name>", "own pod, to tell it from other replicas").default(hostname(), "the host's name"),
    )
    .option("--replica-app <name>", "label app of the pods in which the replicas run", "veil-controller")
    .addOption(listenOption("--listen <host:port>", "gRPC for agents (TLS)", 15012))
    .addOption(listenOption("--metrics-listen <host:port>", "metrics and health", 15014))
    .option("--trust-domain <name>", "trust domain of all identities", "cluster.local")
    .option("--trust-bundle <name>", "ConfigMap with the roots, in each namespace", DEFAULT_TRUST_BUNDLE)
    .option("--cluster-id <name>", "name of this cluster", "Kubernetes")
    .option("--network <name>", "network that the pods' addresses belong to", "")
    .option("--cluster-domain <name>", "domain of services", "cluster.local")
    .option("--root-namespace <name>", "policies in it are about the whole mesh", "istio-system")
    .option("--enforce-waypoints", "workloads behind a waypoint let in nobody but it and whom policies allow", false)
    .option(
      "--node-account <namespace/name...>",
      "service accounts that act for their node (default: Veil's agent, ztunnel)",
    )
    .option("--workload-life-hours <n>", "life of the certificates of workloads", wholeNumber, 24)
    .option("--intermediate-life-days <n>", "life of the intermediate, when one is made", wholeNumber, 90)
    .option("--root-life-days <n>", "life of the root, when one is made", wholeNumber, 365)
    .addOption(
      new Option("--wireguard <mode>", "rotate the keys of tunnels between the nodes")
        .choices(["off", "on"])
        .default("off"),
    )
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .action(async (flags: Flags) => run(context, flags));
}

async function run(context: CliContext, flags: Flags): Promise<void> {
  const { createController } = await import("#controller");
  const { inClusterConfig, KubeClient, loadKubeConfig } = await import("#kube");
  const { keepTidy } = await import("#linux");
  const log = context.log("controller", flags.logLevel);
  const { clock } = context;
  const random = systemRandom;
  const config =
    flags.kubeconfig === undefined ? await inClusterConfig(context.env) : await loadKubeConfig(flags.kubeconfig);
  const { trustDomain, clusterId, network, clusterDomain, rootNamespace, enforceWaypoints } = flags;
  const { namespace, podName, replicaApp, listen, metricsListen } = flags;
  const controller = createController({
    client: new KubeClient({ config, log, clock, random }),
    cluster: { trustDomain, clusterId, network, clusterDomain, rootNamespace, enforceWaypoints },
    namespace,
    podName,
    trustBundle: flags.trustBundle,
    replicaApp,
    listen,
    wireguard: flags.wireguard === "on",
    status: metricsListen,
    lives: {
      workloadMs: flags.workloadLifeHours * HOUR_MS,
      intermediateMs: flags.intermediateLifeDays * DAY_MS,
      rootMs: flags.rootLifeDays * DAY_MS,
    },
    ...(flags.nodeAccount !== undefined && { nodeAccounts: flags.nodeAccount }),
    clock,
    random,
    log,
  });
  log.info({ server: config.server, trustDomain, clusterId }, "controller starts");
  keepTidy({ clock: systemClock({ unref: true }) });
  await runRole(context, controller.services, DRAIN_MS);
}

function listenOption(flags: string, description: string, port: number): Option {
  const host = "0.0.0.0";
  return new Option(flags, description).argParser(hostPort).default({ host, port }, `${host}:${port}`);
}

function hostPort(text: string): { host: string; port: number } {
  const found = findHostPort(text);
  if (found === undefined) throw new InvalidArgumentError("Write host:port, for example 0.0.0.0:15012.");
  return found;
}

function wholeNumber(text: string): number {
  if (!/^[1-9]\d{0,4}$/.test(text)) throw new InvalidArgumentError("Write a whole number from 1 to 99999.");
  return Number(text);
}
