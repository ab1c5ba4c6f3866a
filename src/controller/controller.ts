import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import {
  Authority,
  CallerAuthenticator,
  caMetrics,
  certificateServiceRoutes,
  DEFAULT_NODE_ACCOUNTS,
  SecretBackend,
  ServingCertificate,
  type AuthorityLives,
} from "#ca";
import type { Cluster } from "#discovery";
import type { KubeClient } from "#kube";
import { DEFAULT_TRUST_BUNDLE, OWN_TRUST_BUNDLE } from "#model/authority-objects";
import { PageServer, RpcServer, statusPages } from "#rpc";
import { ResourceCache, xdsMetrics, XdsServer } from "#xds";
import { Catalog } from "./catalog.ts";
import { Election, type ElectionTimes } from "./election.ts";
import { LeaderClient } from "./leader-client.ts";
import { controllerMetrics } from "./metrics.ts";
import { Neighbours } from "./neighbours.ts";
import { Peers, type Peer } from "./peers.ts";
import { LivePods } from "./pod-directory.ts";
import { PropagationService } from "./propagation.ts";
import { warnOnOwnPod } from "./own-event.ts";
import { WireguardBarrier } from "./wireguard-barrier.ts";
import { TrustBundles, type TrustBundlesOptions } from "./trust-bundles.ts";

/** What is under way when the controller is told to stop may take so long before the lease is let go. */
const RELEASE_MS = 2_000;

/** What a controller is made of. */
export interface ControllerOptions {
  readonly client: KubeClient;
  readonly cluster: Cluster;
  /** Namespace of Veil itself, where the authority's Secret is. */
  readonly namespace: string;
  /** Name of the controller's own pod. */
  readonly podName: string;
  /** Pods in the same namespace whose label `app` says this are the other replicas. Default `veil-controller`. */
  readonly replicaApp?: string;
  readonly listen: { readonly host: string; readonly port: number };
  readonly status: { readonly host: string; readonly port: number };
  /** `namespace/name` of the service accounts that act for nodes. Default: those of Veil's agent and of ztunnel. */
  readonly nodeAccounts?: readonly string[];
  /** Name of the ConfigMaps with the roots. Default `istio-ca-root-cert`, where the field's tools look. */
  readonly trustBundle?: string;
  /** Whether there are tunnels between the nodes, whose keys rotate. Default: no. */
  readonly wireguard?: boolean;
  /** Of what the authority signs from now on. */
  readonly lives?: Partial<AuthorityLives>;
  /** Of the election among the replicas; for tests. */
  readonly electionTimes?: ElectionTimes;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** A controller that was put together but not started: its services in the order of their start. */
export interface Controller {
  readonly services: readonly Service[];
  /** The port of gRPC, and that of metrics and health; 0 before the start. */
  readonly ports: () => { readonly rpc: number; readonly status: number };
}

/**
 * Puts the controller together. While it runs, the API may go away and come back: what is known is served meanwhile, and
 * the absence of a name is told only while the watches are alive.
 *
 *     status ─▶ election ─▶ authority ─▶ catalog (informers) ─▶ serving certificate ─▶ trust bundles ─▶ gRPC
 *
 * Every replica serves; the one that was elected also writes.
 */
export function createController(options: ControllerOptions): Controller {
  const { client, cluster, clock, random, log } = options;
  const cells = { xds: new CellSet(xdsMetrics), ca: new CellSet(caMetrics), own: new CellSet(controllerMetrics) };
  const shared = { client, clock, random, metrics: cells.own };
  const election = createElection(options, cells.own);
  const leader = new LeaderClient(client, election);
  const cache = new ResourceCache();
  const catalog = new Catalog({ ...shared, leader, cluster, cache, log: log.child({ component: "catalog" }) });
  const { namespace, podName } = options;
  const neighbours = new Neighbours({
    ...shared,
    pods: catalog.pods,
    namespace,
    podName,
    log: log.child({ component: "neighbours" }),
  });
  const authority = new Authority({
    backend: new SecretBackend({ client: leader, namespace: options.namespace }),
    mayWrite: () => leader.leading,
    trustDomain: cluster.trustDomain,
    ...(options.lives !== undefined && { lives: options.lives }),
    clock,
    random,
    log: log.child({ component: "authority" }),
    cells: cells.ca,
  });
  const bundles = createBundles(options, { leader, authority, pods: catalog.pods, metrics: cells.own });
  const { serving, rpc } = createServing(options, { cells, cache, catalog, authority });
  const started = new Started();
  const pages = statusPages({
    sources: [
      { table: xdsMetrics, cells: cells.xds },
      { table: caMetrics, cells: cells.ca },
      { table: controllerMetrics, cells: cells.own },
    ],
    pending: () => started.pending,
    more: { "/neighbours": () => neighbours.list() },
  });
  const status = new PageServer({ name: "status", ...options.status, log, handle: pages });
  return {
    services: [
      status,
      election,
      started.watch(patient(authority, { clock, random, log })),
      started.watch(catalog),
      started.watch(serving),
      ...bundles.map((one) => started.watch(one)),
      ...createBarrier(options, leader),
      started.watch(rpc),
      lettingGo(election),
    ],
    ports: () => ({ rpc: rpc.port, status: status.port }),
  };
}

/** The roots in every namespace, and, under a name that is nobody else's, in Veil's own. */
function createBundles(
  options: ControllerOptions,
  parts: Pick<TrustBundlesOptions, "leader" | "authority"> & { pods: Catalog["pods"]; metrics: CellSet },
): TrustBundles[] {
  const { client, clock, random, namespace, podName, trustBundle: bundleName = DEFAULT_TRUST_BUNDLE } = options;
  const { pods, ...rest } = parts;
  const log = options.log.child({ component: "trust bundles" });
  const shared = { ...rest, client, clock, random, log };
  const onForeign = (): void => {
    const message = `ConfigMap ${bundleName} is somebody else's, and left to them: pods there that mount it do not get Veil's roots (chart value trustBundle gives them another name). Veil's own parts use ${OWN_TRUST_BUNDLE} in ${namespace}`;
    const tools = { client, clock, log, pods, namespace, podName };
    warnOnOwnPod(tools, { key: bundleName, reason: "VeilTrustBundle", message });
  };
  const everywhere = new TrustBundles({ ...shared, bundleName, onForeign });
  if (bundleName === OWN_TRUST_BUNDLE) return [everywhere];
  return [everywhere, new TrustBundles({ ...shared, bundleName: OWN_TRUST_BUNDLE, only: namespace })];
}

function createBarrier(options: ControllerOptions, leader: LeaderClient): Service[] {
  if (options.wireguard !== true) return [];
  const log = options.log.child({ component: "wireguard" });
  return [new WireguardBarrier({ ...options, leader, foreignKeys: true, log })];
}

function createElection(options: ControllerOptions, metrics: CellSet): Election {
  const { client, namespace, podName, electionTimes: times, clock, random, log } = options;
  return new Election({
    client,
    namespace,
    identity: `${podName}_${random.hex(8)}`,
    ...(times !== undefined && { times }),
    clock,
    random,
    log: log.child({ component: "election" }),
    metrics,
  });
}

/** Lets the lease go before anything else ends: another replica leads while this one says good-bye to its clients. */
function lettingGo(election: Election): Service {
  return {
    name: "lease",
    start: async () => {},
    drain: (deadlineMs) => election.drain(Math.min(deadlineMs, RELEASE_MS)),
  };
}

interface Parts {
  readonly cells: { readonly xds: CellSet; readonly ca: CellSet; readonly own: CellSet };
  readonly cache: ResourceCache;
  readonly catalog: Catalog;
  readonly authority: Authority;
}

/** What the nodes reach: xDS, propagation and certificates behind one TLS port. */
function createServing(
  options: ControllerOptions,
  { cells, cache, catalog, authority }: Parts,
): { serving: ServingCertificate; rpc: Service & { readonly port: number } } {
  const { client, cluster, namespace, clock, random, log, nodeAccounts = DEFAULT_NODE_ACCOUNTS } = options;
  const authenticator = new CallerAuthenticator({ reviewer: client, clock });
  const authenticate = nodeAuthentication(authenticator, nodeAccounts);
  const xds = new XdsServer({
    cache,
    authenticate,
    ready: () => catalog.complete,
    mayDeny: () => catalog.fresh,
    metrics: cells.xds,
    log: log.child({ component: "xds" }),
  });
  catalog.onFresh(() => xds.recheck());
  const dnsNames = servingNames(namespace, cluster.clusterDomain);
  const peers = new Peers({
    pods: catalog.pods,
    namespace,
    app: options.replicaApp ?? "veil-controller",
    self: options.podName,
    port: options.listen.port,
    serverName: dnsNames[1],
    roots: () => authority.trustBundlePem,
  });
  const listPeers = (): readonly Peer[] => peers.list();
  const asked = { client, catalog, cache, server: xds, authenticate, peers: listPeers, clock, metrics: cells.own };
  const propagation = new PropagationService(asked);
  const pods = new LivePods(catalog.pods);
  const caLog = log.child({ component: "ca" });
  const signing = { authority, authenticator, pods, nodeAccounts, clock, log: caLog, cells: cells.ca };
  const certificates = certificateServiceRoutes(signing);
  const onRenewed = (): void => rpc.reload();
  const serving = new ServingCertificate({ authority, dnsNames, clock, random, log, onRenewed });
  const routes = (router: ConnectRouter): void => {
    xds.routes(router);
    propagation.routes(router);
    certificates(router);
  };
  const rpc = new RpcServer({ name: "gRPC", listen: { ...options.listen, tls: serving.current }, routes, log });
  return { serving, rpc: endingStreams(rpc, xds) };
}

/** The names under which agents reach the controller. */
function servingNames(namespace: string, clusterDomain: string): readonly [string, string, string] {
  const short = `veil-controller.${namespace}`;
  return [short, `${short}.svc`, `${short}.svc.${clusterDomain}`];
}

/** Lets in who acts for a node, by its token, and names the node. */
function nodeAuthentication(
  authenticator: CallerAuthenticator,
  nodeAccounts: readonly string[],
): (headers: Headers) => Promise<string> {
  return async (headers) => {
    const caller = await authenticator.authenticate(headers).catch((error: unknown) => {
      const unavailable = error instanceof CodedError && error.code === "CA_REVIEW_UNAVAILABLE";
      throw new ConnectError(messageOf(error), unavailable ? Code.Unavailable : Code.Unauthenticated);
    });
    const account = `${caller.namespace}/${caller.serviceAccount}`;
    if (!nodeAccounts.includes(account)) {
      throw new ConnectError(`${account} does not act for its node`, Code.PermissionDenied);
    }
    return caller.node;
  };
}

/** The API is away, or the replica that leads has not made the authority yet. */
const WAITED_FOR: ReadonlySet<string> = new Set(["CA_STORE", "CA_NOT_MADE"]);

/** Starts the authority as soon as the API answers: an API that is away is waited for, everything else is a failure. */
function patient(authority: Authority, tools: { clock: Clock; random: Random; log: Log }): Service {
  const { clock, random, log } = tools;
  return {
    name: authority.name,
    drain: () => authority.drain(),
    start: async (signal) => {
      const backoff = new Backoff({ initialMs: 100, maxMs: 5000 }, random);
      for (;;) {
        try {
          return await authority.start(signal);
        } catch (error) {
          if (!(error instanceof CodedError && WAITED_FOR.has(error.code)) || signal.aborted) throw error;
          log.warn({ error: messageOf(error) }, "the authority cannot be read yet, trying again");
        }
        await sleep(clock, backoff.next(), signal);
      }
    },
  };
}

/** Ends the open streams first, so that the server can end; clients come back to whoever serves next. */
function endingStreams(rpc: RpcServer, xds: XdsServer): Service & { readonly port: number } {
  return {
    name: rpc.name,
    get port() {
      return rpc.port;
    },
    start: (signal) => rpc.start(signal),
    drain: async (deadlineMs) => {
      xds.close();
      await rpc.drain(deadlineMs);
    },
  };
}

/** Which of the watched services have not started, or not any more. */
class Started {
  readonly #pending = new Set<string>();

  get pending(): readonly string[] {
    return [...this.#pending];
  }

  watch(service: Service): Service {
    const { name } = service;
    this.#pending.add(name);
    return {
      name,
      start: async (signal) => {
        await service.start(signal);
        this.#pending.delete(name);
      },
      drain: async (deadlineMs) => {
        this.#pending.add(name);
        await service.drain(deadlineMs);
      },
    };
  }
}
