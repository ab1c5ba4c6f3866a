import { DatabaseSync, type StatementSync } from "node:sqlite";
import type { Log } from "#base/log";
import { messageOf } from "#base/errors";
import { apiserverError } from "./errors.ts";
import { EventLog, type StoreEvent } from "./event-log.ts";
import type { KubeObject } from "./object.ts";
import { StoredObject, type ObjectKey } from "./stored-object.ts";

/**
 * What a write may do. Everything in one {@link Store.write} sees its own and all earlier changes, and becomes durable
 * and visible at once, or not at all.
 */
export interface Transaction {
  get(key: ObjectKey): StoredObject | undefined;
  /** All objects of a resource, in order of their keys; of one namespace when given. */
  list(resource: string, namespace?: string): readonly StoredObject[];
  /** Creates or replaces; sets `metadata.resourceVersion` in the given object. */
  put(key: ObjectKey, object: KubeObject): StoredObject;
  /** Removes; watchers see the object as it was, under the revision of the deletion. No-op when there is none. */
  remove(key: ObjectKey): void;
}

/** Called for each committed change of a resource, in order. Must not throw. */
export type StoreListener = (event: StoreEvent) => void;

interface PendingWrite {
  readonly run: (transaction: Transaction) => unknown;
  readonly dryRun: boolean;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
}

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS events (
    revision INTEGER PRIMARY KEY, type TEXT NOT NULL, resource TEXT NOT NULL, namespace TEXT NOT NULL,
    name TEXT NOT NULL, body TEXT NOT NULL);
  CREATE INDEX IF NOT EXISTS events_by_resource ON events (resource, revision);
`;

const FORMAT = "1";

/**
 * All objects of the API: in memory for reading, in SQLite for keeping. Writes that arrive together are committed
 * together (one fsync); a write's promise resolves only after the commit. One process at a time.
 */
export class Store {
  readonly #db: DatabaseSync;
  readonly #log: Log;
  readonly #objects = new Map<string, Map<string, StoredObject>>();
  readonly #sorted = new Map<string, readonly string[]>();
  readonly #events: EventLog;
  readonly #listeners = new Map<string, Set<StoreListener>>();
  readonly #insert: Record<"putObject" | "removeObject" | "addEvent" | "trimEvents" | "noteTrim", StatementSync>;
  #pending: PendingWrite[] = [];
  #revision = 1;
  #closed = false;

  /** Opens or creates the database. Throws `APISERVER_DATA_UNREADABLE` or `APISERVER_DATA_LOCKED`; never replaces a file. */
  constructor(options: { path: string; log: Log; maxEvents?: number }) {
    this.#log = options.log;
    this.#events = new EventLog(options.maxEvents ?? 2048);
    try {
      this.#db = new DatabaseSync(options.path);
      this.#db.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;");
      this.#db.exec(`BEGIN IMMEDIATE; ${SCHEMA} COMMIT;`);
      this.#load();
    } catch (error) {
      const locked = messageOf(error).includes("locked");
      throw apiserverError(
        locked ? "APISERVER_DATA_LOCKED" : "APISERVER_DATA_UNREADABLE",
        `cannot open the database ${options.path}`,
        { cause: error, details: { path: options.path } },
      );
    }
    this.#insert = {
      putObject: this.#db.prepare(
        "INSERT INTO objects VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET revision = excluded.revision, body = excluded.body",
      ),
      removeObject: this.#db.prepare("DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?"),
      addEvent: this.#db.prepare("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"),
      trimEvents: this.#db.prepare("DELETE FROM events WHERE resource = ? AND revision <= ?"),
      noteTrim: this.#db.prepare(
        "INSERT INTO meta VALUES ('trimmed:' || ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
      ),
    };
  }

  /** The revision of the newest committed write. */
  get revision(): number {
    return this.#revision;
  }

  /** How many objects are kept. */
  get size(): number {
    let size = 0;
    for (const objects of this.#objects.values()) size += objects.size;
    return size;
  }

  get(key: ObjectKey): StoredObject | undefined {
    return this.#objects.get(key.resource)?.get(pathOf(key));
  }

  /** All objects of a resource, in order of their keys; of one namespace when given. */
  list(resource: string, namespace?: string): readonly StoredObject[] {
    const objects = this.#objects.get(resource);
    if (objects === undefined) return [];
    let sorted = this.#sorted.get(resource);
    if (sorted === undefined) {
      sorted = [...objects.keys()].sort();
      this.#sorted.set(resource, sorted);
    }
    const all: StoredObject[] = [];
    const prefix = namespace === undefined ? "" : `${namespace}/`;
    for (const path of sorted) {
      const object = path.startsWith(prefix) ? objects.get(path) : undefined;
      if (object !== undefined) all.push(object);
    }
    return all;
  }

  /** The resources that have objects. */
  resources(): readonly string[] {
    return [...this.#objects.keys()].filter((resource) => this.#objects.get(resource)?.size !== 0);
  }

  /** The list as it was at a revision; undefined when too much has happened since (410). */
  listAt(resource: string, revision: number): readonly StoredObject[] | undefined {
    if (revision === this.#revision) return this.list(resource);
    return this.#events.rewind(resource, this.list(resource), revision);
  }

  /**
   * The changes of a resource after `revision`, in order; undefined when some are no longer kept (410).
   * Survives restarts: the newest changes of each resource are in the database.
   */
  eventsSince(resource: string, revision: number): readonly StoreEvent[] | undefined {
    return this.#events.since(resource, revision);
  }

  /** Calls `listener` for each later change; the returned function ends that. */
  subscribe(resource: string, listener: StoreListener): () => void {
    const listeners = this.#listeners.get(resource) ?? new Set();
    this.#listeners.set(resource, listeners.add(listener));
    return () => {
      listeners.delete(listener);
    };
  }

  /**
   * Runs a change. `run` decides and writes synchronously; when it throws, nothing of it happens and the promise rejects
   * with that. Rejects with `APISERVER_STORE_FAILED` when the disk fails. A dry run computes its result and keeps nothing.
   */
  async write<T>(run: (transaction: Transaction) => T, options: { dryRun?: boolean } = {}): Promise<T> {
    if (this.#closed) throw apiserverError("APISERVER_STORE_FAILED", "the store is closed");
    return new Promise<T>((resolve, reject) => {
      if (this.#pending.length === 0) setImmediate(() => this.#commit());
      this.#pending.push({ run, dryRun: options.dryRun ?? false, resolve, reject });
    });
  }

  /** Commits what waits and closes the file. */
  close(): void {
    if (this.#closed) return;
    this.#commit();
    this.#closed = true;
    this.#db.close();
  }

  #commit(): void {
    if (this.#closed) return;
    const batch = this.#pending.splice(0);
    const staged = new Staged(this, this.#revision);
    const done: (() => void)[] = [];
    for (const write of batch) {
      const mark = staged.mark();
      try {
        const value = write.run(staged) as never; // the type of the caller of write()
        if (write.dryRun) staged.rollback(mark);
        done.push(() => write.resolve(value));
      } catch (error) {
        staged.rollback(mark);
        done.push(() => write.reject(error));
      }
    }
    try {
      this.#persist(staged.events);
    } catch (error) {
      this.#log.error({ err: error }, "the database cannot write");
      const failure = apiserverError("APISERVER_STORE_FAILED", "the database cannot write", { cause: error });
      for (const write of batch) write.reject(failure);
      return;
    }
    for (const event of staged.events) this.#apply(event);
    for (const resolve of done) resolve();
    for (const event of staged.events) this.#tell(event);
  }

  #persist(events: readonly StoreEvent[]): void {
    if (events.length === 0) return;
    this.#db.exec("BEGIN IMMEDIATE");
    try {
      for (const event of events) {
        const { key, revision, text } = event.object;
        const { resource, namespace, name } = key;
        if (event.type === "DELETED") this.#insert.removeObject.run(resource, namespace, name);
        else this.#insert.putObject.run(resource, namespace, name, revision, text);
        this.#insert.addEvent.run(revision, event.type, resource, namespace, name, text);
      }
      for (const [resource, revision] of this.#events.overdue(events)) {
        this.#insert.trimEvents.run(resource, revision);
        this.#insert.noteTrim.run(resource, String(revision));
      }
      this.#db.exec("COMMIT");
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec("ROLLBACK");
      throw error;
    }
  }

  #apply(event: StoreEvent): void {
    const { key, revision } = event.object;
    let objects = this.#objects.get(key.resource);
    if (objects === undefined) this.#objects.set(key.resource, (objects = new Map()));
    const path = pathOf(key);
    if (event.type === "DELETED") objects.delete(path);
    else objects.set(path, event.object);
    if (event.type !== "MODIFIED") this.#sorted.delete(key.resource);
    this.#events.append(event);
    this.#revision = revision;
  }

  #tell(event: StoreEvent): void {
    for (const listener of this.#listeners.get(event.object.key.resource) ?? []) listener(event);
    for (const listener of this.#listeners.get("*") ?? []) listener(event);
  }

  #load(): void {
    const meta = this.#db.prepare("SELECT value FROM meta WHERE name = 'format'").get();
    if (meta === undefined) this.#db.prepare("INSERT INTO meta VALUES ('format', ?)").run(FORMAT);
    else if (meta["value"] !== FORMAT) throw new Error(`its format is ${String(meta["value"])}, not ${FORMAT}`);
    for (const row of this.#db.prepare("SELECT * FROM objects").iterate()) {
      const object = readRow(row);
      let objects = this.#objects.get(object.key.resource);
      if (objects === undefined) this.#objects.set(object.key.resource, (objects = new Map()));
      objects.set(pathOf(object.key), object);
      this.#revision = Math.max(this.#revision, object.revision);
    }
    for (const row of this.#db.prepare("SELECT * FROM meta WHERE name LIKE 'trimmed:%'").iterate()) {
      this.#events.restoreTrimmed(String(row["name"]).slice("trimmed:".length), Number(row["value"]));
    }
    for (const row of this.#db.prepare("SELECT * FROM events ORDER BY revision").iterate()) {
      const object = readRow(row);
      const type = row["type"];
      if (type !== "ADDED" && type !== "MODIFIED" && type !== "DELETED") throw new Error(`event type ${String(type)}`);
      this.#events.restore({ type, object, previous: undefined });
      this.#revision = Math.max(this.#revision, object.revision);
    }
  }
}

function pathOf(key: ObjectKey): string {
  return key.namespace === "" ? key.name : `${key.namespace}/${key.name}`;
}

function readRow(row: Record<string, unknown>): StoredObject {
  const { resource, namespace, name, revision, body } = row;
  if (typeof resource !== "string" || typeof namespace !== "string" || typeof name !== "string") {
    throw new TypeError("a row without a key");
  }
  if (typeof revision !== "number" || typeof body !== "string")
    throw new TypeError(`a damaged row for ${resource} ${name}`);
  return new StoredObject({ resource, namespace, name }, { revision, text: body });
}

/** The changes of a batch that are not yet committed, over what the store has. */
class Staged implements Transaction {
  readonly events: StoreEvent[] = [];
  readonly #store: Store;
  readonly #base: number;

  constructor(store: Store, base: number) {
    this.#store = store;
    this.#base = base;
  }

  get(key: ObjectKey): StoredObject | undefined {
    for (let i = this.events.length - 1; i >= 0; i--) {
      const event = this.events[i];
      if (event === undefined || !sameKey(event.object.key, key)) continue;
      return event.type === "DELETED" ? undefined : event.object;
    }
    return this.#store.get(key);
  }

  list(resource: string, namespace?: string): readonly StoredObject[] {
    const base = this.#store.list(resource, namespace);
    const touched = this.events.filter(
      ({ object }) =>
        object.key.resource === resource && (namespace === undefined || object.key.namespace === namespace),
    );
    if (touched.length === 0) return base;
    const all = new Map(base.map((object) => [pathOf(object.key), object]));
    for (const event of touched) {
      if (event.type === "DELETED") all.delete(pathOf(event.object.key));
      else all.set(pathOf(event.object.key), event.object);
    }
    return [...all.values()].sort((a, b) => (pathOf(a.key) < pathOf(b.key) ? -1 : 1));
  }

  put(key: ObjectKey, object: KubeObject): StoredObject {
    const previous = this.get(key);
    const revision = this.#nextRevision();
    object.metadata.resourceVersion = String(revision);
    const stored = new StoredObject(key, { revision, text: JSON.stringify(object) });
    this.events.push({ type: previous === undefined ? "ADDED" : "MODIFIED", object: stored, previous });
    return stored;
  }

  remove(key: ObjectKey): void {
    const previous = this.get(key);
    if (previous === undefined) return;
    const revision = this.#nextRevision();
    const object = previous.copy();
    object.metadata.resourceVersion = String(revision);
    const stored = new StoredObject(key, { revision, text: JSON.stringify(object) });
    this.events.push({ type: "DELETED", object: stored, previous });
  }

  mark(): number {
    return this.events.length;
  }

  rollback(mark: number): void {
    this.events.length = mark;
  }

  #nextRevision(): number {
    return this.#base + this.events.length + 1;
  }
}

function sameKey(a: ObjectKey, b: ObjectKey): boolean {
  return a.name === b.name && a.namespace === b.namespace && a.resource === b.resource;
}
