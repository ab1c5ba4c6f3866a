import type { IncomingMessage, ServerResponse } from "node:http";
import { apiVersionOf, type Kind } from "./kinds.ts";
import type { KubeObject } from "./object.ts";
import { badRequest, StatusError, type StatusBody } from "./status.ts";
import type { StoredObject } from "./stored-object.ts";

/** In which form the client wants objects. */
export type Form = "json" | "table" | "metadata";

/** What the answer to a list says about itself. */
export interface ListMeta {
  readonly resourceVersion: string;
  readonly continue?: string;
  readonly remainingItemCount?: number;
}

const MAX_ACCEPT_LENGTH = 4096;

/** Chooses the first form of the Accept header that is possible here. Throws 406 when none is. */
export function negotiate(message: Pick<IncomingMessage, "headers">): Form {
  const accept = (message.headers.accept ?? "").slice(0, MAX_ACCEPT_LENGTH);
  if (accept.trim() === "") return "json";
  for (const clause of accept.split(",")) {
    const [type = "", ...parameters] = clause.split(";").map((part) => part.trim());
    if (!["application/json", "*/*", "application/*"].includes(type)) continue;
    const as = parameters.find((parameter) => parameter.startsWith("as="))?.slice(3);
    if (as === undefined) return "json";
    if (parameters.some((parameter) => parameter.startsWith("v=") && parameter !== "v=v1")) continue;
    if (as === "Table") return "table";
    if (as === "PartialObjectMetadata" || as === "PartialObjectMetadataList") return "metadata";
  }
  const message406 = "only the following media types are accepted: application/json";
  throw new StatusError(406, "NotAcceptable", { message: message406 });
}

/** Which part of each object a table carries along. */
export type IncludeObject = "None" | "Metadata" | "Object";

/** Reads `includeObject` of a table request. Throws 400. */
export function parseIncludeObject(value: string | null): IncludeObject {
  if (value === null || value === "") return "Metadata";
  if (value === "None" || value === "Metadata" || value === "Object") return value;
  throw badRequest(`parameter includeObject: "${value.slice(0, 100)}" must be one of None, Metadata, Object`);
}

/** Turns stored objects into what the client asked for. */
export class Renderer {
  readonly kind: Kind;
  readonly form: Form;
  readonly #include: IncludeObject;
  readonly #nowMs: () => number;

  constructor(options: { kind: Kind; form: Form; include: IncludeObject; nowMs: () => number }) {
    this.kind = options.kind;
    this.form = options.form;
    this.#include = options.include;
    this.#nowMs = options.nowMs;
  }

  /** One object as JSON. */
  one(stored: StoredObject): string {
    if (this.form === "json") return this.#text(stored);
    if (this.form === "metadata") return JSON.stringify(partial(stored.object));
    return this.#table([stored], { resourceVersion: String(stored.revision) });
  }

  /** One object as the `object` of a watch event; only the first table of a stream describes its columns. */
  event(stored: StoredObject, first: boolean): string {
    if (this.form !== "table") return this.one(stored);
    return this.#table([stored], { resourceVersion: String(stored.revision), withoutColumns: !first });
  }

  /** A list as JSON. */
  list(items: readonly StoredObject[], meta: ListMeta): string {
    if (this.form === "table") return this.#table(items, meta);
    const head = (apiVersion: string, kind: string): string =>
      `{"kind":${JSON.stringify(kind)},"apiVersion":${JSON.stringify(apiVersion)},"metadata":${JSON.stringify(meta)},"items":[`;
    if (this.form === "metadata") {
      return `${head("meta.k8s.io/v1", "PartialObjectMetadataList")}${items.map((item) => JSON.stringify(partial(item.object))).join(",")}]}`;
    }
    return `${head(apiVersionOf(this.kind), `${this.kind.kind}List`)}${items.map((item) => this.#text(item)).join(",")}]}`;
  }

  #text(stored: StoredObject): string {
    if (!this.kind.custom || stored.object.apiVersion === apiVersionOf(this.kind)) return stored.text;
    return JSON.stringify({ ...stored.object, apiVersion: apiVersionOf(this.kind) });
  }

  #table(items: readonly StoredObject[], meta: ListMeta & { withoutColumns?: boolean }): string {
    const nowMs = this.#nowMs();
    const { withoutColumns, ...metadata } = meta;
    const columnDefinitions = this.kind.columns.map(({ name, type, format, description, priority }) => ({
      name,
      type,
      format: format ?? "",
      description,
      priority,
    }));
    return JSON.stringify({
      kind: "Table",
      apiVersion: "meta.k8s.io/v1",
      metadata,
      columnDefinitions: withoutColumns === true ? null : columnDefinitions,
      rows: items.map(({ object }) => ({
        cells: this.kind.columns.map((column) => column.value(object, nowMs) ?? null),
        object: this.#include === "None" ? undefined : this.#include === "Object" ? object : partial(object),
      })),
    });
  }
}

function partial(object: Readonly<KubeObject>): unknown {
  return { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1", metadata: object.metadata };
}

/** The last part of an answer is no larger than this, and leaves alone. */
const LAST_PART_BYTES = 16 * 1024;

/**
 * Sends JSON text. Of a large answer the last part waits until everything before it has left: Node pauses its parser
 * when a request comes in while an answer is still being written, and over TLS that fails with "Parse Error: Paused".
 */
export function sendText(response: ServerResponse, code: number, text: string): void {
  sendBody(response, { code, text, contentType: "application/json" });
}

/** The same with another content type. */
export function sendBody(response: ServerResponse, answer: { code: number; text: string; contentType: string }): void {
  const body = Buffer.from(answer.text);
  response.writeHead(answer.code, {
    "content-type": answer.contentType,
    "content-length": body.length,
    "cache-control": "no-cache, private",
  });
  const cut = Math.max(0, body.length - LAST_PART_BYTES);
  const last = (): void => void response.end(body.subarray(cut));
  if (cut === 0) last();
  else response.write(body.subarray(0, cut), last); // called when it has left, or never will
}

/** Sends a Status or any other value. */
export function sendJson(response: ServerResponse, code: number, value: unknown): void {
  sendText(response, code, JSON.stringify(value));
}

/** Sends a failure; a stream that has begun is cut instead. */
export function sendStatus(response: ServerResponse, status: StatusBody): void {
  if (response.headersSent) response.destroy();
  else sendJson(response, status.code, status);
}
