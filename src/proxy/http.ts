import { createServer, type IncomingMessage, type Server } from "node:http";
import type { Log } from "#base/log";
import { messageOf } from "#base/errors";
import type { Service } from "#base/service";
import { proxyError } from "./errors.ts";

/** A request without a body. */
export interface HttpRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
}

/** An answer. */
export interface HttpResponse {
  readonly status: number;
  readonly contentType: string;
  readonly body: string;
}

/** Where a server listens and who answers. */
export interface HttpServiceParts {
  readonly name: string;
  readonly host: string;
  readonly port: number;
  readonly handle: (request: HttpRequest) => Promise<HttpResponse>;
  readonly log: Log;
}

/** Longest time for the head of a request, and connections at once: these servers are for operators and probes. */
const HEAD_TIMEOUT_MS = 5_000;
const MAX_HTTP_CONNECTIONS = 64;

/** A small HTTP server for operators: readiness, metrics, admin. */
export class HttpService implements Service {
  readonly name: string;
  readonly #parts: HttpServiceParts;
  #server: Server | undefined;

  constructor(parts: HttpServiceParts) {
    this.name = parts.name;
    this.#parts = parts;
  }

  /** The port that is served, after `start`. */
  get port(): number {
    const address = this.#server?.address();
    return typeof address === "object" ? (address?.port ?? 0) : 0;
  }

  /** Throws `PROXY_PORT_IN_USE`. */
  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { host, port, name } = this.#parts;
    const server = createServer({ headersTimeout: HEAD_TIMEOUT_MS }, (request, response) => {
      void this.#answer(request).then(({ status, contentType, body }) => {
        response.writeHead(status, { "content-type": contentType }).end(body);
      });
    });
    server.maxConnections = MAX_HTTP_CONNECTIONS;
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause) => {
        reject(proxyError("PROXY_PORT_IN_USE", `cannot serve ${name} on ${host} port ${port}`, { cause }));
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

  async #answer(request: IncomingMessage): Promise<HttpResponse> {
    try {
      const url = new URL(request.url ?? "/", "http://localhost");
      return await this.#parts.handle({ method: request.method ?? "GET", path: url.pathname, query: url.searchParams });
    } catch (error) {
      this.#parts.log.warn({ server: this.name, error: messageOf(error) }, "request failed");
      return text(500, messageOf(error));
    }
  }
}

/** A plain answer. */
export function text(status: number, body: string): HttpResponse {
  return { status, contentType: "text/plain; charset=utf-8", body: `${body}\n` };
}

/** A JSON answer. */
export function json(status: number, body: unknown): HttpResponse {
  return { status, contentType: "application/json", body: `${JSON.stringify(body, undefined, 2)}\n` };
}
