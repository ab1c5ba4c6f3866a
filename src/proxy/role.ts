import { deadline, every, type Clock } from "#base/clock";
import { messageOf, type CodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import { LogScopes, type Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import { ACCESS_LEVELS, type AccessLevel } from "#model/access-log";
import { CertificateWatcher } from "#identity";
import { connectSeqpacket, isPortShared, openNetns } from "#linux";
import { PageServer, rpcTransport } from "#rpc";
import { TYPE_ADDRESS, TYPE_AUTHORIZATION, VERSION_KEY, XdsClient, xdsMetrics, type XdsClientOptions } from "#xds";
import type { Crl } from "#x509";
import { Addresses } from "./addresses.ts";
import { ANY_ADDRESS } from "./any-address.ts";
import { handleAdmin, handleMetrics, handleReady, type AdminParts } from "./admin.ts";
import { dumpState } from "./config-dump.ts";
import { INBOUND_PORT, ownPorts, type ProxyConfig } from "./config.ts";
import { CrlFile } from "./crl-file.ts";
import { proxyError } from "./errors.ts";
import { ABSENT_MS, type Answer } from "./knowledge.ts";
import type { RecordOutput } from "./line-output.ts";
import type { ThreadSamples } from "./looks.ts";
import { dnsResolver } from "./names.ts";
import { Policies } from "./policies.ts";
import { Pods } from "./pods.ts";
import { processSamples } from "./process-samples.ts";
import { ProfilePages } from "./profile-page.ts";
import { recordProfile } from "./profiler.ts";
import { Readiness } from "./readiness.ts";
import { Records } from "./records.ts";
import type { View } from "./route.ts";
import { selfPod, serveSelf } from "./self-pod.ts";
import { DataThreads, type ThreadPort } from "./threads.ts";
import { Traffic } from "./traffic.ts";
import { ZdsClient } from "./zds-client.ts";

/** What a proxy is told. */
export interface ProxyOptions {
  readonly config: ProxyConfig;
  /** The agent's socket: addresses and certificates. */
  readonly agentSocket: string;
  readonly zdsSocket: string;
  readonly threads: number;
  readonly drainMs: number;
  readonly ports: { readonly admin: number; readonly metrics: number; readonly ready: number };
  /** How the proxy names itself to the control plane. */
  readonly instance: { readonly ip: string; readonly pod: string; readonly namespace: string };
  /**
   * The proxy's own service account, when it runs as a pod whose name and namespace `instance` has: then its metrics can be
   * scraped through tunnels to its own port 15008.
   */
  readonly serviceAccount?: string | undefined;
  readonly version: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Where the access log goes. */
  readonly output: RecordOutput;
  /** Asked by `POST /quitquitquit`. */
  readonly quit: () => void;
  /** Aborted by whoever does not want to wait for the end of a drain: what is left is reset at once. */
  readonly hurry: AbortSignal;
}

/** A proxy, not started yet. */
export interface Proxy {
  /** In the order of their start. */
  readonly services: readonly Service[];
  /** Rejects when the proxy cannot go on and its process has to end. */
  readonly failure: Promise<never>;
}

/** Between two tries to reach the agent, which is on the same node. */
const RECONNECT = { initialMs: 10, maxMs: 1_000 } as const;
const CHECK_THREADS_MS = 5_000;

/** Puts a proxy together, around data threads that have been started. */
export function assembleProxy(options: ProxyOptions, ports: readonly ThreadPort[]): Proxy {
  const failure = Promise.withResolvers<never>();
  failure.promise.catch(() => undefined); // seen by whoever runs the proxy, once it does
  const parts = assemble(options, ports, (error) => {
    options.log.fatal({ error: messageOf(error) }, "proxy cannot go on");
    failure.reject(error);
  });
  const { log, quit } = options;
  const { scopes, threads } = parts;
  scopes.onChange(() => {
    threads.setAccessLevel(accessThreshold(scopes));
  });
  const readiness = readinessOf(options, parts);
  const admin: AdminParts = {
    scopes,
    quit,
    readiness: () => readiness.look(),
    samples: async () => samples(options, parts),
    dump: async () => dump(options, parts),
    connections: async () => threads.connections(),
    pool: async () => threads.pool(),
    profiles: profilePages(options, threads),
    why: {
      view: () => viewOf(options, parts),
      findPod: (name) => parts.pods.find(name),
      certificate: ({ identity }) => parts.certificates.get(identity),
      records: parts.records,
    },
  };
  const http = (name: string, where: { host: string; port: number }, handle: typeof handleAdmin): PageServer =>
    new PageServer({ name, ...where, log, handle: async (request) => handle(admin, request) });
  const servers = [
    http("admin", { host: "127.0.0.1", port: options.ports.admin }, handleAdmin),
    http("metrics", { host: ANY_ADDRESS, port: options.ports.metrics }, handleMetrics),
    http("readiness", { host: ANY_ADDRESS, port: options.ports.ready }, handleReady),
  ];
  const { xds, certificates, traffic, zds } = parts;
  const lists = crlServices(options, parts.threads);
  // Drained in reverse: no more pods, then the connections, and only then what those may still need, and the pages.
  const services = [threadService(options, parts), ...lists, ...servers, xds, certificates, traffic, zds];
  return { services, failure: failure.promise };
}

/** Follows the file of revocation lists, when there is one: before any pod is served. */
function crlServices({ config, clock, log }: ProxyOptions, threads: DataThreads): Service[] {
  const { crlFile: path } = config;
  if (path === undefined) return [];
  const spread = async (crls: readonly Crl[]): Promise<void> => threads.crls(crls.map(({ der }) => der));
  return [new CrlFile({ path, spread, clock, log: log.child({ component: "crl" }) })];
}

/** Profiles of this thread and of the data threads together. */
function profilePages({ clock }: ProxyOptions, threads: DataThreads): ProfilePages {
  return new ProfilePages({
    clock,
    record: async (request, signal) => {
      const main = recordProfile(request, "main", { clock, signal });
      return (await Promise.all([main.then((one) => [one]), threads.profile(request)])).flat();
    },
  });
}

interface Parts {
  readonly scopes: LogScopes;
  readonly threads: DataThreads;
  readonly addresses: Addresses;
  readonly policies: Policies;
  readonly records: Records;
  readonly xds: XdsClient;
  readonly xdsCells: CellSet;
  readonly certificates: CertificateWatcher;
  readonly pods: Pods;
  readonly zds: ZdsClient;
  readonly traffic: Traffic;
}

function assemble(options: ProxyOptions, ports: readonly ThreadPort[], failed: (error: CodedError) => void): Parts {
  const { config, clock, random, log, drainMs } = options;
  const scopes = new LogScopes(log);
  const transport = rpcTransport({ target: `unix://${options.agentSocket}` });
  const records = new Records(options.output, log);
  const threads = new DataThreads({
    ports,
    clock,
    ask: async (name) => ask(xds, name, { clock, holdMs: config.holdMs }),
    resolve: dnsResolver(),
    records: async (batch) => records.take(batch),
    failed,
  });
  const addresses = new Addresses({ spread: async (change, synced) => threads.addresses(change, synced), clock, log });
  const policies = new Policies({ spread: async (change) => threads.policies(change), log });
  const xdsCells = new CellSet(xdsMetrics);
  const xds: XdsClient = new XdsClient({
    transport,
    clock,
    random,
    log: scopes.child("xds"),
    node: xdsNode(options),
    types: [
      { typeUrl: TYPE_ADDRESS, mode: "wildcard" },
      { typeUrl: TYPE_AUTHORIZATION, mode: "wildcard" },
    ],
    onUpdate: async (update) => (update.typeUrl === TYPE_ADDRESS ? addresses : policies).take(update),
    reconnect: RECONNECT,
    metrics: xdsCells,
  });
  const certificates = new CertificateWatcher({ transport, clock, random, log: scopes.child("identity") });
  const pods = new Pods({
    config,
    threads,
    self: selfPod(options)?.identity,
    certificates,
    clock,
    drainMs,
    synced: () => addresses.synced,
    isServedByOther,
    log: scopes.child("pods"),
  });
  const traffic = new Traffic({ threads, clock, log, hurry: options.hurry });
  const zds = new ZdsClient({
    connect: () => connectSeqpacket(options.zdsSocket),
    pods,
    clock,
    random,
    log: scopes.child("zds"),
  });
  return { scopes, threads, addresses, policies, records, xds, xdsCells, certificates, pods, traffic, zds };
}

/** How this proxy calls itself. */
function xdsNode({ config, instance, version }: ProxyOptions): XdsClientOptions["node"] {
  const { ip, pod, namespace } = instance;
  return {
    id: `ztunnel~${ip}~${pod}.${namespace}~${namespace}.svc.cluster.local`,
    metadata: {
      NAME: pod,
      NAMESPACE: namespace,
      INSTANCE_IPS: ip,
      NODE_NAME: config.node,
      [VERSION_KEY]: version,
    },
  };
}

/** Whether another proxy, which this one is to replace, takes the connections of a namespace. */
function isServedByOther(netnsFd: number): boolean {
  try {
    using netns = openNetns(`/proc/self/fd/${netnsFd}`);
    return isPortShared(netns, { ip: parseIp(ANY_ADDRESS), port: INBOUND_PORT });
  } catch {
    return false; // to listen there fails, too, and says why
  }
}

/** Asks the control plane, through the agent. What it finds has been put in force by then. */
async function ask(xds: XdsClient, name: string, { clock, holdMs }: { clock: Clock; holdMs: number }): Promise<Answer> {
  // A little less than the connection is held, so that the answer is this one and not the end of patience.
  const patienceMs = Math.max(0, holdMs - ABSENT_MS / 4);
  const limit = deadline(clock, patienceMs, {
    reason: proxyError("PROXY_CONTROL_PLANE", `nobody answered who ${name} is`),
  });
  try {
    return (await xds.find(TYPE_ADDRESS, name, limit.signal)) === undefined ? "absent" : "present";
  } catch {
    return "unavailable"; // the reason is the same for every connection that waits: it is refused
  } finally {
    limit.clear();
  }
}

/** The threads, and what feeds them once they run. */
function threadService(options: ProxyOptions, parts: Parts): Service {
  const { clock, log } = options;
  const { scopes, threads, pods, certificates, xds, addresses } = parts;
  const ended = new AbortController();
  const give = (what: Promise<void>): void => {
    what.catch((error: unknown) => {
      if (!ended.signal.aborted) log.error({ error: messageOf(error) }, "change not in force");
    });
  };
  return {
    name: "data threads",
    start: async (signal) => {
      signal.throwIfAborted();
      threads.start();
      threads.setAccessLevel(accessThreshold(scopes));
      await threads.ping(); // they run
      const self = selfPod(options);
      if (self !== undefined) await serveSelf(self, threads, log);
      pods.start();
      const unlisten = certificates.onChange((id) => {
        const identity = certificates.get(id);
        if (identity !== undefined) give(threads.certificate(identity));
      });
      // A thread that hangs is found out by not answering.
      const stopChecks = every(clock, CHECK_THREADS_MS, () => {
        give(threads.ping());
      });
      ended.signal.addEventListener("abort", () => {
        unlisten();
        stopChecks();
      });
      give(xds.whenWarm(ended.signal).then(async () => addresses.markSynced()));
    },
    drain: async () => {
      ended.abort(new Error("draining"));
      await threads.end();
    },
  };
}

function viewOf({ config, clock, random }: ProxyOptions, { addresses, policies }: Parts): View {
  return {
    table: addresses.table,
    policies: policies.index,
    synced: addresses.synced,
    network: config.network,
    clusterRanges: config.clusterRanges,
    propagationBoundMs: config.propagationBoundMs,
    originalSource: config.originalSource,
    monotonicMs: clock.monotonic(),
    ownPorts: ownPorts(config),
    isAbsent: () => false,
    resolved: () => undefined,
    unit: () => random.unit(),
  };
}

/** What of the log's levels counts for its scope `access`. */
function accessThreshold(scopes: LogScopes): AccessLevel {
  const level = scopes.level("access");
  if (level === "silent") return "off";
  if (level === "fatal") return "error";
  return ACCESS_LEVELS.find((known) => known === level) ?? "debug";
}

function readinessOf({ config }: ProxyOptions, { addresses, pods, traffic, records }: Parts): Readiness {
  return new Readiness({
    missing: () =>
      traffic.draining ? [] : [...(addresses.synced ? [] : ["the first snapshot of addresses"]), ...pods.pending()],
    obstacles: () => [
      ...(traffic.draining ? ["nothing: it is shutting down"] : []),
      ...(config.recordsRequired && records.isStalled ? ["a reader of the access log"] : []),
    ],
  });
}

async function samples({ version }: ProxyOptions, parts: Parts): Promise<ThreadSamples> {
  const { threads, xdsCells, pods, addresses } = parts;
  const plain = (name: string, value: number, labels = {}): ThreadSamples[number] => ({ name, labels, value });
  return [
    ...(await threads.samples()),
    ...(await processSamples()),
    ...xdsCells.snapshot(),
    plain("istio_build", 1, { component: "ztunnel", tag: `veil-${version}` }),
    plain("workload_manager_active_proxy_count", pods.list().filter(({ served }) => served).length),
    plain("workload_manager_pending_proxy_count", pods.list().filter(({ served }) => !served).length),
    plain("workload_manager_proxies_started_total", pods.started),
    plain("workload_manager_proxies_stopped_total", pods.stopped),
    plain("veil_proxy_addresses", addresses.table.size),
  ];
}

async function dump({ config, version, clock }: ProxyOptions, parts: Parts): Promise<AsyncIterable<string>> {
  const { threads, addresses, pods, xds, certificates } = parts;
  const { table, synced } = addresses;
  const { policies, unusable } = parts.policies.index.all();
  return dumpState({
    clock,
    version,
    config,
    table,
    policies,
    pods: pods.list(),
    connections: await threads.connections(),
    certificates,
    more: {
      synced,
      controlPlaneConnected: xds.connected,
      agentConnected: certificates.connected,
      unusablePolicies: unusable,
    },
  });
}
