import type { IncomingMessage } from "node:http";
import { kubeError, parseStatus, statusError, transportError } from "./errors.ts";
import { resourcePath, type KubeObject, type ResourceRef } from "./object.ts";
import type { KubeTransport } from "./transport.ts";

/** One event of a watch. A bookmark carries only `metadata.resourceVersion`. */
export interface WatchEvent<T> {
  readonly type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK";
  readonly object: T;
}

/** What to watch, and from where on. */
export interface WatchOptions {
  readonly namespace?: string | undefined;
  readonly labelSelector?: string | undefined;
  readonly fieldSelector?: string | undefined;
  /** Changes after this version; left out: everything there is as ADDED, then changes. */
  readonly resourceVersion?: string;
  /** After this the API ends the stream. Default 300. */
  readonly timeoutSeconds?: number;
  /** Called when the API has accepted the watch. */
  readonly onOpen?: () => void;
  readonly signal?: AbortSignal | undefined;
}

/** One event is one line, and no object that the API stores is larger than this. */
const MAX_LINE_BYTES = 16 * 1024 * 1024;

/** See `KubeClient.watch`. */
export async function* watchEvents<T extends KubeObject>(
  transport: KubeTransport,
  ref: ResourceRef<T>,
  options: WatchOptions,
): AsyncGenerator<WatchEvent<T>, void> {
  const { namespace, labelSelector, fieldSelector, resourceVersion, timeoutSeconds = 300, signal } = options;
  const path = resourcePath(ref, { namespace });
  const query = {
    watch: true,
    allowWatchBookmarks: true,
    labelSelector,
    fieldSelector,
    resourceVersion,
    timeoutSeconds,
  };
  const stream = await transport.stream({ method: "GET", path, query, signal });
  options.onOpen?.();
  const onAbort = (): void => void stream.destroy();
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    for await (const line of readLines(stream)) yield parseEvent<T>(path, line);
    signal?.throwIfAborted();
    if (!stream.complete) throw kubeError("KUBE_UNAVAILABLE", `watch of ${path} was cut`);
  } catch (error) {
    signal?.throwIfAborted();
    throw error instanceof Error && "details" in error ? error : transportError(`watch of ${path}`, error);
  } finally {
    signal?.removeEventListener("abort", onAbort);
    stream.destroy();
  }
}

/** Splits a stream into lines, without the empty ones. Throws `KUBE_PROTOCOL` when a line is too long. */
export async function* readLines(stream: AsyncIterable<Uint8Array> | IncomingMessage): AsyncGenerator<string, void> {
  let parts: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream) {
    let rest = Buffer.from(chunk as Uint8Array); // no encoding is set on the stream
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      parts.push(rest.subarray(0, end));
      const line = Buffer.concat(parts).toString("utf8");
      parts = [];
      size = 0;
      rest = rest.subarray(end + 1);
      if (line.trim() !== "") yield line;
    }
    size += rest.length;
    if (size > MAX_LINE_BYTES) throw kubeError("KUBE_PROTOCOL", `a watch event is larger than ${MAX_LINE_BYTES} bytes`);
    if (rest.length > 0) parts.push(rest);
  }
}

/** Reads one line of a watch. Throws `KUBE_PROTOCOL`, or what an ERROR event says (`KUBE_GONE`). */
export function parseEvent<T extends KubeObject>(path: string, line: string): WatchEvent<T> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw kubeError("KUBE_PROTOCOL", `watch of ${path} sent no JSON`, { cause });
  }
  const type = memberOf(value, "type");
  const object = memberOf(value, "object");
  if (typeof object !== "object" || object === null) {
    throw kubeError("KUBE_PROTOCOL", `watch of ${path} sent no object`);
  }
  if (type === "ERROR") throw eventError(path, object);
  if (!isEventType(type)) throw kubeError("KUBE_PROTOCOL", `watch of ${path} sent an event of an unknown type`);
  return { type, object: object as T }; // the API has validated what it stores
}

function memberOf(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? Reflect.get(value, name) : undefined;
}

function isEventType(type: unknown): type is WatchEvent<unknown>["type"] {
  return type === "ADDED" || type === "MODIFIED" || type === "DELETED" || type === "BOOKMARK";
}

function eventError(path: string, status: object): Error {
  const code = Number(memberOf(status, "code"));
  return statusError(`watch of ${path}`, Number.isInteger(code) ? code : 500, parseStatus(status));
}
