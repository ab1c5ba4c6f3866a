import { chmodSync, lstatSync, mkdirSync, unlinkSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { connect } from "node:net";
import { dirname } from "node:path";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { enrolmentError } from "./errors.ts";

/** Longest body of an event. */
export const MAX_CNI_EVENT_BYTES = 64 * 1024;
/** Events that are worked on at once; further ones are told to come again. */
const MAX_CNI_EVENTS = 256;

/** What the plugin tells of a pod that is about to start. */
export interface CniAddEvent {
  readonly netnsPath: string;
  readonly name: string;
  readonly namespace: string;
}

/** Reads the body of `/cmdadd` as istio-cni's plugin writes it. Throws `ENROLMENT_CNI_REQUEST`, naming the field. */
export function parseCniAdd(body: string): CniAddEvent {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch (cause) {
    throw enrolmentError("ENROLMENT_CNI_REQUEST", "the event is no JSON", { cause });
  }
  const text = (field: string, allowed: RegExp): string => {
    const found: unknown = typeof value === "object" && value !== null ? Reflect.get(value, field) : undefined;
    if (typeof found === "string" && found.length <= 4096 && allowed.test(found)) return found;
    throw enrolmentError("ENROLMENT_CNI_REQUEST", `the event's field ${field} is missing or malformed`, {
      details: { field },
    });
  };
  const name = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;
  return { netnsPath: text("Netns", /^\/[^\0]*$/), name: text("PodName", name), namespace: text("PodNamespace", name) };
}

/** Where the server listens and who takes the events. */
export interface CniServerOptions {
  readonly path: string;
  readonly log: Log;
  /** Cells of `enrolmentMetrics`. */
  readonly cells: CellSet;
  /** Resolves when the pod may start; a rejection keeps it from starting. */
  readonly onAdd: (event: CniAddEvent, signal: AbortSignal) => Promise<unknown>;
}

/**
 * The socket that the CNI plugin asks before a pod starts: `POST /cmdadd`. 200 lets it start; anything else, or nobody there, does
 * not, and the container runtime tries again. Rejects with `ENROLMENT_CNI_LISTEN` when another process is there.
 */
export class CniServer implements Service {
  readonly name = "cni";
  readonly #options: CniServerOptions;
  readonly #stop = new AbortController();
  #server: Server | undefined;
  #inFlight = 0;

  constructor(options: CniServerOptions) {
    this.#options = options;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { path } = this.#options;
    mkdirSync(dirname(path), { recursive: true });
    await removeStale(path);
    const server = createServer((request, response) => void this.#handle(request, response));
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause) => {
        reject(enrolmentError("ENROLMENT_CNI_LISTEN", `cannot listen at ${path}`, { cause, details: { path } }));
      });
      server.listen(path, resolve);
    });
    chmodSync(path, 0o600);
    this.#server = server;
  }

  drain(_deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("the agent stops"));
    this.#server?.close();
    this.#server?.closeAllConnections();
    return Promise.resolve();
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const gone = new AbortController();
    response.once("close", () => gone.abort(new Error("the plugin has hung up")));
    const signal = AbortSignal.any([gone.signal, this.#stop.signal]);
    this.#inFlight++;
    try {
      const { status, text } = await this.#answer(request, signal);
      response.writeHead(status, { "content-type": "text/plain" }).end(text);
    } catch (error) {
      this.#refuse(response, error);
    }
    this.#inFlight--;
  }

  async #answer(request: IncomingMessage, signal: AbortSignal): Promise<{ status: number; text: string }> {
    const { onAdd, log, cells } = this.#options;
    if (request.url !== "/cmdadd") return { status: 404, text: "there is only /cmdadd\n" };
    if (request.method !== "POST") return { status: 405, text: "POST only\n" };
    if (this.#inFlight > MAX_CNI_EVENTS) return { status: 503, text: "too many pods start at once\n" };
    const event = parseCniAdd(await readBody(request));
    const outcome = await onAdd(event, signal);
    cells.bind("veil_enrolment_cni_requests_total", { outcome: "ok" }).value++;
    log.info({ pod: event.name, namespace: event.namespace, outcome }, "pod may start");
    return { status: 200, text: "" };
  }

  #refuse(response: ServerResponse, error: unknown): void {
    const { log, cells } = this.#options;
    const code = error instanceof CodedError ? error.code : "unexpected";
    cells.bind("veil_enrolment_cni_requests_total", { outcome: code }).value++;
    log.warn({ code, reason: messageOf(error) }, "pod may not start");
    if (response.destroyed) return;
    const status = code === "ENROLMENT_CNI_REQUEST" ? 400 : 500;
    response.writeHead(status, { "content-type": "text/plain" }).end(`${code}: ${messageOf(error)}\n`);
  }
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_CNI_EVENT_BYTES) {
      throw enrolmentError("ENROLMENT_CNI_REQUEST", `the event is longer than ${MAX_CNI_EVENT_BYTES} bytes`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Removes a socket file that nobody answers at; a served one makes listening fail. */
async function removeStale(path: string): Promise<void> {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return;
  const served = await new Promise<boolean>((resolve) => {
    const probe = connect(path, () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
  if (!served) unlinkSync(path);
}
