import { resolve } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import type { AgentOptions } from "#agent";
import { findHostPort, parseCidr, type Cidr } from "#base/ip";
import { LOG_LEVELS, type LogLevel } from "#base/log";
import { systemClock } from "#base/clock";
import { systemRandom } from "#base/random";
import { DEFAULT_TRUST_BUNDLE } from "#model/authority-objects";
import { ENROL_LABELS } from "#model/enrol-labels";
import type { StrictMode } from "#wireguard";
import { runRole, trueOrFalse, type CliContext } from "./context.ts";

const DRAIN_MS = 3000;
/** Where the agent leaves what the CNI plugin asks the API with. */
export const CNI_CREDENTIALS = "/run/veil/cni-api.json";

interface HostPort {
  readonly host: string;
  readonly port: number;
}

interface AgentFlags {
  readonly kubeconfig?: string;
  readonly namespace: string;
  readonly node: string;
  readonly controller: string;
  readonly controllerName?: string;
  readonly trustBundle: string;
  readonly enrolLabels: readonly string[];
  readonly agentSocket: string;
  readonly zdsSocket: string;
  readonly cniSocket: string;
  readonly cniConfDir?: string;
  readonly cniBinDir: string;
  readonly cniPlugin: string;
  readonly cniCredentials: string;
  readonly cniAccount?: string;
  readonly cniStrict: boolean;
  readonly podNetnsDir?: string;
  readonly tokenFile: string;
  readonly trustDomain: string;
  readonly clusterId: string;
  readonly metricsListen: HostPort;
  readonly ztunnelListen: HostPort | "none";
  readonly rootFile: string;
  readonly unenrolDeadline: number;
  readonly dnsCapture: boolean;
  readonly wireguard: "off" | "on";
  readonly wireguardProgram: string;
  readonly wireguardBackend: "auto" | "userspace";
  readonly wireguardStrict: StrictMode;
  readonly wireguardDouble: boolean;
  readonly wireguardRanges: readonly Cidr[];
  readonly logLevel: LogLevel;
}

const WIREGUARD_BACKEND = new Option(
  "--wireguard-backend <kind>",
  "the kernel where it can, or the program in any case",
)
  .choices(["auto", "userspace"])
  .default("auto");
const WIREGUARD_STRICT = new Option(
  "--wireguard-strict <mode>",
  "drop, or count, what would leave this node's pods in clear for others",
)
  .choices(["off", "audit", "on"])
  .default("off");

/** `veil agent`: enrols the pods of a node and keeps its proxy supplied. */
export function agentCommand(context: CliContext, version: string): Command {
  const { env } = context;
  return new Command("agent")
    .description("enrol this node's pods, give its proxy addresses and certificates")
    .option("--kubeconfig <file>", "how to reach Kubernetes (default: the pod's own service account)")
    .option("--namespace <namespace>", "where Veil is installed", env["POD_NAMESPACE"] ?? "veil-system")
    .addOption(new Option("--node <name>", "this node's name").env("NODE_NAME").makeOptionMandatory())
    .option("--controller <address>", "the controller", "https://veil-controller.veil-system.svc:15012")
    .option("--controller-name <name>", "the name in the controller's certificate (default: that of its address)")
    .option("--trust-bundle <name>", "ConfigMap with the roots of its certificate", DEFAULT_TRUST_BUNDLE)
    .option(
      "--enrol-labels <names>",
      "labels by which pods are enrolled, with commas between; others are somebody else's",
      enrolLabels,
      ENROL_LABELS,
    )
    .option("--agent-socket <path>", "gRPC for this node's proxy", "/run/veil/agent.sock")
    .option("--zds-socket <path>", "where the proxy gets its pods", "/var/run/ztunnel/ztunnel.sock")
    .option("--cni-socket <path>", "where the CNI plugin announces pods", "/run/veil/cni.sock")
    .option("--cni-conf-dir <folder>", "the node's CNI configuration: keep the plugin in it (default: leave it alone)")
    .option("--cni-bin-dir <folder>", "the node's CNI plugins", "/opt/cni/bin")
    .option("--cni-plugin <file>", "the plugin that is copied there", resolve(context.program, "../../cni/veil-cni"))
    .option("--cni-credentials <file>", "with it the plugin asks the API while the agent is away", CNI_CREDENTIALS)
    .option("--cni-account <name>", "service account whose token they are (default: the agent's own, while it lives)")
    .option("--cni-strict", "no pod at all starts while the agent is away", false)
    .option("--pod-netns-dir <folder>", "files named by pod UID that hold pods' namespaces (default: search /proc)")
    .option("--token-file <file>", "own token for the controller", "/var/run/secrets/tokens/istio-token")
    .option("--trust-domain <name>", "trust domain of all identities", env["TRUST_DOMAIN"] ?? "cluster.local")
    .option("--cluster-id <name>", "name of this cluster", env["CLUSTER_ID"] ?? "Kubernetes")
    .option("--metrics-listen <host:port>", "metrics and health", hostPort, { host: "0.0.0.0", port: 9965 })
    .option("--ztunnel-listen <host:port>", "gRPC (TLS) for another ztunnel, or none", hostPortOrNone, {
      host: "127.0.0.1",
      port: 15_012,
    })
    .option("--root-file <file>", "where the root of that port is written", "/run/veil/agent-root.pem")
    .option("--unenrol-deadline <seconds>", "how long connections may go on after a pod's label went", seconds, 3600)
    .addOption(
      new Option(
        "--dns-capture <bool>",
        "redirect the DNS questions of pods that do not say (the proxy must answer them)",
      )
        .env("AMBIENT_DNS_CAPTURE")
        .argParser(trueOrFalse)
        .default(true),
    )
    .addOption(new Option("--wireguard <mode>", "tunnels between the nodes").choices(["off", "on"]).default("off"))
    .option("--wireguard-program <file>", "what runs them where the kernel cannot", "wireguard-go")
    .addOption(WIREGUARD_BACKEND)
    .addOption(WIREGUARD_STRICT)
    .option(
      "--wireguard-double",
      "send what mutual TLS protects through the tunnels, too: it is encrypted twice",
      false,
    )
    .option("--wireguard-ranges <cidrs>", "ranges of all pods (default: those of the nodes that are known)", cidrs, [])
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .action(async (flags: AgentFlags) => run(context, flags, version));
}

async function run(context: CliContext, flags: AgentFlags, version: string): Promise<void> {
  const { createAgent } = await import("#agent");
  const { directoryFinder, procFinder } = await import("#enrolment");
  const { inClusterConfig, KubeClient, loadKubeConfig } = await import("#kube");
  const { keepTidy } = await import("#linux");
  const { clock, env } = context;
  const log = context.log("agent", flags.logLevel);
  const { kubeconfig, namespace, node, controller, tokenFile, trustDomain, clusterId, podNetnsDir, rootFile } = flags;
  const config = kubeconfig === undefined ? await inClusterConfig(env) : await loadKubeConfig(kubeconfig);
  const ztunnel = flags.ztunnelListen === "none" ? undefined : { ...flags.ztunnelListen, rootFile };
  const agent = createAgent({
    client: new KubeClient({ config, log, clock, random: systemRandom }),
    namespace,
    node,
    instance: { ip: env["INSTANCE_IP"] ?? "1.1.1.1", pod: env["POD_NAME"] ?? `veil-agent-${node}`, version },
    controller,
    controllerName: flags.controllerName,
    trustBundle: flags.trustBundle,
    enrolLabels: flags.enrolLabels,
    tokenFile,
    trustDomain,
    clusterId,
    sockets: { agent: flags.agentSocket, zds: flags.zdsSocket, cni: flags.cniSocket },
    cniInstall: cniInstall(flags),
    finder: podNetnsDir === undefined ? procFinder() : directoryFinder(podNetnsDir),
    status: flags.metricsListen,
    ztunnel,
    times: { drainMs: flags.unenrolDeadline * 1000 },
    dnsCapture: flags.dnsCapture,
    wireguard: wireguardOptions(flags),
    clock,
    random: systemRandom,
    log,
  });
  log.info({ node, server: config.server, controller }, "agent starts");
  keepTidy({ clock: systemClock({ unref: true }) });
  await runRole(context, agent.services, DRAIN_MS);
}

function cniInstall(flags: AgentFlags): AgentOptions["cniInstall"] {
  const { cniConfDir: confDir, cniBinDir: binDir, cniPlugin: plugin, cniAccount: account } = flags;
  if (confDir === undefined) return undefined;
  return { confDir, binDir, plugin, strict: flags.cniStrict, credentials: flags.cniCredentials, account };
}

function wireguardOptions(flags: AgentFlags): AgentOptions["wireguard"] {
  const { wireguard, wireguardProgram: program, wireguardStrict: strict, wireguardRanges: clusterRanges } = flags;
  const double = flags.wireguardDouble;
  const userspace = flags.wireguardBackend === "userspace";
  return wireguard === "off" ? undefined : { program, userspace, strict, double, clusterRanges };
}

function cidrs(text: string): readonly Cidr[] {
  try {
    return text.split(",").map(parseCidr);
  } catch {
    throw new InvalidArgumentError("Write prefixes with commas between, for example 10.244.0.0/16.");
  }
}

function hostPort(text: string): HostPort {
  const found = findHostPort(text);
  if (found === undefined) throw new InvalidArgumentError("Write host:port, for example 0.0.0.0:9965.");
  return found;
}

function hostPortOrNone(text: string): HostPort | "none" {
  return text === "none" ? text : hostPort(text);
}

function enrolLabels(text: string): readonly string[] {
  const names = text.split(",");
  if (!names.every((name) => ENROL_LABELS.includes(name))) {
    throw new InvalidArgumentError(`They can be ${ENROL_LABELS.join(", ")}.`);
  }
  return names;
}

function seconds(text: string): number {
  if (!/^\d{1,7}$/.test(text)) throw new InvalidArgumentError("Write a whole number of seconds.");
  return Number(text);
}
