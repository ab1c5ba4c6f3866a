/** `istio.workload.Address`: workloads and services, what node proxies subscribe to. */
export const TYPE_ADDRESS = "type.googleapis.com/istio.workload.Address";
/** `istio.security.Authorization`: layer 4 policies. */
export const TYPE_AUTHORIZATION = "type.googleapis.com/istio.security.Authorization";
/** `istio.workload.Workload`: workloads alone, what Envoy waypoints subscribe to. */
export const TYPE_WORKLOAD = "type.googleapis.com/istio.workload.Workload";

/** One xDS resource in its encoded form. */
export interface CachedResource {
  readonly typeUrl: string;
  readonly name: string;
  /** Opaque: equal versions of a name mean equal bytes. */
  readonly version: string;
  /** Other names by which it can be asked for, for example `<network>/<ip>`. Several resources may share one. */
  readonly aliases: readonly string[];
  /** The encoded message, without its `Any`. Never changed after it was cached. */
  readonly value: Uint8Array;
}

/** What changes together: resources of one type that are new or different, and names that are gone. */
export interface ResourceUpdate {
  readonly typeUrl: string;
  readonly upserts: readonly CachedResource[];
  readonly removes: readonly string[];
}

/** What a cache tells its listeners after an update: only what really changed. */
export interface CacheChange extends ResourceUpdate {
  /** The revision that this change made. */
  readonly revision: number;
}

interface TypeEntries {
  readonly byName: Map<string, CachedResource>;
  readonly byAlias: Map<string, Map<string, CachedResource>>;
}

/**
 * The resources that a server serves, by type, name and alias. Updates are atomic: listeners are told once per update,
 * after all of it is in. Each update that changes anything makes the next revision.
 * Bounded by its source: it holds exactly what the source published.
 */
export class ResourceCache {
  readonly #types = new Map<string, TypeEntries>();
  readonly #listeners = new Set<(change: CacheChange) => void>();
  #revision = 0;

  /** Counts the updates that changed something. */
  get revision(): number {
    return this.#revision;
  }

  /** Applies an update. Equal versions and unknown names change nothing. Returns the revision that holds it. */
  apply(update: ResourceUpdate): number {
    const entries = this.#entries(update.typeUrl);
    const upserts = update.upserts.filter(
      (resource) => entries.byName.get(resource.name)?.version !== resource.version,
    );
    const removes = update.removes.filter((name) => entries.byName.has(name));
    for (const name of removes) detach(entries, name);
    for (const resource of upserts) {
      detach(entries, resource.name);
      attach(entries, resource);
    }
    if (upserts.length === 0 && removes.length === 0) return this.#revision;
    this.#revision++;
    const change = { typeUrl: update.typeUrl, upserts, removes, revision: this.#revision };
    for (const listener of this.#listeners) listener(change);
    return change.revision;
  }

  /** Adds or replaces one resource. */
  set(resource: CachedResource): number {
    return this.apply({ typeUrl: resource.typeUrl, upserts: [resource], removes: [] });
  }

  /** Removes one resource. */
  remove(typeUrl: string, name: string): number {
    return this.apply({ typeUrl, upserts: [], removes: [name] });
  }

  /** The resource of that name. */
  get(typeUrl: string, name: string): CachedResource | undefined {
    return this.#types.get(typeUrl)?.byName.get(name);
  }

  /** The resource of that name, or all that have it as an alias; empty when there is none. */
  find(typeUrl: string, nameOrAlias: string): readonly CachedResource[] {
    const entries = this.#types.get(typeUrl);
    const named = entries?.byName.get(nameOrAlias);
    if (named !== undefined) return [named];
    return [...(entries?.byAlias.get(nameOrAlias)?.values() ?? [])];
  }

  /** All names of a type. */
  names(typeUrl: string): Iterable<string> {
    return this.#types.get(typeUrl)?.byName.keys() ?? [];
  }

  /** All resources of a type. */
  list(typeUrl: string): readonly CachedResource[] {
    return [...(this.#types.get(typeUrl)?.byName.values() ?? [])];
  }

  /** How many resources of a type there are. */
  size(typeUrl: string): number {
    return this.#types.get(typeUrl)?.byName.size ?? 0;
  }

  /** Calls `listener` after each update that changed something, synchronously. The returned function ends that. */
  onChange(listener: (change: CacheChange) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  #entries(typeUrl: string): TypeEntries {
    let entries = this.#types.get(typeUrl);
    if (entries === undefined) {
      entries = { byName: new Map(), byAlias: new Map() };
      this.#types.set(typeUrl, entries);
    }
    return entries;
  }
}

function attach(entries: TypeEntries, resource: CachedResource): void {
  entries.byName.set(resource.name, resource);
  for (const alias of resource.aliases) {
    const sharers = entries.byAlias.get(alias);
    if (sharers === undefined) entries.byAlias.set(alias, new Map([[resource.name, resource]]));
    else sharers.set(resource.name, resource);
  }
}

function detach(entries: TypeEntries, name: string): void {
  const old = entries.byName.get(name);
  if (old === undefined) return;
  entries.byName.delete(name);
  for (const alias of old.aliases) {
    const sharers = entries.byAlias.get(alias);
    sharers?.delete(name);
    if (sharers?.size === 0) entries.byAlias.delete(alias);
  }
}
