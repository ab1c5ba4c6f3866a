import { Code, ConnectError, createClient, type ConnectRouter, type ServiceImpl } from "@connectrpc/connect";
import { deadline, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { CellSet } from "#base/metrics";
import { resources, type KubeClient, type Pod } from "#kube";
import { decodeAddress, Propagation } from "#proto";
import { TYPE_ADDRESS, type CachedResource, type ResourceCache, type XdsServer } from "#xds";
import type { Catalog } from "./catalog.ts";
import { controllerMetrics } from "./metrics.ts";
import type { Peer } from "./peers.ts";

/** The longest that a caller may wait. */
const MAX_AWAIT_MS = 30_000;
/** Calls that may wait at once. */
const MAX_AWAITS = 1024;
/** A question is read before its sender is known. */
const MAX_QUESTION_BYTES = 64 * 1024;
/** A pod that has not been published in the wanted state after this time is read again. */
const REREAD_MS = 500;
/** What a replica may take for its answer beyond the time it was given. */
const PEER_MARGIN_MS = 500;
/** Says that a question comes from another replica: it is answered for this replica's streams alone. */
const FORWARDED_HEADER = "veil-forwarded";

/** What the propagation service asks. */
export interface PropagationOptions {
  readonly client: Pick<KubeClient, "find">;
  readonly catalog: Pick<Catalog, "until" | "pods">;
  readonly cache: ResourceCache;
  readonly server: Pick<XdsServer, "whenAcknowledged" | "nodes">;
  /** Rejects for callers that are no node. */
  readonly authenticate: (headers: Headers) => Promise<unknown>;
  /** The other replicas, which are asked the same with the caller's own token. Default: none. */
  readonly peers?: () => readonly Peer[];
  readonly clock: Clock;
  readonly metrics?: CellSet;
}

interface Question {
  readonly uid: string;
  readonly hbone: boolean;
}

/**
 * Answers whether every node knows a workload's state.
 *
 *     1 read the pod as the API has it now      so that a change that is still on its way here cannot come after the answer
 *     2 wait until that version is published    in the wanted state
 *     3 wait until every stream has acknowledged a response that carried it
 *     4 still so? then that is the answer; else from 2
 *
 * Each replica answers for its own streams. The one that is asked by a node asks the others; a replica that cannot be
 * reached counts as a node that is behind.
 */
export class PropagationService {
  readonly #options: PropagationOptions;
  readonly #metrics: CellSet;
  #waiting = 0;

  constructor(options: PropagationOptions) {
    this.#options = options;
    this.#metrics = options.metrics ?? new CellSet(controllerMetrics);
  }

  /** Adds the service to a server's routes. */
  readonly routes = (router: ConnectRouter): void => {
    const ask: ServiceImpl<typeof Propagation>["await"] = async (request, context) => {
      const { requestHeader, signal } = context;
      await this.#options.authenticate(requestHeader);
      const own = this.await(request, signal);
      const others = requestHeader.has(FORWARDED_HEADER) ? [] : this.#askPeers(request, requestHeader, signal);
      const nodesBehind = (await Promise.all([own, ...others])).flat();
      return { nodesBehind: [...new Set(nodesBehind)].toSorted() };
    };
    router.service(Propagation, { await: ask }, { readMaxBytes: MAX_QUESTION_BYTES });
  };

  /** The nodes that do not know the state when `timeoutMs` has passed; none when all do. */
  async await(request: Question & { readonly timeoutMs: number }, signal: AbortSignal): Promise<readonly string[]> {
    const { uid, timeoutMs } = request;
    if (uid === "") throw new ConnectError("uid is empty", Code.InvalidArgument);
    if (timeoutMs > MAX_AWAIT_MS) {
      throw new ConnectError(`timeout_ms is ${timeoutMs}, at most ${MAX_AWAIT_MS} is possible`, Code.InvalidArgument);
    }
    if (this.#waiting >= MAX_AWAITS) throw new ConnectError("too many callers wait", Code.ResourceExhausted);
    this.#waiting++;
    const bound = deadline(this.#options.clock, timeoutMs, { reason: new Error("time is up"), parent: signal });
    try {
      const behind = await this.#settle(request, bound.signal);
      this.#metrics.bind("veil_controller_awaits_total", { result: behind.length === 0 ? "all" : "behind" }).value++;
      return behind;
    } finally {
      bound.clear();
      this.#waiting--;
    }
  }

  #askPeers(
    { uid, hbone, timeoutMs }: Question & { readonly timeoutMs: number },
    headers: Headers,
    signal: AbortSignal,
  ): Promise<readonly string[]>[] {
    const forwarded = { authorization: headers.get("authorization") ?? "", [FORWARDED_HEADER]: "1" };
    return (this.#options.peers?.() ?? []).map(async ({ name, transport }) => {
      try {
        const call = { signal, headers: forwarded, timeoutMs: timeoutMs + PEER_MARGIN_MS };
        return (await createClient(Propagation, transport).await({ uid, hbone, timeoutMs }, call)).nodesBehind;
      } catch {
        return [name]; // whoever is connected there may not know
      }
    });
  }

  async #settle(question: Question, signal: AbortSignal): Promise<readonly string[]> {
    const { cache, server } = this.#options;
    const pod = podOf(question.uid);
    for (;;) {
      const newest = pod && (await this.#newest(pod, signal));
      const done = (): boolean => this.#caughtUp(pod, newest) && matches(this.#published(question.uid), question);
      if (!(await this.#publishedSoon(done, signal))) {
        if (!signal.aborted) continue; // the pod that was read may have gone meanwhile
        return server.nodes.length > 0 ? server.nodes.toSorted() : ["controller"]; // not even published in time
      }
      const before = this.#published(question.uid);
      const target = { typeUrl: TYPE_ADDRESS, revision: cache.revision, name: question.uid };
      const behind = await server.whenAcknowledged(target, signal);
      if (behind.length > 0) return behind;
      if (this.#published(question.uid)?.version === before?.version) return [];
    }
  }

  /** Waits a while for what is to be published. False when it was not. */
  async #publishedSoon(done: () => boolean, signal: AbortSignal): Promise<boolean> {
    const { catalog, clock } = this.#options;
    const bound = deadline(clock, REREAD_MS, { reason: new Error("read the pod again"), parent: signal });
    try {
      await catalog.until(done, bound.signal);
      return true;
    } catch {
      return false;
    } finally {
      bound.clear();
    }
  }

  /** The version of the pod that the API has; undefined when it has none. */
  async #newest(at: { namespace: string; name: string }, signal: AbortSignal): Promise<string | undefined> {
    try {
      const pod = await this.#options.client.find(resources.pods, { ...at, signal });
      return pod?.metadata?.resourceVersion;
    } catch (error) {
      throw new ConnectError(`the api server does not say what the pod is: ${messageOf(error)}`, Code.Unavailable);
    }
  }

  /** True when the catalog has seen that version of the pod, or a later one. */
  #caughtUp(at: { namespace: string; name: string } | undefined, newest: string | undefined): boolean {
    if (at === undefined) return true;
    const seen: Pod | undefined = this.#options.catalog.pods.get(at.name, at.namespace);
    if (newest === undefined || seen?.metadata?.resourceVersion === undefined) return newest === undefined;
    return notOlder(seen.metadata.resourceVersion, newest);
  }

  #published(uid: string): CachedResource | undefined {
    return this.#options.cache.get(TYPE_ADDRESS, uid);
  }
}

function matches(resource: CachedResource | undefined, { hbone }: Question): boolean {
  if (resource === undefined) return !hbone;
  const address = decodeAddress(resource.value);
  return address.kind === "workload" && (address.tunnelProtocol === "hbone") === hbone;
}

function podOf(uid: string): { namespace: string; name: string } | undefined {
  const [, namespace, name] = /^[^/]+\/\/Pod\/([^/]+)\/([^/]+)$/.exec(uid) ?? [];
  return namespace === undefined || name === undefined ? undefined : { namespace, name };
}

/** Resource versions are decimal numbers that grow (KEP 5504). */
function notOlder(seen: string, than: string): boolean {
  if (!/^\d+$/.test(seen) || !/^\d+$/.test(than)) return seen === than;
  return BigInt(seen) >= BigInt(than);
}
