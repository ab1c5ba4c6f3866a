import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { Authority } from "#ca";
import { Informer, isKubeError, resources, type ConfigMap, type KubeClient, type Namespace } from "#kube";
import { MANAGED_LABEL, ROOTS_PART } from "#model/authority-objects";
import type { LeaderClient } from "./leader-client.ts";
import { controllerMetrics } from "./metrics.ts";

const MANAGED_VALUE = "veil-controller";

const WRITERS = 8;
/** One that somebody else changes more often than this is left to them: two programs would write it without end. */
const MAX_CORRECTIONS = 5;
const CORRECTIONS_MS = 600_000;

/** What trust bundles are made of. */
export interface TrustBundlesOptions {
  readonly client: KubeClient;
  readonly leader: Pick<LeaderClient, "leading" | "onLeading" | "create" | "patch">;
  /** Name of the ConfigMaps. */
  readonly bundleName: string;
  /** The one namespace that gets it. Default: all. */
  readonly only?: string;
  /** Called once for each namespace whose ConfigMap of that name is left to somebody else. */
  readonly onForeign?: (namespace: string) => void;
  readonly authority: Pick<Authority, "trustBundlePem" | "onTrustBundle">;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly metrics?: CellSet;
}

/**
 * Keeps the trust bundle in a ConfigMap of every namespace: made for a new namespace, corrected when somebody changes
 * it, written anew when the bundle changes. The replica that leads writes, and looks at all of them when it begins to lead.
 * A ConfigMap of that name that somebody else made, or changes again and again, is left as it is, and reported.
 */
export class TrustBundles implements Service {
  readonly name = "trust bundles";
  readonly #options: TrustBundlesOptions;
  readonly #metrics: CellSet;
  readonly #namespaces: Informer<Namespace>;
  readonly #configMaps: Informer<ConfigMap>;
  readonly #stop = new AbortController();
  /** Namespaces to look at. */
  readonly #dirty = new Set<string>();
  readonly #foreign = new Set<string>();
  /** By namespace: how often it was corrected since when. */
  readonly #corrections = new Map<string, { count: number; readonly sinceMs: number }>();
  #bell = Promise.withResolvers<void>();
  #unlisten = (): void => {};
  #running: Promise<unknown> = Promise.resolve();

  constructor(options: TrustBundlesOptions) {
    this.#options = options;
    this.#metrics = options.metrics ?? new CellSet(controllerMetrics);
    const { client, clock, random, log } = options;
    const shared = { client, clock, random, log };
    const { only } = options;
    const fieldSelector = only === undefined ? undefined : `metadata.name=${only}`;
    this.#namespaces = new Informer({ ...shared, ref: resources.namespaces, fieldSelector });
    this.#configMaps = new Informer({
      ...shared,
      ref: resources.configMaps,
      namespace: only,
      fieldSelector: `metadata.name=${options.bundleName}`,
    });
    const mark = (namespace: string | undefined): void => this.#mark(namespace ?? "");
    this.#namespaces.on({
      upserted: ({ metadata }) => mark(metadata?.name),
      deleted: ({ metadata }) => this.#forget(metadata?.name ?? ""),
    });
    this.#configMaps.on({
      upserted: ({ metadata }) => mark(metadata?.namespace),
      deleted: ({ metadata }) => mark(metadata?.namespace),
    });
  }

  /** Resolves when it watches; the ConfigMaps follow within moments. */
  async start(signal: AbortSignal): Promise<void> {
    await Promise.all([this.#namespaces.start(signal), this.#configMaps.start(signal)]);
    const { authority, leader } = this.#options;
    const ends = [authority.onTrustBundle(() => this.#markAll()), leader.onLeading(() => this.#markAll())];
    this.#unlisten = () => ends.forEach((end) => end());
    this.#markAll();
    this.#running = Promise.all(Array.from({ length: WRITERS }, () => this.#write()));
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#unlisten();
    this.#stop.abort(new Error("draining"));
    this.#bell.resolve();
    await Promise.all([this.#namespaces.drain(deadlineMs), this.#configMaps.drain(deadlineMs)]);
    await this.#running;
  }

  #markAll(): void {
    for (const { metadata } of this.#namespaces.list()) this.#mark(metadata?.name ?? "");
  }

  #mark(namespace: string): void {
    this.#dirty.add(namespace);
    this.#bell.resolve();
  }

  #forget(namespace: string): void {
    this.#dirty.delete(namespace);
    this.#foreign.delete(namespace);
    this.#corrections.delete(namespace);
  }

  /** One of the writers: takes marked namespaces until it is told to stop. */
  async #write(): Promise<void> {
    const { clock, random, log, leader } = this.#options;
    const { signal } = this.#stop;
    const backoff = new Backoff({ initialMs: 100, maxMs: 10_000 }, random);
    while (!signal.aborted) {
      const [namespace] = this.#dirty;
      if (namespace === undefined) {
        const bell = this.#bell;
        await bell.promise;
        if (this.#bell === bell) this.#bell = Promise.withResolvers(); // the first of the writers that wakes
        continue;
      }
      this.#dirty.delete(namespace);
      if (!leader.leading) continue; // all are marked when it begins
      try {
        await this.#settle(namespace, signal);
        backoff.reset();
      } catch (error) {
        if (signal.aborted) return;
        if (!leader.leading) continue;
        this.#metrics.bind("veil_controller_trust_bundle_failures_total", {}).value++;
        log.warn({ namespace, error: messageOf(error) }, "cannot write a trust bundle, trying again");
        await sleep(clock, backoff.next(), signal).catch(() => undefined); // aborted: the loop ends
        this.#mark(namespace);
      }
    }
  }

  /** Makes a namespace's ConfigMap right. A conflict is left to the event that it brings. */
  async #settle(namespace: string, signal: AbortSignal): Promise<void> {
    const { authority } = this.#options;
    const known = this.#namespaces.get(namespace);
    if (known === undefined || known.metadata?.deletionTimestamp !== undefined) return;
    const current = this.#configMaps.get(this.#options.bundleName, namespace);
    const data = { [ROOTS_PART]: authority.trustBundlePem };
    if (current?.data?.[ROOTS_PART] === data[ROOTS_PART]) return;
    if (current !== undefined && (isForeign(current) || this.#isContested(namespace))) {
      this.#leaveAlone(namespace);
      return;
    }
    await this.#put(namespace, { data, current, signal });
  }

  async #put(
    namespace: string,
    { data, current, signal }: { data: Record<string, string>; current: ConfigMap | undefined; signal: AbortSignal },
  ): Promise<void> {
    const { leader, bundleName: name } = this.#options;
    const at = { name, namespace };
    const metadata = { ...at, labels: { [MANAGED_LABEL]: MANAGED_VALUE } };
    try {
      if (current === undefined) await leader.create(resources.configMaps, { metadata, data }, { signal });
      else {
        const body = { metadata: { resourceVersion: current.metadata?.resourceVersion }, data };
        await leader.patch(resources.configMaps, at, { type: "merge", body, signal });
      }
      this.#metrics.bind("veil_controller_trust_bundles_written_total", {}).value++;
    } catch (error) {
      if (!SETTLED_ELSEWHERE.some((code) => isKubeError(error, code))) throw error;
    }
  }

  /** Counts a correction; true when there were too many. */
  #isContested(namespace: string): boolean {
    const nowMs = this.#options.clock.monotonic();
    let known = this.#corrections.get(namespace);
    if (known === undefined || nowMs - known.sinceMs > CORRECTIONS_MS) known = { count: 0, sinceMs: nowMs };
    known.count++;
    this.#corrections.set(namespace, known);
    return known.count > MAX_CORRECTIONS;
  }

  #leaveAlone(namespace: string): void {
    if (this.#foreign.has(namespace)) return;
    this.#foreign.add(namespace);
    this.#options.log.warn(
      { namespace, name: this.#options.bundleName },
      "somebody else's trust bundle is left as it is",
    );
    this.#options.onForeign?.(namespace);
  }
}

function isForeign({ metadata }: ConfigMap): boolean {
  return metadata?.labels?.[MANAGED_LABEL] !== MANAGED_VALUE;
}

/** Somebody else was first, or the object or its namespace has just gone: the watch tells. */
const SETTLED_ELSEWHERE = ["KUBE_ALREADY_EXISTS", "KUBE_CONFLICT", "KUBE_NOT_FOUND"] as const;
