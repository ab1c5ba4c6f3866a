import { chmodSync, lstatSync, mkdirSync, unlinkSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { connect } from "node:net";
import { dirname } from "node:path";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import type { Service } from "#base/service";
import { cniError } from "./errors.ts";
import { answerPlugin, failureText, type PluginHost } from "./plugin.ts";
import { isText, OBJECT_NAME } from "./request.ts";

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

/** Reads the body of `/cmdadd` as istio-cni's plugin writes it. Throws `CNI_REQUEST`, naming the field. */
export function parseCniAdd(body: string): CniAddEvent {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch (cause) {
    throw cniError("CNI_REQUEST", "the event is no JSON", { cause });
  }
  const text = (field: string, allowed: RegExp): string => {
    const found: unknown = typeof value === "object" && value !== null ? Reflect.get(value, field) : undefined;
    if (isText(found, allowed)) return found;
    throw cniError("CNI_REQUEST", `the event's field ${field} is missing or malformed`, {
      details: { field },
    });
  };
  const netnsPath = text("Netns", /^\/[^\0]*$/);
  return { netnsPath, name: text("PodName", OBJECT_NAME), namespace: text("PodNamespace", OBJECT_NAME) };
}

interface Answer {
  readonly status: number;
  readonly text: string;
}

/** Where the server listens and who takes the events. */
export interface CniServerOptions {
  readonly path: string;
  readonly log: Log;
  /** Cells of `cniMetrics`. */
  readonly cells: CellSet;
  readonly host: PluginHost;
}

/**
 * The socket that is asked before a pod starts: `POST /cni` by Veil's own plugin, with its environment and standard input, and
 * `POST /cmdadd` by istio-cni's plugin and the lab's kubelet. 200 lets a pod start; anything else, or nobody there, does not, and the
 * container runtime tries again. Rejects with `CNI_LISTEN` when another process is there.
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
        reject(cniError("CNI_LISTEN", `cannot listen at ${path}`, { cause, details: { path } }));
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
    const { status, text } = await this.#answer(request, signal);
    this.#inFlight--;
    if (!response.destroyed) response.writeHead(status).end(text);
  }

  async #answer(request: IncomingMessage, signal: AbortSignal): Promise<Answer> {
    const { url, method } = request;
    if (url !== "/cni" && url !== "/cmdadd") return { status: 404, text: "there are /cni and /cmdadd\n" };
    if (method !== "POST") return { status: 405, text: "POST only\n" };
    const plugin = url === "/cni";
    try {
      if (this.#inFlight > MAX_CNI_EVENTS) throw cniError("CNI_BUSY", "too many pods start or end at once");
      const body = await readBody(request);
      return plugin ? await this.#plugin(body, signal) : await this.#event(body, signal);
    } catch (error) {
      const failure = error instanceof CodedError ? error : new CodedError("CNI_UNEXPECTED", messageOf(error));
      this.#count(plugin ? "unknown" : "cmdadd", failure);
      const text = plugin ? failureText(failure) : `${failure.code}: ${messageOf(failure)}\n`;
      return { status: failure.code === "CNI_REQUEST" ? 400 : failure.code === "CNI_BUSY" ? 503 : 500, text };
    }
  }

  async #plugin(body: string, signal: AbortSignal): Promise<Answer> {
    const { command, text, failure } = await answerPlugin(body, this.#options.host, signal);
    this.#count(command, failure);
    return { status: failure === undefined ? 200 : 500, text };
  }

  async #event(body: string, signal: AbortSignal): Promise<Answer> {
    await this.#options.host.add({ ...parseCniAdd(body), uid: undefined }, signal);
    this.#count("cmdadd", undefined);
    return { status: 200, text: "" };
  }

  #count(command: string, failure: CodedError | undefined): void {
    const { log, cells } = this.#options;
    cells.bind("veil_cni_requests_total", { command, outcome: failure?.code ?? "ok" }).value++;
    if (failure !== undefined)
      log.warn({ command, code: failure.code, reason: messageOf(failure) }, "cni request fails");
  }
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_CNI_EVENT_BYTES) {
      throw cniError("CNI_REQUEST", `the event is longer than ${MAX_CNI_EVENT_BYTES} bytes`);
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
