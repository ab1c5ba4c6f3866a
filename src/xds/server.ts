import { Code, ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { CellSet } from "#base/metrics";
import { AggregatedDiscoveryService, type DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from "#proto";
import type { CacheChange, ResourceCache } from "./cache.ts";
import { xdsMetrics } from "./metrics.ts";
import { deltaResponse } from "./resource.ts";
import { ServerStream } from "./server-stream.ts";

/** Streams that one server carries; further ones are refused. */
const MAX_STREAMS = 10_000;
/** Bytes of one request: the versions of 100,000 resources fit. */
const MAX_REQUEST_BYTES = 64 * 1024 * 1024;

/** What an {@link XdsServer} serves, and whom. */
export interface XdsServerOptions {
  readonly cache: ResourceCache;
  readonly log: Log;
  /** Name of the caller's node. Rejects to refuse the stream; a `ConnectError` is passed on as it is. Default: anybody. */
  readonly authenticate?: (headers: Headers) => Promise<string>;
  /** False while the cache is not complete for a type: nothing of that type is sent then. Default: always true. */
  readonly ready?: (typeUrl: string) => boolean;
  /** False while the absence of a name cannot be told from the cache. Default: always true. */
  readonly mayDeny?: (typeUrl: string) => boolean;
  /**
   * Looks elsewhere for a name that the cache does not have, and puts what it finds into the cache before it resolves.
   * When it resolves, the cache is right about the name; when it rejects, nobody knows, and the question stays open
   * (asked again by {@link XdsServer.recheck}). Where this is set, absence is never told without it.
   */
  readonly onDemand?: (typeUrl: string, name: string, signal: AbortSignal) => Promise<unknown>;
  /** Cells of {@link xdsMetrics}. */
  readonly metrics?: CellSet;
}

/** What a caller of {@link XdsServer.whenAcknowledged} waits for. */
export interface Acknowledged {
  readonly typeUrl: string;
  /** Everything up to and including this revision of the cache. */
  readonly revision: number;
  /** A name that must not have been refused. */
  readonly name?: string;
}

interface Waiter {
  readonly target: Acknowledged;
  readonly behind: Set<ServerStream>;
  readonly done: () => void;
}

/**
 * Delta ADS over a {@link ResourceCache}: wildcard and on-demand subscriptions, initial versions, nonces, removals,
 * aliases. A change of the cache is on its way to every stream that follows it in the same turn.
 */
export class XdsServer {
  readonly #options: XdsServerOptions;
  readonly #metrics: CellSet;
  readonly #streams = new Set<ServerStream>();
  readonly #waiters = new Set<Waiter>();
  readonly #closing = new AbortController();
  readonly #forget: () => void;

  constructor(options: XdsServerOptions) {
    this.#options = options;
    this.#metrics = options.metrics ?? new CellSet(xdsMetrics);
    this.#forget = options.cache.onChange((change) => this.#changed(change));
  }

  /** The names of the nodes that are connected, one per stream. */
  get nodes(): readonly string[] {
    return [...this.#streams].map((stream) => stream.node);
  }

  /** Adds the service to a server's routes. */
  readonly routes = (router: ConnectRouter): void => {
    const deltaAggregatedResources = (
      requests: AsyncIterable<DeltaDiscoveryRequest>,
      context: HandlerContext,
    ): AsyncIterable<DeltaDiscoveryResponse> => this.#serve(requests, context);
    router.service(AggregatedDiscoveryService, { deltaAggregatedResources }, { readMaxBytes: MAX_REQUEST_BYTES });
  };

  /** Call when `ready` or `mayDeny` became true, or when looking elsewhere may work again: open questions are retried. */
  recheck(): void {
    for (const stream of this.#streams) stream.recheck();
  }

  /**
   * Waits until every connected stream that follows the type has acknowledged all changes up to a revision. Streams
   * that come meanwhile are waited for, streams that go are not. A stream that has not said yet what it follows counts.
   * Resolves with the nodes that are behind: none, or, when `signal` aborts first, those that have not acknowledged.
   */
  async whenAcknowledged(target: Acknowledged, signal: AbortSignal): Promise<readonly string[]> {
    const behind = new Set([...this.#streams].filter((stream) => !stream.holds(target)));
    if (behind.size > 0 && !signal.aborted) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const waiter: Waiter = { target, behind, done: resolve };
      const onAbort = (): void => resolve();
      this.#waiters.add(waiter);
      signal.addEventListener("abort", onAbort, { once: true });
      await promise;
      signal.removeEventListener("abort", onAbort);
      this.#waiters.delete(waiter);
    }
    return [...behind].map((stream) => stream.node).toSorted();
  }

  /** The resources of a type that some client refuses at present, with its words. */
  rejected(typeUrl: string): ReadonlyMap<string, string> {
    return new Map([...this.#streams].flatMap((stream) => [...stream.rejected(typeUrl)]));
  }

  /** Ends all streams and takes no new ones. */
  close(): void {
    this.#forget();
    this.#closing.abort(new ConnectError("the server is shutting down", Code.Unavailable));
    for (const stream of this.#streams) stream.close();
  }

  async *#serve(
    requests: AsyncIterable<DeltaDiscoveryRequest>,
    context: HandlerContext,
  ): AsyncIterable<DeltaDiscoveryResponse> {
    const node = await this.#authenticate(context.requestHeader);
    this.#closing.signal.throwIfAborted();
    if (this.#streams.size >= MAX_STREAMS) throw new ConnectError("too many streams", Code.ResourceExhausted);
    const stream = new ServerStream(this.#options.cache, node, context.signal);
    void this.#read(stream, requests); // ends with the call
    this.#opened(stream);
    try {
      let response = await this.#next(stream);
      while (response !== undefined) {
        yield response;
        response = undefined; // a stream that waits must not keep its last response alive
        response = await this.#next(stream);
      }
    } finally {
      stream.close();
      this.#closed(stream);
    }
    this.#closing.signal.throwIfAborted();
  }

  async #authenticate(headers: Headers): Promise<string> {
    try {
      return (await this.#options.authenticate?.(headers)) ?? "";
    } catch (error) {
      this.#options.log.warn({ error: messageOf(error) }, "xds stream refused");
      if (error instanceof ConnectError) throw error;
      throw new ConnectError("the caller is not authenticated", Code.Unauthenticated);
    }
  }

  /** Takes the requests of a stream until its end. Never rejects: a broken stream is a closed one. */
  async #read(stream: ServerStream, requests: AsyncIterable<DeltaDiscoveryRequest>): Promise<void> {
    const { log } = this.#options;
    let named = false;
    try {
      for await (const request of requests) {
        if (!named) this.#introduced(stream, request);
        named = true;
        const refusal = stream.request(request);
        if (refusal !== undefined) {
          log.warn({ node: stream.node, type: request.typeUrl, refusal }, "resources refused by a node");
          this.#metrics.bind("veil_xds_nacks_total", { url: request.typeUrl }).value++;
        }
        this.#progress(stream);
      }
    } catch (error) {
      log.debug({ node: stream.node, error: messageOf(error) }, "xds stream broken");
    }
    stream.close();
  }

  /** The next response of a stream, when there is one; undefined when the stream has ended. */
  async #next(stream: ServerStream): Promise<DeltaDiscoveryResponse | undefined> {
    const { ready = () => true, mayDeny = () => true, onDemand } = this.#options;
    for (;;) {
      if (stream.closed) return undefined;
      const taken = stream.take({ ready, mayDeny: (type) => onDemand === undefined && mayDeny(type) });
      for (const { typeUrl, name } of taken.unanswered) void this.#lookElsewhere(stream, typeUrl, name);
      this.#progress(stream);
      if (taken.response === undefined) {
        await stream.woken();
        continue;
      }
      const { typeUrl, resources, removed } = taken.response;
      this.#metrics.bind("veil_xds_sent_messages_total", { url: typeUrl }).value++;
      this.#metrics.bind("veil_xds_sent_resources_total", { url: typeUrl }).value += resources.length + removed.length;
      return deltaResponse(taken.response);
    }
  }

  async #lookElsewhere(stream: ServerStream, typeUrl: string, name: string): Promise<void> {
    const { onDemand, log } = this.#options;
    if (onDemand === undefined) return;
    try {
      await onDemand(typeUrl, name, stream.signal);
      stream.settle(typeUrl, name);
    } catch (error) {
      log.debug({ node: stream.node, name, error: messageOf(error) }, "on-demand lookup not answered");
    }
  }

  #changed(change: CacheChange): void {
    for (const stream of this.#streams) stream.note(change);
  }

  #opened(stream: ServerStream): void {
    this.#streams.add(stream);
    this.#metrics.bind("veil_xds_streams", {}).value++;
    for (const { target, behind } of this.#waiters) if (!stream.holds(target)) behind.add(stream);
  }

  #introduced(stream: ServerStream, request: DeltaDiscoveryRequest): void {
    stream.introduce(request);
    const { node, version } = stream;
    this.#options.log.info({ node, version }, "xds stream opened");
    if (stream.closed) return; // it is not counted any more
    const count = (by: 1 | -1): void => {
      this.#metrics.bind("veil_xds_client_versions", { version }).value += by;
    };
    count(1);
    stream.signal.addEventListener("abort", () => count(-1), { once: true });
  }

  #closed(stream: ServerStream): void {
    this.#streams.delete(stream);
    this.#metrics.bind("veil_xds_streams", {}).value--;
    this.#progress(stream);
    this.#options.log.info({ node: stream.node }, "xds stream closed");
  }

  /** A stream may have caught up, or gone: tells those who wait for it. */
  #progress(stream: ServerStream): void {
    const gone = !this.#streams.has(stream);
    for (const { target, behind, done } of this.#waiters) {
      if (!behind.has(stream) || !(gone || stream.holds(target))) continue;
      behind.delete(stream);
      if (behind.size === 0) done();
    }
  }
}
