import type { DeltaDiscoveryRequest } from "#proto";
import type { CacheChange, CachedResource, ResourceCache } from "./cache.ts";

/** Responses of one type that a stream may leave unacknowledged; until it answers, further changes are merged. */
export const MAX_UNACKNOWLEDGED = 16;
/** Resources and removals in one response, but for the first response, which has to be complete. */
export const MAX_NAMES_PER_RESPONSE = 10_000;
/** Names that one stream asked for and that do not exist: remembered, so that their appearance can be told. */
export const MAX_ABSENT_NAMES = 4096;

/** What is to be sent now, and which questions have to be looked for elsewhere first. */
export interface Taken {
  readonly batch: { readonly resources: readonly CachedResource[]; readonly removed: readonly string[] } | undefined;
  readonly unanswered: readonly string[];
}

interface Unacknowledged {
  readonly nonce: string;
  readonly revision: number;
  readonly names: readonly string[];
}

/**
 * What one stream follows of one type, and what it still has to be told. Bookkeeping only, no I/O:
 *
 *     cache change ──▶ dirty ─────┐
 *     question ──▶ questions ─────┴─ take() ──▶ unacknowledged (window of 16) ── acknowledge() ──▶ revision held
 *                  ▲       └─▶ open (no answer yet) ─┐
 *                  └──── settle(), reopen() ─────────┘
 *
 * Changes are kept as names, never as values: a stream that is slow costs a set of names, and gets the latest state.
 */
export class Subscription {
  readonly #cache: ResourceCache;
  readonly #typeUrl: string;
  #wildcard: boolean;
  /** Versions that the client holds from an earlier stream; until the first response. */
  #initial: Readonly<Record<string, string>> | undefined;
  readonly #dirty = new Set<string>();
  readonly #questions = new Set<string>();
  readonly #open = new Set<string>();
  /** Questions whose absence was confirmed elsewhere. */
  readonly #settled = new Set<string>();
  /** For a client that follows single names: those that exist, those that do not, and which resources it was told of. */
  readonly #followed = new Set<string>();
  readonly #absent = new Set<string>();
  readonly #told = new Set<string>();
  #unacknowledged: Unacknowledged[] = [];
  #heldRevision = -1;
  readonly #rejected = new Map<string, string>();

  constructor(cache: ResourceCache, typeUrl: string, first: DeltaDiscoveryRequest) {
    this.#cache = cache;
    this.#typeUrl = typeUrl;
    this.#initial = first.initialResourceVersions;
    // A first request without names asks for everything (the older form of "*"); later an empty list means nothing new.
    this.#wildcard = first.resourceNamesSubscribe.length === 0;
    this.subscribe(first);
  }

  /** Names whose last response the client refused, with its words. */
  get rejected(): ReadonlyMap<string, string> {
    return this.#rejected;
  }

  /** Takes the changes of interest that a request carries. Asking again for a name answers it again. */
  subscribe(request: DeltaDiscoveryRequest): void {
    const wasWildcard = this.#wildcard;
    for (const name of request.resourceNamesSubscribe) {
      if (name === "*") this.#wildcard = true;
      else this.#questions.add(name);
    }
    for (const name of request.resourceNamesUnsubscribe) {
      if (name === "*") this.#wildcard = false;
      else this.#forget(name);
    }
    if (this.#initial !== undefined || wasWildcard || !this.#wildcard) return;
    for (const name of this.#cache.names(this.#typeUrl)) this.#dirty.add(name);
  }

  /** Notes what of a change concerns this stream. Returns whether there is something to send. */
  note(change: CacheChange): boolean {
    for (const resource of change.upserts) {
      if (this.#follows(resource)) this.#dirty.add(resource.name);
      for (const name of [resource.name, ...resource.aliases]) if (this.#open.delete(name)) this.#questions.add(name);
    }
    for (const name of change.removes) if (this.#wildcard || this.#told.has(name)) this.#dirty.add(name);
    return this.#dirty.size > 0 || this.#questions.size > 0;
  }

  /** An open question was looked for elsewhere: what the cache says about it now is the answer, absence included. */
  settle(name: string): void {
    if (!this.#open.delete(name)) return;
    this.#settled.add(name);
    this.#questions.add(name);
  }

  /** Asks all open questions again. */
  reopen(): void {
    for (const name of this.#open) this.#questions.add(name);
    this.#open.clear();
  }

  /**
   * Takes what is to be sent now; the caller sends it under `nonce`. `mayDeny` says whether an unknown name may be
   * answered with its absence; if not, it stays open and is returned as unanswered.
   */
  take(nonce: string, mayDeny: boolean): Taken {
    if (this.#unacknowledged.length >= MAX_UNACKNOWLEDGED) return { batch: undefined, unanswered: [] };
    const first = this.#initial !== undefined;
    this.#begin();
    const resources = new Map<string, CachedResource>();
    const removed = new Set<string>();
    const unanswered = this.#takeQuestions(resources, removed, mayDeny);
    this.#takeDirty(resources, removed, first ? Infinity : MAX_NAMES_PER_RESPONSE);
    if (!first && resources.size === 0 && removed.size === 0) return { batch: undefined, unanswered };
    const before = this.#unacknowledged.at(-1)?.revision ?? this.#heldRevision;
    const revision = this.#dirty.size === 0 ? this.#cache.revision : before;
    this.#unacknowledged.push({ nonce, revision, names: [...resources.keys(), ...removed] });
    return { batch: { resources: [...resources.values()], removed: [...removed] }, unanswered };
  }

  /** Takes the client's answer to a response. False when the nonce is none that waits (stale): nothing changes then. */
  acknowledge(nonce: string, refusal: string | undefined): boolean {
    const at = this.#unacknowledged.findIndex((entry) => entry.nonce === nonce);
    const answered = this.#unacknowledged[at];
    if (answered === undefined) return false;
    for (const { names } of this.#unacknowledged.slice(0, at + 1))
      for (const name of names) this.#rejected.delete(name);
    this.#unacknowledged = this.#unacknowledged.slice(at + 1);
    this.#heldRevision = answered.revision;
    if (refusal !== undefined) this.#reject(answered.names, refusal);
    return true;
  }

  /** True when the client has acknowledged everything that concerns it, up to and including `revision` of the cache. */
  holds(revision: number): boolean {
    if (this.#initial !== undefined) return false;
    if (this.#heldRevision >= revision) return true;
    return this.#dirty.size === 0 && this.#unacknowledged.length === 0;
  }

  #reject(names: readonly string[], refusal: string): void {
    const named = names.filter((name) => refusal.includes(`${name}: `));
    for (const name of named.length > 0 ? named : names) this.#rejected.set(name, refusal);
  }

  /** Compares what the client brought with what there is, when the first response is made and not before. */
  #begin(): void {
    const initial = this.#initial;
    if (initial === undefined) return;
    this.#initial = undefined;
    for (const [name, version] of Object.entries(initial)) {
      const resource = this.#cache.get(this.#typeUrl, name);
      if (!this.#wildcard) this.#told.add(name);
      if (resource?.version !== version) this.#dirty.add(name);
      else if (this.#questions.delete(name) && !this.#wildcard) this.#followed.add(name);
    }
    if (!this.#wildcard) return;
    for (const name of this.#cache.names(this.#typeUrl)) if (!Object.hasOwn(initial, name)) this.#dirty.add(name);
  }

  #takeQuestions(resources: Map<string, CachedResource>, removed: Set<string>, mayDeny: boolean): string[] {
    const unanswered: string[] = [];
    for (const name of this.#questions) {
      const found = this.#cache.find(this.#typeUrl, name);
      const settled = this.#settled.delete(name);
      for (const resource of found) this.#tell(resource, resources);
      if (found.length > 0) this.#follow(name);
      else if (mayDeny || settled) this.#deny(name, removed);
      else {
        remember(this.#open, name);
        unanswered.push(name);
      }
    }
    this.#questions.clear();
    return unanswered;
  }

  #takeDirty(resources: Map<string, CachedResource>, removed: Set<string>, most: number): void {
    for (const name of this.#dirty) {
      if (resources.size + removed.size >= most) return;
      this.#dirty.delete(name);
      const resource = this.#cache.get(this.#typeUrl, name);
      if (resource !== undefined) this.#tell(resource, resources);
      else {
        removed.add(name);
        this.#told.delete(name);
      }
    }
  }

  #tell(resource: CachedResource, resources: Map<string, CachedResource>): void {
    resources.set(resource.name, resource);
    this.#dirty.delete(resource.name);
    if (!this.#wildcard) this.#told.add(resource.name);
  }

  #follow(name: string): void {
    if (this.#wildcard) return;
    this.#absent.delete(name);
    this.#followed.add(name);
  }

  #deny(name: string, removed: Set<string>): void {
    removed.add(name);
    if (this.#wildcard) return;
    this.#followed.delete(name);
    remember(this.#absent, name);
  }

  #follows({ name, aliases }: CachedResource): boolean {
    if (this.#wildcard || this.#told.has(name)) return true;
    return [name, ...aliases].some((asked) => this.#followed.has(asked) || this.#absent.has(asked));
  }

  #forget(name: string): void {
    for (const names of [this.#questions, this.#open, this.#settled, this.#followed, this.#absent]) names.delete(name);
    if (this.#wildcard || !this.#told.delete(name)) return;
    this.#dirty.delete(name);
  }
}

/** Adds a name that does not exist; the one asked for longest ago makes room. */
function remember(names: Set<string>, name: string): void {
  names.delete(name);
  names.add(name);
  const [oldest] = names;
  if (names.size > MAX_ABSENT_NAMES && oldest !== undefined) names.delete(oldest);
}
