import { availableParallelism } from "node:os";
import { InvalidArgumentError, Option } from "commander";
import { parseCidr, type Cidr } from "#base/ip";
import { LOG_LEVELS, type LogLevel } from "#base/log";
import type { AccessFormat } from "#model/access-log";
import { trueOrFalse, type CliContext } from "./context.ts";
import { drainMsWithin, parseDurationMs, parseThreads } from "./proxy-settings.ts";

/** What the options of `veil proxy` say. */
export interface ProxyFlags {
  readonly node: string;
  readonly agentSocket: string;
  readonly zdsSocket: string;
  readonly threads: number;
  readonly clusterRanges: readonly Cidr[] | undefined;
  readonly trustDomain: string;
  readonly clusterId: string;
  readonly network: string;
  readonly originalSource: boolean;
  readonly baggage: boolean;
  readonly crlFile?: string;
  /** In milliseconds. */
  readonly drain: number;
  readonly tunnelsPerSession: number | undefined;
  /** In milliseconds. */
  readonly sessionIdle: number | undefined;
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

type Env = CliContext["env"];

/** The options of `veil proxy`, with the variables of ztunnel's that say the same (docs/settings.md). */
export function proxyOptions(env: Env): readonly Option[] {
  return [...placeOptions(env), ...connectionOptions(env), ...outputOptions()];
}

/** Where it is, and whom it talks to. */
function placeOptions(env: Env): Option[] {
  const clusterId = env["ISTIO_META_CLUSTER_ID"] ?? env["CLUSTER_ID"] ?? "Kubernetes";
  return [
    new Option("--node <name>", "this node's name").env("NODE_NAME").makeOptionMandatory(),
    new Option("--agent-socket <path>", "where this node's agent gives addresses and certificates").default(
      "/run/veil/agent.sock",
    ),
    new Option("--zds-socket <path>", "where this node's agent hands pods over")
      .env("INPOD_UDS")
      .default("/var/run/ztunnel/ztunnel.sock"),
    new Option("--cluster-ranges <list>", "the cluster's own addresses, as 10.244.0.0/16,10.96.0.0/16").argParser(
      ranges,
    ),
    new Option("--trust-domain <name>", "the identities' trust domain").env("TRUST_DOMAIN").default("cluster.local"),
    new Option("--cluster-id <name>", "the cluster in workloads' names").default(clusterId),
    new Option("--cluster-domain <name>", "the domain of services' names")
      .env("CLUSTER_DOMAIN")
      .default("cluster.local"),
    new Option("--network <name>", "the network this node is on").env("NETWORK").default(""),
    new Option("--child-of <pid>").argParser(wholeNumber).hideHelp().makeOptionMandatory(),
  ];
}

/** How connections are carried. */
function connectionOptions(env: Env): Option[] {
  const cpus = processors(env);
  return [
    new Option("--threads <count>", "data threads: a number, a share of the processors (50%), or 0 for all")
      .env("ZTUNNEL_WORKER_THREADS")
      .argParser((text) => parseThreads(text, cpus))
      .default(cpus),
    new Option("--original-source <on|off>", "whether applications see their clients' addresses")
      .env("ENABLE_ORIG_SRC")
      .argParser(onOrOff)
      .default(true, "on"),
    new Option("--baggage <on|off>", "whether answers to peers say who a pod is, and what peers say so is recorded")
      .env("ENABLE_RESPONSE_BAGGAGE")
      .argParser(onOrOff)
      .default(true, "on"),
    new Option("--crl-file <path>", "revocation lists of the authorities, PEM or DER; followed while it runs").env(
      "CRL_PATH",
    ),
    new Option("--drain <time>", "how long connections may go on at the end, as 30 or 1m30s")
      .env("CONNECTION_TERMINATION_DEADLINE")
      .argParser(parseDurationMs)
      .default(drainMsWithin(env["TERMINATION_GRACE_PERIOD_SECONDS"]), "5s"),
    new Option("--tunnels-per-session <count>", "tunnels that share a session at most (default: 100)")
      .env("POOL_MAX_STREAMS_PER_CONNECTION")
      .argParser(positiveNumber),
    new Option("--session-idle <time>", "how long a session without tunnels is kept (default: 5m)")
      .env("POOL_UNUSED_RELEASE_TIMEOUT")
      .argParser(parseDurationMs),
    new Option(
      "--memory-limit <mib>",
      "take nothing new above nine tenths of this (default: the container's)",
    ).argParser(mebibytes),
    new Option("--dns-capture <bool>", "answer the DNS questions of pods whose agent captures them")
      .env("ISTIO_META_DNS_CAPTURE")
      .argParser(trueOrFalse)
      .default(true),
  ];
}

/** What it shows and writes. */
function outputOptions(): Option[] {
  return [
    new Option("--admin-port <port>", "admin, on loopback").argParser(wholeNumber).default(15_000),
    new Option("--metrics-port <port>", "metrics").argParser(wholeNumber).default(15_020),
    new Option("--ready-port <port>", "readiness").argParser(wholeNumber).default(15_021),
    new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"),
    new Option("--log-format <format>", "how access records are written")
      .env("LOG_FORMAT")
      .choices(["plain", "json"])
      .default("plain"),
    new Option(
      "--records <counted|required>",
      "while nobody reads the access log: drop and count, or refuse what is new",
    )
      .choices(["counted", "required"])
      .default("counted"),
  ];
}

/** What a share of the processors is of: of the container's limit, where it is told. */
function processors(env: CliContext["env"]): number {
  const limit = Number(env["ZTUNNEL_CPU_LIMIT"]);
  return Number.isInteger(limit) && limit > 0 ? limit : availableParallelism();
}

/** Our flags say on and off, upstream's variables true and false. */
function onOrOff(text: string): boolean {
  return text === "on" || text === "off" ? text === "on" : trueOrFalse(text);
}

function positiveNumber(text: string): number {
  const number = wholeNumber(text);
  if (number === 0) throw new InvalidArgumentError("It is at least 1.");
  return number;
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
