import type { DeltaDiscoveryRequest } from "#proto";
import type { CacheChange, CachedResource, ResourceCache } from "./cache.ts";
import { Subscription } from "./subscription.ts";

/** What a client's version is called in its node's metadata. */
export const VERSION_KEY = "VEIL_VERSION";
/** A release; whatever else a client calls its version is none, so that metrics have few labels. */
const VERSION = /^\d{1,4}\.\d{1,4}\.\d{1,4}$/;

/** Resource types that one stream may follow; requests for further ones are ignored. */
const MAX_TYPES = 16;

/** What a stream is to send next. */
export interface NextResponse {
  readonly typeUrl: string;
  readonly nonce: string;
  readonly resources: readonly CachedResource[];
  readonly removed: readonly string[];
}

/** One client's stream: its subscriptions by type, and the bell that wakes its sender. */
export class ServerStream {
  readonly #cache: ResourceCache;
  readonly #subscriptions = new Map<string, Subscription>();
  readonly #closed = new AbortController();
  #node: string;
  #version = "none";
  #nonce = 0;
  #bell = Promise.withResolvers<void>();

  /** `node` is the authenticated name, or empty: then the client's own word is used. */
  constructor(cache: ResourceCache, node: string, signal: AbortSignal) {
    this.#cache = cache;
    this.#node = node;
    if (signal.aborted) this.close();
    else signal.addEventListener("abort", () => this.close(), { once: true, signal: this.#closed.signal });
  }

  get node(): string {
    return this.#node === "" ? "unknown" : this.#node;
  }

  get closed(): boolean {
    return this.#closed.signal.aborted;
  }

  /** Aborted when the stream ends. */
  get signal(): AbortSignal {
    return this.#closed.signal;
  }

  /** The client's version, as it said; `none` when it did not. */
  get version(): string {
    return this.#version;
  }

  /** Takes what the client says of itself in its first request: its version, and its name when it was not authenticated. */
  introduce({ node }: DeltaDiscoveryRequest): void {
    if (this.#node === "" && node !== undefined) this.#node = nodeName(node);
    const version = node?.metadata?.[VERSION_KEY];
    if (typeof version === "string" && VERSION.test(version)) this.#version = version;
  }

  /** Takes a request. Returns the client's words when it refuses (part of) a response. */
  request(request: DeltaDiscoveryRequest): string | undefined {
    const { typeUrl, responseNonce, errorDetail } = request;
    const subscription = this.#subscriptions.get(typeUrl);
    if (subscription === undefined) {
      if (this.#subscriptions.size < MAX_TYPES) {
        this.#subscriptions.set(typeUrl, new Subscription(this.#cache, typeUrl, request));
      }
    } else {
      subscription.subscribe(request);
      subscription.acknowledge(responseNonce, errorDetail?.message);
    }
    this.#ring();
    return errorDetail?.message;
  }

  note(change: CacheChange): void {
    if (this.#subscriptions.get(change.typeUrl)?.note(change) === true) this.#ring();
  }

  settle(typeUrl: string, name: string): void {
    this.#subscriptions.get(typeUrl)?.settle(name);
    this.#ring();
  }

  /** Asks open questions again and looks anew whether types have become ready. */
  recheck(): void {
    for (const subscription of this.#subscriptions.values()) subscription.reopen();
    this.#ring();
  }

  /** True when the client holds what is waited for, or does not follow its type. */
  holds({ typeUrl, revision, name }: { typeUrl: string; revision: number; name?: string }): boolean {
    if (this.#subscriptions.size === 0) return false;
    const subscription = this.#subscriptions.get(typeUrl);
    if (subscription === undefined) return true;
    return subscription.holds(revision) && (name === undefined || !subscription.rejected.has(name));
  }

  rejected(typeUrl: string): Iterable<[string, string]> {
    return this.#subscriptions.get(typeUrl)?.rejected ?? [];
  }

  /** The next response, when some type has one, and the questions that have to be looked for elsewhere. */
  take(options: { ready: (typeUrl: string) => boolean; mayDeny: (typeUrl: string) => boolean }): {
    response: NextResponse | undefined;
    unanswered: readonly { typeUrl: string; name: string }[];
  } {
    this.#bell = Promise.withResolvers<void>();
    const unanswered: { typeUrl: string; name: string }[] = [];
    for (const [typeUrl, subscription] of this.#subscriptions) {
      if (!options.ready(typeUrl)) continue;
      const nonce = String(this.#nonce + 1);
      const taken = subscription.take(nonce, options.mayDeny(typeUrl));
      unanswered.push(...taken.unanswered.map((name) => ({ typeUrl, name })));
      if (taken.batch === undefined) continue;
      this.#nonce++;
      return { response: { typeUrl, nonce, ...taken.batch }, unanswered };
    }
    return { response: undefined, unanswered };
  }

  /** Resolves when there may be something to take since the last `take`, or when the stream has closed. */
  async woken(): Promise<void> {
    if (!this.closed) await this.#bell.promise;
  }

  close(): void {
    this.#closed.abort();
    this.#ring();
  }

  #ring(): void {
    this.#bell.resolve();
  }
}

function nodeName(node: NonNullable<DeltaDiscoveryRequest["node"]>): string {
  const name = node.metadata?.["NODE_NAME"];
  return typeof name === "string" && name !== "" ? name : node.id;
}
