import { Agent, request as httpsRequest, type RequestOptions } from "node:https";
import type { IncomingMessage } from "node:http";
import { deadline, sleep, type Clock } from "#base/clock";
import type { Random } from "#base/random";
import type { KubeConfig } from "./config.ts";
import { kubeError, parseStatusText, statusError, transportError } from "./errors.ts";
import type { KubeCredentials } from "./login-program.ts";

/** No answer of the API is read beyond this many bytes (a list of 100,000 pods is about 300 MB; pages are smaller). */
const MAX_BODY_BYTES = 256 * 1024 * 1024;
/** Requests at the same time; further ones wait. Watches do not count. */
const MAX_SOCKETS = 32;
const MAX_FREE_SOCKETS = 4;
const KEEP_ALIVE_MS = 30_000;
/** How often a request is sent again that the API wants later. */
const MAX_LATER = 10;
/** Longest time that an answer may ask to wait. */
const MAX_RETRY_AFTER_S = 30;

/** One request, below types and kinds. */
export interface RawRequest {
  readonly method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Path from the root, escaped. */
  readonly path: string;
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>;
  /** Sent as JSON. */
  readonly body?: unknown;
  /** Default `application/json`. */
  readonly contentType?: string;
  /** How long to wait for the whole answer (of a stream: for its head). Default 30 s. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * HTTPS to one API server, on connections that are kept. A request that the API has no room for (429, or 503 during a start, with
 * `Retry-After`) is sent again when it says, or up to half as much later, so that those who were sent away together do not come back
 * together; within the request's own time.
 */
export class KubeTransport {
  readonly config: KubeConfig;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #agent = new Agent({
    keepAlive: true,
    keepAliveMsecs: KEEP_ALIVE_MS,
    maxSockets: MAX_SOCKETS,
    maxFreeSockets: MAX_FREE_SOCKETS,
  });

  constructor(config: KubeConfig, { clock, random }: { readonly clock: Clock; readonly random: Random }) {
    this.config = config;
    this.#clock = clock;
    this.#random = random;
  }

  /** Sends a request and reads the answer whole. Throws the codes of {@link statusError} and {@link transportError}. */
  async json(request: RawRequest): Promise<unknown> {
    return parseJson(request, await this.text(request));
  }

  /** As {@link json}, for answers that are no JSON (logs). */
  async text(request: RawRequest): Promise<string> {
    using limit = this.#limit(request);
    try {
      const response = await this.#respond(request, limit.signal, this.#agent);
      return await readAll(response, limit.signal);
    } catch (error) {
      throw limit.explain(error);
    }
  }

  /** Sends a request whose answer goes on until one side ends it. The caller destroys the stream. */
  async stream(request: RawRequest): Promise<IncomingMessage> {
    using limit = this.#limit(request);
    try {
      return await this.#respond(request, limit.signal, false);
    } catch (error) {
      throw limit.explain(error);
    }
  }

  /** Closes idle connections. */
  close(): void {
    this.#agent.destroy();
  }

  /** TLS options and headers for one connection, also for WebSockets. */
  async connection(): Promise<{ options: RequestOptions; headers: Record<string, string> }> {
    const { config } = this;
    const credentials: KubeCredentials = await config.credentials();
    const options: RequestOptions = { rejectUnauthorized: !config.insecureSkipTlsVerify };
    if (config.caPem !== undefined) options.ca = config.caPem;
    if (config.tlsServerName !== undefined) options.servername = config.tlsServerName;
    if (credentials.certPem !== undefined) options.cert = credentials.certPem;
    if (credentials.keyPem !== undefined) options.key = credentials.keyPem;
    const headers: Record<string, string> = { "user-agent": "veil" };
    if (credentials.token !== undefined) headers["authorization"] = `Bearer ${credentials.token}`;
    return { options, headers };
  }

  /** Resolves with a successful answer's head. A kept connection that the server has just closed is tried once more. */
  async #respond(request: RawRequest, signal: AbortSignal, agent: Agent | false): Promise<IncomingMessage> {
    const { options, headers } = await this.connection();
    headers["accept"] = "application/json";
    if (request.body !== undefined) headers["content-type"] = request.contentType ?? "application/json";
    const url = urlOf(this.config.server, request);
    const body = request.body === undefined ? undefined : JSON.stringify(request.body);
    if (body !== undefined) headers["content-length"] = String(Buffer.byteLength(body)); // node frames no DELETE by itself
    const send = (): Promise<IncomingMessage> =>
      sendRequest(url, { ...options, method: request.method, headers, agent, signal }, body);
    for (let tries = 0; ; tries++) {
      const response = await send().catch((error: unknown) => {
        if (error instanceof StaleConnection) return send();
        throw error;
      });
      if ((response.statusCode ?? 500) < 400) return response;
      const text = await readAll(response, signal);
      const waitMs = retryAfterMs(response);
      if (waitMs === undefined || tries === MAX_LATER) {
        throw statusError(nameOf(request), response.statusCode ?? 500, parseStatusText(text));
      }
      await sleep(this.#clock, waitMs * (1 + this.#random.unit() / 2), signal);
    }
  }

  /** The request's deadline, and how to name what ended it. */
  #limit(request: RawRequest): Disposable & { signal: AbortSignal; explain: (error: unknown) => unknown } {
    const late = kubeError("KUBE_TIMEOUT", `${nameOf(request)} got no answer in time`);
    const { signal, clear } = deadline(this.#clock, request.timeoutMs ?? 30_000, {
      reason: late,
      ...(request.signal === undefined ? {} : { parent: request.signal }),
    });
    return {
      signal,
      explain(error) {
        if (signal.aborted) return signal.reason;
        return error instanceof Error && "details" in error ? error : transportError(nameOf(request), rootOf(error));
      },
      [Symbol.dispose]: clear,
    };
  }
}

/** The server closed a kept connection before it had seen the request. */
class StaleConnection extends Error {}

function rootOf(error: unknown): unknown {
  return error instanceof StaleConnection ? error.cause : error;
}

function sendRequest(url: URL, options: RequestOptions, body: string | undefined): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = httpsRequest(url, options, resolve);
    request.on("socket", (socket) => void socket.setKeepAlive(true, KEEP_ALIVE_MS));
    request.on("error", (error: NodeJS.ErrnoException) => {
      const again = options.method !== "POST"; // a POST may have been carried out
      const stale = again && request.reusedSocket && (error.code === "ECONNRESET" || error.code === "EPIPE");
      reject(stale ? new StaleConnection("stale connection", { cause: error }) : error);
    });
    request.end(body);
  });
}

function urlOf(server: string, request: RawRequest): URL {
  const url = new URL(request.path, server);
  for (const [name, value] of Object.entries(request.query ?? {})) {
    if (value !== undefined && value !== "") url.searchParams.append(name, String(value));
  }
  return url;
}

/** How long the API asks to wait, in whole seconds (RFC 9110, 10.2.3); undefined when the request is not to be sent again. */
function retryAfterMs({ statusCode, headers }: IncomingMessage): number | undefined {
  const seconds = /^\d+$/.test(headers["retry-after"] ?? "") ? Number(headers["retry-after"]) : Number.NaN;
  if (statusCode !== 429 && statusCode !== 503) return undefined;
  return seconds <= MAX_RETRY_AFTER_S ? seconds * 1000 : undefined;
}

/** How messages name a request. */
function nameOf(request: RawRequest): string {
  return `${request.method.toLowerCase()} ${request.path}`;
}

async function readAll(response: IncomingMessage, signal: AbortSignal): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response) {
    signal.throwIfAborted();
    const bytes = chunk as Buffer; // no encoding is set on the stream
    size += bytes.length;
    if (size > MAX_BODY_BYTES) {
      response.destroy();
      throw kubeError("KUBE_PROTOCOL", `an answer of the API is larger than ${MAX_BODY_BYTES} bytes`);
    }
    chunks.push(bytes);
  }
  if (!response.complete) throw kubeError("KUBE_UNAVAILABLE", "the API ended the connection within an answer");
  return Buffer.concat(chunks).toString("utf8");
}

function parseJson(request: RawRequest, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw kubeError("KUBE_PROTOCOL", `${nameOf(request)} was answered with no JSON`, { cause });
  }
}
