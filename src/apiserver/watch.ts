import type { ServerResponse } from "node:http";
import { every, type Clock } from "#base/clock";
import type { Random } from "#base/random";
import { MAX_WATCH_BACKLOG_BYTES } from "./config.ts";
import type { StoreEvent } from "./event-log.ts";
import { apiVersionOf, resourceOf } from "./kinds.ts";
import type { KubeObject } from "./object.ts";
import type { Renderer } from "./render.ts";
import { badRequest, expired } from "./status.ts";
import type { Store } from "./store.ts";
import type { StoredObject } from "./stored-object.ts";

const BOOKMARK_PERIOD_MS = 30_000;
const LEAST_TIMEOUT_SECONDS = 1800;

/** What a watch is to show. */
export interface WatchRequest {
  readonly renderer: Renderer;
  /** Empty for all namespaces. */
  readonly namespace: string;
  readonly matches: (object: Readonly<KubeObject>) => boolean;
  /** As the client gave it: empty or `0` for "from now, and first what there is". */
  readonly resourceVersion: string;
  readonly bookmarks: boolean;
  /** Send what there is first, then a bookmark that says so (WatchList). */
  readonly initialEvents: boolean;
  readonly timeoutSeconds: number | undefined;
}

/** Reads a resource version that a client gives. Throws 400. */
export function parseRevision(text: string): number {
  if (!/^\d{1,15}$/.test(text)) {
    throw badRequest(
      `resourceVersion: Invalid value: "${text.slice(0, 100)}": it must be the one of a list or an object`,
    );
  }
  return Number(text);
}

/**
 * Streams the changes of a resource until the client leaves, the time is over, or the client reads too slowly (then it
 * comes back and resumes). Throws 410 when the changes since `resourceVersion` are not kept any more.
 */
export class Watch {
  readonly #store: Store;
  readonly #request: WatchRequest;
  readonly #response: ServerResponse;
  #rendered = 0;
  #sentRevision = 0;
  #stops: (() => void)[] = [];

  constructor(options: { store: Store; request: WatchRequest; response: ServerResponse }) {
    this.#store = options.store;
    this.#request = options.request;
    this.#response = options.response;
  }

  start(clock: Clock, random: Random): void {
    const { resourceVersion, initialEvents, timeoutSeconds, renderer } = this.#request;
    const fromNow = resourceVersion === "" || resourceVersion === "0" || initialEvents;
    const since = fromNow ? this.#store.revision : parseRevision(resourceVersion);
    const resource = resourceOf(renderer.kind);
    const missed = since > this.#store.revision ? undefined : this.#store.eventsSince(resource, since);
    if (missed === undefined) throw expired(`too old resource version: ${since} (${this.#store.revision})`);
    this.#response.writeHead(200, { "content-type": "application/json", "cache-control": "no-cache, private" });
    this.#response.flushHeaders();
    if (fromNow) for (const object of this.#store.list(resource, this.#namespace)) this.#first(object);
    if (initialEvents) this.#bookmark({ "k8s.io/initial-events-end": "true" });
    for (const event of missed) this.#deliver(event);
    this.#sentRevision = Math.max(this.#sentRevision, since);
    const seconds = timeoutSeconds ?? LEAST_TIMEOUT_SECONDS + random.below(LEAST_TIMEOUT_SECONDS);
    this.#stops = [
      this.#store.subscribe(resource, (event) => this.#deliver(event)),
      clock.after(seconds * 1000, () => this.end()),
      ...(this.#request.bookmarks ? [every(clock, BOOKMARK_PERIOD_MS, () => this.#bookmark())] : []),
    ];
    this.#response.once("close", () => this.#release());
  }

  /** Ends the stream in good order. May be called twice. */
  end(): void {
    this.#release();
    this.#response.end();
  }

  /** The resource that is watched. */
  get resource(): string {
    return resourceOf(this.#request.renderer.kind);
  }

  get #namespace(): string | undefined {
    return this.#request.namespace === "" ? undefined : this.#request.namespace;
  }

  #release(): void {
    for (const stop of this.#stops.splice(0)) stop();
  }

  #first(object: StoredObject): void {
    if (this.#request.matches(object.object)) this.#send("ADDED", object);
  }

  #deliver(event: StoreEvent): void {
    const { object, previous } = event;
    this.#sentRevision = object.revision;
    if (this.#namespace !== undefined && object.key.namespace !== this.#namespace) return;
    const now = event.type !== "DELETED" && this.#request.matches(object.object);
    // Without the version before (it is older than what is kept) the watcher may have seen the object.
    const before = event.type !== "ADDED" && (previous === undefined || this.#request.matches(previous.object));
    if (now) this.#send(before ? "MODIFIED" : "ADDED", object);
    else if (before) this.#send("DELETED", object);
  }

  #send(type: string, object: StoredObject): void {
    this.#write(type, this.#request.renderer.event(object, this.#rendered === 0));
    this.#rendered++;
  }

  #bookmark(annotations?: Record<string, string>): void {
    const { kind, form } = this.#request.renderer;
    const metadata = {
      resourceVersion: String(this.#store.revision),
      creationTimestamp: null,
      ...(annotations && { annotations }),
    };
    const bare = { kind: kind.kind, apiVersion: apiVersionOf(kind), metadata };
    const partial = { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1", metadata };
    const table = {
      kind: "Table",
      apiVersion: "meta.k8s.io/v1",
      metadata: { resourceVersion: metadata.resourceVersion },
      columnDefinitions: null,
      rows: [{ cells: kind.columns.map(() => ""), object: partial }],
    };
    this.#write("BOOKMARK", JSON.stringify(form === "json" ? bare : form === "metadata" ? partial : table));
  }

  #write(type: string, object: string): void {
    this.#response.write(`{"type":"${type}","object":${object}}\n`);
    if (this.#response.writableLength > MAX_WATCH_BACKLOG_BYTES) this.#response.destroy();
  }
}
