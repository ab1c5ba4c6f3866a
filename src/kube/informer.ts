import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { KubeClient } from "./client.ts";
import { isKubeError } from "./errors.ts";
import { objectKey, type KubeObject, type ResourceRef } from "./object.ts";

/** What an informer tells. Called one at a time, in the order of the store. Must not throw. */
export interface InformerListener<T> {
  upserted?(object: T, old: T | undefined): void;
  /** `object` is the last state that was seen. */
  deleted?(object: T): void;
  /** After the first list, and again after every list that a lost watch made necessary. */
  synced?(): void;
  /** When the API has gone away, and when the copy follows it again. */
  connection?(connected: boolean): void;
}

/** What to keep a copy of. */
export interface InformerOptions<T extends KubeObject> {
  readonly client: KubeClient;
  readonly ref: ResourceRef<T>;
  readonly namespace?: string | undefined;
  readonly labelSelector?: string | undefined;
  readonly fieldSelector?: string | undefined;
  /**
   * List again after every failure, not only when the API has forgotten the version: then `connected` says that the copy
   * has everything that happened meanwhile. Without it, a watch that has been opened again may still be catching up.
   */
  readonly relistAfterFailure?: boolean;
  /**
   * The cluster may be without this kind (a custom resource): then there are no objects of it, and it is looked for again
   * every {@link OPTIONAL_MS}.
   */
  readonly optional?: boolean;
  readonly log: Log;
  readonly clock: Clock;
  readonly random: Random;
}

/** First delay after a failure; a restarted API is found again within about a second. */
const RETRY_INITIAL_MS = 100;
const RETRY_MAX_MS = 5_000;
/** All nodes lose the API in one moment, and are not to come back in one. */
const RETRY_JITTER = 0.5;
/** Between two looks for an optional kind that the cluster has not. */
const OPTIONAL_MS = 5_000;
/** A watch that lasted this long was no failure. */
const STEADY_MS = 10_000;

/**
 * A live copy of the objects of one kind: list, then watch, for ever. It survives disconnection, a watch that is too old
 * (410: list again, differences are told as events) and a restart of the API. While the API is away the copy stays as it
 * was. The copy holds as many objects as match; there is no other bound.
 */
export class Informer<T extends KubeObject> implements Service {
  readonly name: string;
  readonly #options: InformerOptions<T>;
  readonly #log: Log;
  readonly #objects = new Map<string, T>();
  readonly #listeners = new Set<InformerListener<T>>();
  readonly #stop = new AbortController();
  readonly #firstSync = Promise.withResolvers<void>();
  #running: Promise<void> | undefined;
  #synced = false;
  #connected = false;

  constructor(options: InformerOptions<T>) {
    this.#options = options;
    this.name = `informer ${options.ref.plural}`;
    this.#log = options.log.child({ informer: options.ref.plural });
  }

  /** True from the first complete list on. */
  get synced(): boolean {
    return this.#synced;
  }

  /** True while the API answers: the copy is as fresh as the network allows. */
  get connected(): boolean {
    return this.#connected;
  }

  /** All objects, in no order. A new array; the objects are shared: do not change them. */
  list(): readonly T[] {
    return [...this.#objects.values()];
  }

  get(name: string, namespace?: string): T | undefined {
    return this.#objects.get(objectKey({ metadata: namespace === undefined ? { name } : { name, namespace } }));
  }

  /** Adds a listener; objects that are already known are told at once. The returned function removes it. */
  on(listener: InformerListener<T>): () => void {
    this.#listeners.add(listener);
    for (const object of this.list()) listener.upserted?.(object, undefined);
    if (this.#synced) listener.synced?.();
    return () => void this.#listeners.delete(listener);
  }

  /** Resolves after the first complete list, however long the API is away. */
  async start(signal: AbortSignal): Promise<void> {
    this.#running = this.#run();
    const onAbort = (): void => this.#stop.abort(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([this.#firstSync.promise, this.#running]);
      if (!this.#synced) this.#stop.signal.throwIfAborted();
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  async drain(_deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("stopped"));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { clock, random } = this.#options;
    const { signal } = this.#stop;
    const backoff = new Backoff({ initialMs: RETRY_INITIAL_MS, maxMs: RETRY_MAX_MS, jitter: RETRY_JITTER }, random);
    let version: string | undefined;
    while (!signal.aborted) {
      const startedMs = clock.monotonic();
      try {
        version ??= await this.#relist();
        for await (const next of this.#follow(version)) version = next;
      } catch (error) {
        if (signal.aborted) return;
        if (this.#options.optional === true && isKubeError(error, "KUBE_NOT_FOUND")) {
          version = undefined;
          this.#take([]);
          await sleep(clock, OPTIONAL_MS, signal).catch(() => undefined);
          continue;
        }
        this.#setConnected(false);
        if (this.#options.relistAfterFailure === true || isKubeError(error, "KUBE_GONE")) version = undefined;
        this.#log.warn({ error: messageOf(error) }, "lost the api, trying again");
      }
      // A watch that goes on for a while and then ends is normal; one that ends at once, again and again, must not spin.
      if (clock.monotonic() - startedMs > STEADY_MS) backoff.reset();
      await sleep(clock, backoff.next(), signal).catch(() => undefined);
    }
  }

  /** Reads everything. */
  async #relist(): Promise<string> {
    const { client, ref, namespace, labelSelector, fieldSelector } = this.#options;
    const listed = await client.list(ref, {
      namespace,
      labelSelector,
      fieldSelector,
      signal: this.#stop.signal,
    });
    this.#take(listed.items);
    return listed.resourceVersion;
  }

  /** Everything there is: tells what differs from the copy. */
  #take(items: readonly T[]): void {
    const gone = new Map(this.#objects);
    for (const object of items) {
      gone.delete(objectKey(object));
      this.#upsert(object);
    }
    for (const object of gone.values()) this.#remove(object);
    this.#setConnected(true);
    this.#synced = true;
    this.#firstSync.resolve();
    for (const listener of this.#listeners) listener.synced?.();
  }

  /** Applies changes from `version` on; yields each new version. Ends when the API ends the watch. */
  async *#follow(version: string): AsyncGenerator<string, void> {
    const { client, ref, namespace, labelSelector, fieldSelector, random } = this.#options;
    const events = client.watch(ref, {
      namespace,
      labelSelector,
      fieldSelector,
      resourceVersion: version,
      timeoutSeconds: 300 + random.below(300), // spread, so that not all watches of a cluster end together
      onOpen: () => this.#setConnected(true),
      signal: this.#stop.signal,
    });
    for await (const { type, object } of events) {
      if (type === "DELETED") this.#remove(object);
      else if (type !== "BOOKMARK") this.#upsert(object);
      yield object.metadata?.resourceVersion ?? version;
    }
  }

  #setConnected(connected: boolean): void {
    if (connected === this.#connected) return;
    this.#connected = connected;
    for (const listener of this.#listeners) listener.connection?.(connected);
  }

  #upsert(object: T): void {
    if (object.metadata !== undefined) Reflect.deleteProperty(object.metadata, "managedFields"); // large, and for nobody here
    const key = objectKey(object);
    const old = this.#objects.get(key);
    if (old !== undefined && old.metadata?.uid !== object.metadata?.uid) this.#remove(old); // deleted and made again
    else if (old !== undefined && old.metadata?.resourceVersion === object.metadata?.resourceVersion) return;
    const before = this.#objects.get(key);
    this.#objects.set(key, object);
    for (const listener of this.#listeners) listener.upserted?.(object, before);
  }

  #remove(object: T): void {
    if (!this.#objects.delete(objectKey(object))) return;
    for (const listener of this.#listeners) listener.deleted?.(object);
  }
}
