import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { renderMetrics, type CellSet, type MetricTable } from "#base/metrics";
import type { Service } from "#base/service";
import { rpcError } from "./errors.ts";

/** A request without a body. */
export interface PageRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  /** The header of this name; empty when there is none. */
  readonly accept: string;
  /** Aborted when whoever asked has gone away. */
  readonly signal: AbortSignal;
}

/** An answer. */
export interface Page {
  readonly status: number;
  readonly contentType: string;
  /** Parts that are made while they are sent belong to a large answer: whoever reads slowly makes them wait. */
  readonly body: string | Uint8Array | AsyncIterable<string>;
}

/** Where a server listens and who answers. */
export interface PageServerOptions {
  readonly name: string;
  readonly host: string;
  readonly port: number;
  readonly handle: (request: PageRequest) => Promise<Page>;
  readonly log: Log;
}

/** Longest time for the head of a request, and connections at once: these servers are for operators and probes. */
const HEAD_TIMEOUT_MS = 5_000;
const MAX_HTTP_CONNECTIONS = 64;
/** Answers beyond this are compressed for whoever takes that, and sent as they are read. */
const LARGE_CHARACTERS = 1_400;

/** A small HTTP server for operators and probes: readiness, metrics, admin. Plain HTTP, bounded, no bodies read. */
export class PageServer implements Service {
  readonly name: string;
  readonly #parts: PageServerOptions;
  #server: Server | undefined;

  constructor(parts: PageServerOptions) {
    this.name = parts.name;
    this.#parts = parts;
  }

  /** The port that is served, after `start`. */
  get port(): number {
    const address = this.#server?.address();
    return typeof address === "object" ? (address?.port ?? 0) : 0;
  }

  /** Rejects with `RPC_LISTEN` when the port is taken. */
  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { host, port, name } = this.#parts;
    const server = createServer({ headersTimeout: HEAD_TIMEOUT_MS }, (request, response) => {
      void this.#serve(request, response);
    });
    server.maxConnections = MAX_HTTP_CONNECTIONS;
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause) => {
        reject(rpcError("RPC_LISTEN", `cannot serve ${name} on ${host}:${port}`, { cause, details: { host, port } }));
      });
      server.listen(port, host, resolve);
    });
  }

  async drain(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    await new Promise<void>((resolve) => {
      server.close(() => {
        resolve();
      });
      server.closeAllConnections();
    });
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const gone = new AbortController();
    response.once("close", () => {
      gone.abort(new Error("whoever asked has gone away"));
    });
    const { status, contentType, body } = await this.#answer(request, gone.signal);
    const isLarge = typeof body === "object" ? !(body instanceof Uint8Array) : body.length > LARGE_CHARACTERS;
    const zips = isLarge && /\bgzip\b/.test(request.headers["accept-encoding"]?.toString() ?? "");
    response.writeHead(status, { "content-type": contentType, ...(zips && { "content-encoding": "gzip" }) });
    if (!isLarge) {
      response.end(body);
      return;
    }
    const parts = Readable.from(typeof body === "string" ? [body] : body);
    const sent = zips ? pipeline(parts, createGzip(), response) : pipeline(parts, response);
    // The head is on its way already: an answer that breaks off is all that can be shown.
    await sent.catch((error: unknown) => {
      this.#parts.log.debug({ server: this.name, error: messageOf(error) }, "answer broke off");
    });
  }

  async #answer(request: IncomingMessage, signal: AbortSignal): Promise<Page> {
    try {
      const url = new URL(request.url ?? "/", "http://localhost");
      const { method = "GET", headers } = request;
      const { accept = "" } = headers;
      return await this.#parts.handle({ method, path: url.pathname, query: url.searchParams, accept, signal });
    } catch (error) {
      this.#parts.log.warn({ server: this.name, error: messageOf(error) }, "request failed");
      return textPage(500, messageOf(error));
    }
  }
}

/** A plain answer. */
export function textPage(status: number, body: string): Page {
  return { status, contentType: "text/plain; charset=utf-8", body: `${body}\n` };
}

/** A JSON answer. */
export function jsonPage(status: number, body: unknown): Page {
  return { status, contentType: "application/json", body: `${JSON.stringify(body, undefined, 2)}\n` };
}

/** What the pages of a role show. */
export interface StatusPages {
  /** Metrics; names are unique across all tables. */
  readonly sources: readonly { readonly table: MetricTable; readonly cells: Pick<CellSet, "snapshot"> }[];
  /** What is not ready yet; empty when everything is. */
  readonly pending: () => readonly string[];
  /** Further pages by path; what they give, or promise, is shown as JSON. */
  readonly more?: Readonly<Record<string, () => unknown>>;
}

/** Answers `/metrics` (Prometheus), `/healthz/ready` (200, or 500 with what is pending), `/healthz/live`, and what the role adds. */
export function statusPages({ sources, pending, more = {} }: StatusPages): (request: PageRequest) => Promise<Page> {
  const table: MetricTable = Object.assign({}, ...sources.map((source) => source.table)) as MetricTable; // made of tables
  const pages: Readonly<Record<string, (request: PageRequest) => Page | Promise<Page>>> = {
    "/healthz/live": () => textPage(200, "ok"),
    "/healthz/ready": () => readyPage(pending()),
    "/metrics": async ({ accept }) => {
      const samples = sources.flatMap(({ cells }) => cells.snapshot());
      return { status: 200, ...(await renderMetrics(table, samples, accept)) };
    },
    ...Object.fromEntries(Object.entries(more).map(([path, show]) => [path, async () => jsonPage(200, await show())])),
  };
  return async (request) =>
    pages[request.path]?.(request) ?? textPage(404, `there is ${Object.keys(pages).join(", ")}`);
}

/** 200, or 500, with what is pending, in upstream's words. */
export function readyPage(pending: readonly string[], isReady = pending.length === 0): Page {
  const words = isReady ? "ready" : "not ready";
  return textPage(isReady ? 200 : 500, pending.length === 0 ? words : `${words}, pending: ${pending.join(", ")}`);
}
