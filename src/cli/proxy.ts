import { existsSync, readFileSync } from "node:fs";
import { flushCompileCache } from "node:module";
import { availableParallelism } from "node:os";
import { Command, InvalidArgumentError, Option } from "commander";
import { sleep, systemClock } from "#base/clock";
import { explain, findCodedError } from "#base/errors";
import { parseCidr, type Cidr } from "#base/ip";
import { LOG_LEVELS, type LogLevel } from "#base/log";
import type { LineOutput, ProxyConfig } from "#proxy";
import type { AccessFormat } from "#model/access-log";
import { systemRandom } from "#base/random";
import { runRole, trueOrFalse, type CliContext } from "./context.ts";

interface ProxyFlags {
  readonly node: string;
  readonly agentSocket: string;
  readonly zdsSocket: string;
  readonly threads: number;
  readonly clusterRanges: readonly Cidr[] | undefined;
  readonly trustDomain: string;
  readonly clusterId: string;
  readonly network: string;
  readonly originalSource: "on" | "off";
  readonly baggage: "on" | "off";
  readonly crlFile?: string;
  readonly drain: number;
  /** In bytes. */
  readonly memoryLimit: number | undefined;
  readonly adminPort: number;
  readonly metricsPort: number;
  readonly readyPort: number;
  readonly logLevel: LogLevel;
  readonly logFormat: AccessFormat;
  readonly records: "counted" | "required";
  readonly dnsCapture: boolean;
  readonly clusterDomain: string;
  /** Set in the process that does the work: the pid of its supervisor. */
  readonly childOf: number;
}

/** `veil proxy`: the data path of a node. */
export function proxyCommand(context: CliContext, version: string): Command {
  const { env } = context;
  return new Command("proxy")
    .description("carries the connections of this node's enrolled pods: mutual TLS between them")
    .addOption(new Option("--node <name>", "this node's name").env("NODE_NAME").makeOptionMandatory())
    .option("--agent-socket <path>", "where this node's agent gives addresses and certificates", "/run/veil/agent.sock")
    .option("--zds-socket <path>", "where this node's agent hands pods over", "/var/run/ztunnel/ztunnel.sock")
    .option("--threads <count>", "data threads", wholeNumber, availableParallelism())
    .option("--cluster-ranges <list>", "the cluster's own addresses, as 10.244.0.0/16,10.96.0.0/16", ranges)
    .option("--trust-domain <name>", "the identities' trust domain", env["TRUST_DOMAIN"] ?? "cluster.local")
    .option("--cluster-id <name>", "the cluster in workloads' names", env["CLUSTER_ID"] ?? "Kubernetes")
    .option("--network <name>", "the network this node is on", env["NETWORK"] ?? "")
    .addOption(
      new Option("--original-source <on|off>", "whether applications see their clients' addresses")
        .choices(["on", "off"])
        .default("on"),
    )
    .addOption(
      new Option("--baggage <on|off>", "whether answers to peers say who a pod is, and what peers say so is recorded")
        .choices(["on", "off"])
        .default("on"),
    )
    .addOption(
      new Option("--crl-file <path>", "revocation lists of the authorities, PEM or DER; followed while it runs").env(
        "CRL_PATH",
      ),
    )
    .option("--drain <seconds>", "how long connections may go on at the end", wholeNumber, 5)
    .option("--memory-limit <mib>", "take nothing new above nine tenths of this (default: the container's)", mebibytes)
    .option("--admin-port <port>", "admin, on loopback", wholeNumber, 15_000)
    .option("--metrics-port <port>", "metrics", wholeNumber, 15_020)
    .option("--ready-port <port>", "readiness", wholeNumber, 15_021)
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .addOption(
      new Option("--log-format <format>", "how access records are written")
        .env("LOG_FORMAT")
        .choices(["plain", "json"])
        .default("plain"),
    )
    .addOption(
      new Option(
        "--records <counted|required>",
        "while nobody reads the access log: drop and count, or refuse what is new",
      )
        .choices(["counted", "required"])
        .default("counted"),
    )
    .addOption(
      new Option("--dns-capture <bool>", "answer the DNS questions of pods whose agent captures them")
        .env("ISTIO_META_DNS_CAPTURE")
        .argParser(trueOrFalse)
        .default(true),
    )
    .option("--cluster-domain <name>", "the domain of services' names", env["CLUSTER_DOMAIN"] ?? "cluster.local")
    .addOption(new Option("--child-of <pid>").argParser(wholeNumber).hideHelp().makeOptionMandatory())
    .action(async (flags: ProxyFlags) => {
      await runProxy(context, flags, version);
    });
}

/** The data path itself, in a child of the supervisor (main/supervisor.ts). */
async function runProxy(context: CliContext, flags: ProxyFlags, version: string): Promise<void> {
  const { dieWithParent } = await import("#linux");
  if (!dieWithParent(flags.childOf)) return;
  const { createProxy, LineOutput, proxyConfig, whenTold, DEFAULT_CLUSTER_RANGES, UNUSABLE_EXIT } =
    await import("#proxy");
  const { node, clusterId, trustDomain, network, agentSocket, zdsSocket, threads } = flags;
  const stop = new AbortController();
  const { env } = context;
  // Workers and listeners keep the process alive, not a timer that nobody waits for any more.
  const clock = systemClock({ unref: true });
  const drainMs = flags.drain * 1000;
  const output = new LineOutput(STANDARD_OUTPUT, clock);
  const { services, failure } = await createProxy({
    config: proxyConfig({
      node,
      clusterId,
      trustDomain,
      network,
      clusterRanges: flags.clusterRanges ?? DEFAULT_CLUSTER_RANGES,
      memoryLimitBytes: flags.memoryLimit,
      originalSource: flags.originalSource === "on",
      baggage: flags.baggage === "on",
      accessFormat: flags.logFormat,
      recordsRequired: flags.records === "required",
      crlFile: flags.crlFile,
      dns: await dnsConfig(context, flags),
    }),
    agentSocket,
    zdsSocket,
    threads: Math.max(1, threads),
    drainMs,
    ports: { admin: flags.adminPort, metrics: flags.metricsPort, ready: flags.readyPort },
    instance: {
      ip: env["INSTANCE_IP"] ?? "1.1.1.1",
      pod: env["POD_NAME"] ?? `ztunnel-${node}`,
      namespace: env["POD_NAMESPACE"] ?? "veil-system",
    },
    // Its own pod is known only with all three.
    serviceAccount: env["POD_NAME"] && env["POD_NAMESPACE"] ? env["SERVICE_ACCOUNT"] : undefined,
    version,
    clock,
    random: systemRandom,
    log: context.log("proxy", flags.logLevel),
    output,
    quit: () => {
      stop.abort(new Error("asked to quit"));
    },
    hurry: context.untilHurried(),
  });
  const signal = AbortSignal.any([context.signal, stop.signal]);
  flushCompileCache(); // who is killed writes none at its end: the next process is to find what this one has compiled
  // Everything is loaded: from here on it takes a word of the supervisor, not the start of a program.
  if (!(await whenTold(process.stdin, signal))) process.exit(0);
  try {
    await Promise.race([runRole({ ...context, signal }, services, drainMs), failure]);
    await lastWords(output, flags.records, context.untilHurried());
  } catch (error) {
    // Whatever still runs would keep a process alive that serves nobody: the supervisor starts the next one.
    context.note(`veil: ${explain(error)}\n`);
    process.exit(findCodedError(error)?.code === "RPC_LISTEN" ? UNUSABLE_EXIT : 1);
  }
}

const STANDARD_OUTPUT = 1;
/** How long the end waits for a reader of the access log, unless every record is required. */
const LAST_WORDS_MS = 2_000;

/** Waits for the reader of the access log, for a while, or until somebody is in a hurry. */
async function lastWords(output: LineOutput, records: ProxyFlags["records"], hurry: AbortSignal): Promise<void> {
  const clock = systemClock(); // one that keeps the process alive
  const enough = new AbortController();
  const signal = AbortSignal.any([enough.signal, hurry]);
  const patience = sleep(clock, records === "required" ? FOREVER_MS : LAST_WORDS_MS, signal).catch(() => undefined);
  await Promise.race([output.whenEmpty(), patience]);
  enough.abort();
}

const FOREVER_MS = 0x7fff_ffff;

const RESOLV_CONF = "/etc/resolv.conf";

/** Questions that the mesh cannot answer go where this process's own would go. */
async function dnsConfig(
  { env, log }: CliContext,
  { dnsCapture, clusterDomain }: ProxyFlags,
): Promise<ProxyConfig["dns"]> {
  if (!dnsCapture) return undefined;
  const { parseNameservers } = await import("#dns");
  const nameservers = parseNameservers(existsSync(RESOLV_CONF) ? readFileSync(RESOLV_CONF, "utf8") : "");
  if (nameservers.length === 0) log("proxy").warn({ file: RESOLV_CONF }, "no nameserver: names outside fail");
  return {
    nameservers,
    clusterDomain,
    preferredNamespace: env["PREFERED_SERVICE_NAMESPACE"] ?? "", // upstream's spelling
    ipv6: env["IPV6_ENABLED"] !== "false",
  };
}

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("It is no whole number.");
  return Number(text);
}

/** In bytes. */
function mebibytes(text: string): number {
  return wholeNumber(text) * 1024 * 1024;
}

function ranges(text: string): readonly Cidr[] {
  try {
    return text.split(",").map((range) => parseCidr(range.trim()));
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? `${error.message}.` : "It is no list of address ranges.");
  }
}
