import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { messageOf } from "#base/errors";
import { renderMetrics, type CellSet, type MetricTable } from "#base/metrics";
import type { Service } from "#base/service";
import { agentError } from "./errors.ts";

/** Connections at once; further ones are closed. */
const MAX_STATUS_CONNECTIONS = 64;

/** What the agent shows. */
export interface StatusServerOptions {
  readonly host: string;
  readonly port: number;
  readonly sources: readonly { readonly table: MetricTable; readonly cells: CellSet }[];
  /** What is not ready yet; empty when everything is. */
  readonly pending: () => readonly string[];
  /** The node's pods and where their enrolment stands. */
  readonly pods: () => unknown;
}

/**
 * Serves `/metrics` for Prometheus, `/healthz/ready` (200, or 500 with what is pending), `/healthz/live`, and `/pods` (JSON: where
 * each pod's enrolment stands, and why). Rejects with `AGENT_LISTEN` when the port is taken.
 */
export class StatusServer implements Service {
  readonly name = "status server";
  readonly #options: StatusServerOptions;
  readonly #server: Server;

  constructor(options: StatusServerOptions) {
    this.#options = options;
    this.#server = createServer((request, response) => void this.#answer(request, response));
    this.#server.maxConnections = MAX_STATUS_CONNECTIONS;
  }

  /** The port that is served; 0 before the start. */
  get port(): number {
    const address: AddressInfo | string | null = this.#server.address();
    return typeof address === "object" ? (address?.port ?? 0) : 0;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { host, port } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause) => {
        const details = { host, port };
        reject(agentError("AGENT_LISTEN", `cannot serve metrics on ${host}:${port}`, { cause, details }));
      });
      this.#server.listen(port, host, resolve);
    });
  }

  async drain(_deadlineMs: number): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const send = (status: number, body: string, contentType = "text/plain; charset=utf-8"): void => {
      response.writeHead(status, { "content-type": contentType }).end(body);
    };
    const { pending, pods, sources } = this.#options;
    const routes: Readonly<Record<string, () => void | Promise<void>>> = {
      "/healthz/live": () => send(200, "ok\n"),
      "/healthz/ready": () => {
        const missing = pending();
        if (missing.length === 0) send(200, "ready\n");
        else send(500, `not ready, pending: ${missing.join(", ")}\n`);
      },
      "/pods": () => send(200, `${JSON.stringify(pods(), undefined, 2)}\n`, "application/json"),
      "/metrics": async () => {
        const table: MetricTable = Object.assign({}, ...sources.map((source) => source.table)) as MetricTable; // names are unique
        const samples = sources.flatMap(({ cells }) => cells.snapshot());
        const { body, contentType } = await renderMetrics(table, samples);
        send(200, body, contentType);
      },
    };
    const route = routes[request.url?.split("?", 1)[0] ?? ""];
    try {
      if (route === undefined) send(404, `there is ${Object.keys(routes).join(", ")}\n`);
      else await route();
    } catch (error) {
      send(500, `${messageOf(error)}\n`);
    }
  }
}
