import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import {
  Discovery,
  securityKinds,
  type AddressVerdict,
  type Cluster,
  type DiscoveryUpdate,
  type Problem,
} from "#discovery";
import {
  gatewayResources,
  Informer,
  istioNetworkingResources,
  objectKey,
  resources,
  type KubeClient,
  type KubeObject,
  type Pod,
  type ResourceRef,
  type ServiceEntry,
} from "#kube";
import { TYPE_ADDRESS, TYPE_AUTHORIZATION, type ResourceCache } from "#xds";
import type { LeaderClient } from "./leader-client.ts";
import { controllerMetrics } from "./metrics.ts";
import { PolicyStatuses } from "./policy-statuses.ts";
import { ProblemEvents } from "./problem-events.ts";
import { StatusWrites } from "./status-writes.ts";

/** Changes are collected for this long after the first, then published together. */
const BATCH_MS = 2;
/** Problems of objects that are logged at once; what exceeds it is only counted. */
const MAX_LOGGED_PROBLEMS = 20;

/** What a catalog reads from and writes to. */
export interface CatalogOptions {
  readonly client: KubeClient;
  /** Writes statuses. */
  readonly leader: LeaderClient;
  readonly cluster: Cluster;
  readonly cache: ResourceCache;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly metrics?: CellSet;
}

type Informers = readonly Informer<KubeObject>[];

/**
 * Keeps the xDS cache equal to what the Kubernetes API says: watches pods, services, endpoint slices, nodes, namespaces,
 * and gateways and policies where the cluster has these kinds, turns what changes into workloads, services and what the
 * nodes enforce, and publishes it within a few milliseconds.
 *
 *     watch event ──▶ Discovery (what depends on it) ── 2 ms ──▶ ResourceCache ──▶ every stream
 *
 * While the API is away everything stays as it was; when it is back, only the differences are published.
 */
export class Catalog implements Service {
  readonly name = "catalog";
  readonly pods: Informer<Pod>;
  readonly #options: CatalogOptions;
  readonly #metrics: CellSet;
  readonly #discovery: Discovery;
  readonly #informers: Informers;
  readonly #statuses: PolicyStatuses;
  readonly #given: StatusWrites<AddressVerdict>;
  readonly #events: ProblemEvents;
  readonly #onFresh = new Set<() => void>();
  readonly #onFlush = new Set<() => void>();
  #complete = false;
  #scheduled: (() => void) | undefined;

  constructor(options: CatalogOptions) {
    this.#options = options;
    this.#metrics = options.metrics ?? new CellSet(controllerMetrics);
    const discovery = new Discovery(options.cluster);
    this.#discovery = discovery;
    this.pods = this.#follow(resources.pods, {
      upserted: (pod) => discovery.upsertPod(pod),
      deleted: (pod) => discovery.removePod(pod),
    });
    const services = this.#follow(resources.services, {
      upserted: (service) => discovery.upsertService(service),
      deleted: (service) => discovery.removeService(service),
    });
    const slices = this.#follow(resources.endpointSlices, {
      upserted: (slice) => discovery.upsertEndpointSlice(slice),
      deleted: (slice) => discovery.removeEndpointSlice(slice),
    });
    const nodes = this.#follow(resources.nodes, {
      upserted: (node) => discovery.upsertNode(node),
      deleted: (node) => discovery.removeNode(node),
    });
    const namespaces = this.#follow(resources.namespaces, {
      upserted: (namespace) => discovery.upsertNamespace(namespace),
      deleted: (namespace) => discovery.removeNamespace(namespace),
    });
    const builtIn = [this.pods, services, slices, nodes, namespaces];
    this.#informers = [...builtIn, ...this.#followOptional(discovery)];
    this.#statuses = new PolicyStatuses(options);
    this.#given = new StatusWrites({ ...options, write: (verdict) => this.#writeAddresses(verdict) });
    this.#events = new ProblemEvents(options);
  }

  /** True once everything that the API had was published. Stays true. */
  get complete(): boolean {
    return this.#complete;
  }

  /** True while all watches are alive: what is not published does not exist. */
  get fresh(): boolean {
    return this.#complete && this.#informers.every((informer) => informer.connected);
  }

  /** Calls `listener` when {@link Catalog.fresh} may have become true. The returned function ends that. */
  onFresh(listener: () => void): () => void {
    this.#onFresh.add(listener);
    return () => void this.#onFresh.delete(listener);
  }

  /** Resolves when everything is published that the API had when it was called; waits for the API as long as that takes. */
  async start(signal: AbortSignal): Promise<void> {
    await Promise.all(this.#informers.map((informer) => informer.start(signal)));
    this.#complete = true;
    this.#flush();
    this.#connection();
    this.#options.log.info({ resources: this.#options.cache.size(TYPE_ADDRESS) }, "catalog is complete");
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#scheduled?.();
    this.#statuses.stop();
    this.#given.stop();
    await Promise.all(this.#informers.map((informer) => informer.drain(deadlineMs)));
  }

  /**
   * Resolves when what `done` waits for holds, looking after each publication. Rejects with the signal's reason when
   * it is aborted first.
   */
  async until(done: () => boolean, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const met = (): boolean => !this.#discovery.dirty && done();
    if (met()) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const look = (): void => {
      if (met()) resolve();
    };
    const onAbort = (): void => reject(signal.reason);
    this.#onFlush.add(look);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await promise;
    } finally {
      this.#onFlush.delete(look);
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Kinds of others, which a cluster may be without: waypoints, policies, services and workloads that are not Kubernetes' own. */
  #followOptional(discovery: Discovery): Informers {
    const { entries, addresses, policies } = discovery;
    const follow = <T extends KubeObject>(
      ref: ResourceRef<T>,
      upserted: (object: T) => void,
      deleted: (object: T) => void,
    ): Informer<T> => this.#follow(ref, { upserted, deleted }, { optional: true });
    const { gateways, gatewayClasses } = gatewayResources;
    const { authorizationPolicies, peerAuthentications } = securityKinds;
    const { serviceEntries, workloadEntries } = istioNetworkingResources;
    const setEntry = (key: string, entry: ServiceEntry | undefined): void => {
      entries.setServiceEntry(key, entry);
      addresses.set(key, entry);
    };
    return [
      follow(
        gateways,
        (one) => discovery.upsertGateway(one),
        (one) => discovery.removeGateway(one),
      ),
      follow(
        gatewayClasses,
        (one) => discovery.upsertGatewayClass(one),
        (one) => discovery.removeGatewayClass(one),
      ),
      follow(
        authorizationPolicies,
        (one) => policies.upsertAuthorizationPolicy(one),
        (one) => {
          policies.removeAuthorizationPolicy(one);
          this.#statuses.forget(one);
        },
      ),
      follow(
        peerAuthentications,
        (one) => policies.upsertPeerAuthentication(one),
        (one) => policies.removePeerAuthentication(one),
      ),
      follow(
        serviceEntries,
        (one) => setEntry(objectKey(one), one),
        (one) => {
          setEntry(objectKey(one), undefined);
          this.#given.forget(`ServiceEntry ${objectKey(one)}`);
        },
      ),
      follow(
        workloadEntries,
        (one) => entries.setWorkloadEntry(objectKey(one), one),
        (one) => entries.setWorkloadEntry(objectKey(one), undefined),
      ),
    ];
  }

  #follow<T extends KubeObject>(
    ref: ResourceRef<T>,
    take: { upserted: (object: T) => void; deleted: (object: T) => void },
    { optional = false }: { readonly optional?: boolean } = {},
  ): Informer<T> {
    const { client, log, clock, random } = this.#options;
    // Absence is told on the strength of `connected`: it must not be true before the copy has caught up.
    const informer = new Informer<T>({ client, ref, log, clock, random, relistAfterFailure: true, optional });
    informer.on({
      upserted: (object) => {
        take.upserted(object);
        this.#schedule();
      },
      deleted: (object) => {
        take.deleted(object);
        this.#schedule();
      },
      connection: () => this.#connection(),
    });
    return informer;
  }

  #connection(): void {
    const { fresh } = this;
    this.#metrics.bind("veil_controller_api_connected", {}).value = fresh ? 1 : 0;
    if (!fresh) return;
    if (this.#discovery.dirty) this.#flush(); // what is known is told before anything is denied
    this.#giveAddresses();
    for (const listener of this.#onFresh) listener();
  }

  #schedule(): void {
    if (!this.#complete || this.#scheduled !== undefined) return;
    this.#scheduled = this.#options.clock.after(BATCH_MS, () => this.#flush());
  }

  #flush(): void {
    this.#scheduled?.();
    this.#scheduled = undefined;
    const { cache } = this.#options;
    const { upserts, removes, policies, problems } = this.#discovery.flush();
    // A policy is there before a workload lists it, and goes after.
    this.#publish(TYPE_AUTHORIZATION, { upserts: policies.upserts, removes: [] });
    this.#publish(TYPE_ADDRESS, { upserts, removes });
    this.#publish(TYPE_AUTHORIZATION, { upserts: [], removes: policies.removes });
    this.#statuses.take(policies.verdicts);
    const changes = upserts.length + removes.length + policies.upserts.length + policies.removes.length;
    this.#metrics.bind("veil_controller_publications_total", {}).value++;
    this.#metrics.bind("veil_controller_published_changes_total", {}).value += changes;
    this.#metrics.bind("veil_controller_resources", {}).value = cache.size(TYPE_ADDRESS);
    this.#metrics.bind("veil_controller_policies", {}).value = cache.size(TYPE_AUTHORIZATION);
    this.#report(problems);
    this.#giveAddresses();
    for (const look of this.#onFlush) look();
  }

  /** Only while all entries are known: otherwise somebody may have the address. */
  #giveAddresses(): void {
    if (!this.fresh) return;
    const { verdicts, problems } = this.#discovery.addresses.take();
    for (const verdict of verdicts) this.#given.take(`ServiceEntry ${objectKey(verdict.entry)}`, verdict);
    this.#report(problems);
  }

  #writeAddresses({ entry, addresses }: AddressVerdict): Promise<unknown> {
    const { name = "", namespace, resourceVersion } = entry.metadata ?? {};
    return this.#options.leader.patch(
      istioNetworkingResources.serviceEntries,
      { name, namespace },
      { type: "merge", subresource: "status", body: { metadata: { resourceVersion }, status: { addresses } } },
    );
  }

  #publish(typeUrl: string, { upserts, removes }: Pick<DiscoveryUpdate, "upserts" | "removes">): void {
    const resources = upserts.map((one) => ({ typeUrl, ...one }));
    this.#options.cache.apply({ typeUrl, upserts: resources, removes });
  }

  #report(problems: readonly Problem[]): void {
    this.#metrics.bind("veil_controller_object_problems_total", {}).value += problems.length;
    this.#events.take(problems);
    for (const { object, field, message } of problems.slice(0, MAX_LOGGED_PROBLEMS)) {
      this.#options.log.warn({ object, field, message }, "part of an object cannot be used");
    }
  }
}
