import type { StoredObject } from "./stored-object.ts";

/** One committed change. */
export interface StoreEvent {
  readonly type: "ADDED" | "MODIFIED" | "DELETED";
  /** The object after the change; for a deletion the last state, under the revision of the deletion. */
  readonly object: StoredObject;
  /** The object before the change; undefined for a creation, or when it is no longer known. */
  readonly previous: StoredObject | undefined;
}

interface ResourceLog {
  events: StoreEvent[];
  /** Changes up to this revision are not kept any more. */
  forgotten: number;
  /** The same for the database, which is trimmed a little later. */
  trimmed: number;
}

/** The newest changes of each resource, so that watches resume and pages are consistent. Bounded for each resource. */
export class EventLog {
  readonly #maxEvents: number;
  readonly #logs = new Map<string, ResourceLog>();

  constructor(maxEvents: number) {
    this.#maxEvents = maxEvents;
  }

  /** Adds a committed change; forgets the oldest quarter when there are too many. */
  append(event: StoreEvent): void {
    const log = this.#logOf(event.object.key.resource);
    log.events.push(event);
    if (log.events.length <= this.#maxEvents) return;
    const dropped = log.events.splice(0, Math.ceil(this.#maxEvents / 4));
    log.forgotten = dropped.at(-1)?.object.revision ?? log.forgotten;
  }

  /** Adds a change that was read from the database at start, in order of revisions. */
  restore(event: StoreEvent): void {
    const log = this.#logOf(event.object.key.resource);
    const { namespace, name } = event.object.key;
    const before = log.events.findLast(({ object }) => object.key.name === name && object.key.namespace === namespace);
    const previous = event.type === "ADDED" ? undefined : before?.object;
    log.events.push({ ...event, previous });
  }

  /** Tells what was trimmed from the database in earlier lives. */
  restoreTrimmed(resource: string, revision: number): void {
    const log = this.#logOf(resource);
    log.forgotten = revision;
    log.trimmed = revision;
  }

  /** Of which resources the database holds changes that are no longer kept, and up to which revision. */
  overdue(added: readonly StoreEvent[]): [resource: string, revision: number][] {
    const out: [string, number][] = [];
    for (const resource of new Set(added.map((event) => event.object.key.resource))) {
      const log = this.#logs.get(resource);
      if (log === undefined || log.forgotten === log.trimmed) continue;
      out.push([resource, log.forgotten]);
      log.trimmed = log.forgotten;
    }
    return out;
  }

  /** The changes after a revision, or undefined when some of them are forgotten. */
  since(resource: string, revision: number): readonly StoreEvent[] | undefined {
    const log = this.#logs.get(resource);
    if (log === undefined) return [];
    if (revision < log.forgotten) return undefined;
    const { events } = log;
    let low = 0;
    let high = events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((events[middle]?.object.revision ?? 0) <= revision) low = middle + 1;
      else high = middle;
    }
    return events.slice(low);
  }

  /** Undoes, in a list of the present, what happened after `revision`; undefined when that is no longer known. */
  rewind(resource: string, present: readonly StoredObject[], revision: number): readonly StoredObject[] | undefined {
    const later = this.since(resource, revision);
    if (later === undefined) return undefined;
    if (later.length === 0) return present;
    const path = ({ key }: StoredObject): string => (key.namespace === "" ? key.name : `${key.namespace}/${key.name}`);
    const then = new Map(present.map((object) => [path(object), object]));
    for (const event of later.toReversed()) {
      if (event.type === "ADDED") then.delete(path(event.object));
      else if (event.previous === undefined) return undefined;
      else then.set(path(event.previous), event.previous);
    }
    return [...then.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, object]) => object);
  }

  #logOf(resource: string): ResourceLog {
    let log = this.#logs.get(resource);
    if (log === undefined) this.#logs.set(resource, (log = { events: [], forgotten: 0, trimmed: 0 }));
    return log;
  }
}
