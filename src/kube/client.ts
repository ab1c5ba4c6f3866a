import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { KubeConfig } from "./config.ts";
import { isKubeError } from "./errors.ts";
import { execInPod, type ExecRequest, type ExecResult } from "./exec.ts";
import { apiVersionOf, resourcePath, type KubeObject, type ResourceRef } from "./object.ts";
import { requestToken, reviewToken, type ServiceAccountToken, type TokenOptions, type TokenVerdict } from "./tokens.ts";
import { KubeTransport, type RawRequest } from "./transport.ts";
import { watchEvents, type WatchEvent, type WatchOptions } from "./watch.ts";

/** What every call takes. */
export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

/** Names an object. */
export interface ObjectAt extends CallOptions {
  readonly name: string;
  /** Needed for kinds that live in namespaces. */
  readonly namespace?: string | undefined;
}

/** Which objects of a kind. */
export interface ListOptions extends CallOptions {
  /** Left out: all namespaces. */
  readonly namespace?: string | undefined;
  readonly labelSelector?: string | undefined;
  readonly fieldSelector?: string | undefined;
  /** Objects per page; all pages are fetched. Default 500. */
  readonly limit?: number;
  readonly resourceVersion?: string;
}

/** Objects of a kind at one version of the store. */
export interface ObjectList<T> {
  readonly items: T[];
  /** From where a watch goes on. */
  readonly resourceVersion: string;
}

/** How to change an object, and with what. */
export interface PatchOptions extends CallOptions {
  readonly type: "merge" | "json" | "strategic" | "apply";
  readonly body: unknown;
  readonly subresource?: string;
  /** Needed for `apply`. */
  readonly fieldManager?: string;
  readonly force?: boolean;
}

/** What may go along with a deletion. */
export interface DeleteOptions extends ObjectAt {
  readonly gracePeriodSeconds?: number;
  /** Only when the object still is this one. */
  readonly uid?: string;
  readonly propagationPolicy?: "Background" | "Foreground" | "Orphan";
}

const PATCH_TYPES = {
  merge: "application/merge-patch+json",
  json: "application/json-patch+json",
  strategic: "application/strategic-merge-patch+json",
  apply: "application/apply-patch+yaml", // JSON is YAML
} as const;

const PAGE = 500;

/**
 * A thin client of the Kubernetes API. Every method rejects with a `KUBE_*` error (errors.ts), or with the signal's
 * reason when aborted. Objects come as they are on the wire, without checks: the API has validated them.
 */
export class KubeClient {
  readonly config: KubeConfig;
  readonly #transport: KubeTransport;
  readonly #clock: Clock;

  constructor(parts: { config: KubeConfig; log: Log; clock: Clock; random: Random }) {
    this.config = parts.config;
    this.#clock = parts.clock;
    this.#transport = new KubeTransport(parts.config, parts);
  }

  /** Reads one object; `where` is its namespace, or namespace and signal. Rejects with `KUBE_NOT_FOUND`. */
  async get<T extends KubeObject>(
    ref: ResourceRef<T>,
    name: string,
    where?: string | { namespace?: string | undefined; signal?: AbortSignal | undefined },
  ): Promise<T> {
    const { namespace, signal } = typeof where === "string" ? { namespace: where } : { signal: undefined, ...where };
    return this.#typed<T>({ method: "GET", path: resourcePath(ref, { name, namespace }), signal });
  }

  /** As {@link get}; undefined when there is no such object. */
  async find<T extends KubeObject>(ref: ResourceRef<T>, at: ObjectAt): Promise<T | undefined> {
    try {
      return await this.get(ref, at.name, at);
    } catch (error) {
      if (isKubeError(error, "KUBE_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  /** Reads all objects that match, page by page. */
  async list<T extends KubeObject>(ref: ResourceRef<T>, options: ListOptions = {}): Promise<ObjectList<T>> {
    const items: T[] = [];
    const { namespace, signal, limit = PAGE, labelSelector, fieldSelector, resourceVersion } = options;
    let next: string | undefined;
    let version = "";
    do {
      const query = { limit, labelSelector, fieldSelector, resourceVersion: next ? undefined : resourceVersion };
      const page = await this.#typed<{
        items?: T[] | null;
        metadata?: { resourceVersion?: string; continue?: string };
      }>({ method: "GET", path: resourcePath(ref, { namespace }), query: { ...query, continue: next }, signal });
      for (const item of page.items ?? []) items.push({ apiVersion: apiVersionOf(ref), kind: ref.kind, ...item });
      version = page.metadata?.resourceVersion ?? version;
      next = page.metadata?.continue;
    } while (next !== undefined && next !== "");
    return { items, resourceVersion: version };
  }

  /** Creates an object in its own namespace. Rejects with `KUBE_ALREADY_EXISTS`. */
  async create<T extends KubeObject>(ref: ResourceRef<T>, object: T, options: CallOptions = {}): Promise<T> {
    const { namespace } = object.metadata ?? {};
    const body = { apiVersion: apiVersionOf(ref), kind: ref.kind, ...object };
    return this.#typed<T>({ method: "POST", path: resourcePath(ref, { namespace }), body, ...options });
  }

  /** Writes a whole object; rejects with `KUBE_CONFLICT` when its `resourceVersion` is no longer the newest. */
  async replace<T extends KubeObject>(
    ref: ResourceRef<T>,
    object: T,
    options: CallOptions & { subresource?: string } = {},
  ): Promise<T> {
    const { namespace, name } = object.metadata ?? {};
    const path = resourcePath(ref, { namespace, name, subresource: options.subresource });
    const body = { apiVersion: apiVersionOf(ref), kind: ref.kind, ...object };
    return this.#typed<T>({ method: "PUT", path, body, signal: options.signal });
  }

  /** Changes part of an object. */
  async patch<T extends KubeObject>(ref: ResourceRef<T>, at: ObjectAt, options: PatchOptions): Promise<T> {
    const { type, body, subresource, fieldManager, force } = options;
    return this.#typed<T>({
      method: "PATCH",
      path: resourcePath(ref, { ...at, subresource }),
      query: { fieldManager, force },
      body,
      contentType: PATCH_TYPES[type],
      signal: options.signal ?? at.signal,
    });
  }

  /** Deletes an object; resolves when the deletion has begun. Rejects with `KUBE_NOT_FOUND`. */
  async delete(ref: ResourceRef, options: DeleteOptions): Promise<void> {
    const { gracePeriodSeconds, uid, propagationPolicy, signal } = options;
    const body = {
      apiVersion: "v1",
      kind: "DeleteOptions",
      ...(gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
      ...(uid === undefined ? {} : { preconditions: { uid } }),
      ...(propagationPolicy === undefined ? {} : { propagationPolicy }),
    };
    await this.#transport.json({ method: "DELETE", path: resourcePath(ref, options), body, signal });
  }

  /**
   * What changes, from `resourceVersion` on, until the API ends the stream (the iteration ends) or fails (it throws;
   * `KUBE_GONE`: list again). Leaving the loop closes the connection.
   */
  watch<T extends KubeObject>(ref: ResourceRef<T>, options: WatchOptions): AsyncGenerator<WatchEvent<T>, void> {
    return watchEvents(this.#transport, ref, options);
  }

  /** Asks for a token of a service account (TokenRequest). */
  async createToken(namespace: string, serviceAccount: string, options: TokenOptions): Promise<ServiceAccountToken> {
    return requestToken(this.#transport, { namespace, serviceAccount, ...options });
  }

  /** Asks whose token this is (TokenReview). A wrong token is an answer, not a failure. */
  async reviewToken(token: string, audiences: readonly string[], options: CallOptions = {}): Promise<TokenVerdict> {
    return reviewToken(this.#transport, { token, audiences, ...options });
  }

  /** The log of a container, whole or its last lines. */
  async logs(
    options: ObjectAt & { namespace: string; container?: string; tailLines?: number; previous?: boolean },
  ): Promise<string> {
    const { name, namespace, container, tailLines, previous, signal } = options;
    const path = resourcePath(
      { group: "", version: "v1", plural: "pods", kind: "Pod", namespaced: true },
      {
        name,
        namespace,
        subresource: "log",
      },
    );
    return this.#transport.text({ method: "GET", path, query: { container, tailLines, previous }, signal });
  }

  /** Runs a command in a container and waits for its end. Rejects with `KUBE_EXEC` when it could not start. */
  async exec(request: ExecRequest): Promise<ExecResult> {
    return execInPod(this.#transport, request, this.#clock);
  }

  /** Any other request; resolves with the parsed JSON answer, unchecked. */
  async request(request: RawRequest): Promise<unknown> {
    return this.#transport.json(request);
  }

  /** Closes idle connections; calls under way go on. */
  close(): void {
    this.#transport.close();
  }

  async #typed<T>(request: RawRequest): Promise<T> {
    return (await this.#transport.json(request)) as T; // the API has validated what it stores
  }
}
