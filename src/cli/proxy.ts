import { existsSync, readFileSync } from "node:fs";
import { flushCompileCache } from "node:module";
import { Command } from "commander";
import { sleep, systemClock } from "#base/clock";
import { explain, findCodedError } from "#base/errors";
import type { LineOutput, ProxyConfig } from "#proxy";
import { systemRandom } from "#base/random";
import { runRole, type CliContext } from "./context.ts";
import { proxyOptions, type ProxyFlags } from "./proxy-options.ts";

/** `veil proxy`: the data path of a node. */
export function proxyCommand(context: CliContext, version: string): Command {
  const command = new Command("proxy").description(
    "carries the connections of this node's enrolled pods: mutual TLS between them",
  );
  for (const option of proxyOptions(context.env)) command.addOption(option);
  return command.action(async (flags: ProxyFlags) => {
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
  const drainMs = flags.drain;
  const output = new LineOutput(STANDARD_OUTPUT, clock);
  const { services, failure } = await createProxy({
    config: proxyConfig({
      node,
      clusterId,
      trustDomain,
      network,
      clusterRanges: flags.clusterRanges ?? DEFAULT_CLUSTER_RANGES,
      memoryLimitBytes: flags.memoryLimit,
      originalSource: flags.originalSource,
      baggage: flags.baggage,
      accessFormat: flags.logFormat,
      recordsRequired: flags.records === "required",
      crlFile: flags.crlFile,
      poolLimits: poolLimits(flags),
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
  if (output.isAbandoned) return;
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

/** Only what is given: the rest has the defaults of #hbone. */
function poolLimits({ tunnelsPerSession, sessionIdle }: ProxyFlags): ProxyConfig["poolLimits"] {
  return {
    ...(tunnelsPerSession !== undefined && { streamsPerSession: tunnelsPerSession }),
    ...(sessionIdle !== undefined && { idleMs: sessionIdle }),
  };
}
