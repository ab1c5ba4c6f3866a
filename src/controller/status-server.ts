import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { messageOf } from "#base/errors";
import { renderMetrics, type CellSet, type MetricTable } from "#base/metrics";
import type { Service } from "#base/service";
import { fail } from "./errors.ts";

/** One component's metrics. */
interface MetricSource {
  readonly table: MetricTable;
  readonly cells: CellSet;
}

/** What a status server shows. */
export interface StatusServerOptions {
  readonly host: string;
  readonly port: number;
  readonly sources: readonly MetricSource[];
  /** What is not ready yet; empty when everything is. */
  readonly pending: () => readonly string[];
}

/**
 * Serves `/metrics` for Prometheus, `/healthz/ready` (200, or 500 with what is pending) and `/healthz/live`.
 * Rejects with `CONTROLLER_LISTEN` when the port is taken.
 */
export class StatusServer implements Service {
  readonly name = "status server";
  readonly #options: StatusServerOptions;
  readonly #server: Server;

  constructor(options: StatusServerOptions) {
    this.#options = options;
    this.#server = createServer(
      { requestTimeout: 10_000 },
      (request, response) => void this.#answer(request, response),
    );
    this.#server.maxConnections = 64;
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
        reject(
          fail("CONTROLLER_LISTEN", `cannot serve metrics on ${host}:${port}`, { cause, details: { host, port } }),
        );
      });
      this.#server.listen(port, host, resolve);
    });
  }

  async drain(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const send = (status: number, body: string, contentType = "text/plain; charset=utf-8"): void => {
      response.writeHead(status, { "content-type": contentType }).end(body);
    };
    try {
      const path = request.url?.split("?", 1)[0];
      const pending = this.#options.pending();
      if (path === "/metrics") send(200, ...(await this.#metrics()));
      else if (path === "/healthz/live") send(200, "ok\n");
      else if (path !== "/healthz/ready") send(404, "there is /metrics, /healthz/ready and /healthz/live\n");
      else if (pending.length === 0) send(200, "ready\n");
      else send(500, `not ready, pending: ${pending.join(", ")}\n`);
    } catch (error) {
      send(500, `${messageOf(error)}\n`);
    }
  }

  async #metrics(): Promise<[string, string]> {
    const { sources } = this.#options;
    const table: MetricTable = Object.assign({}, ...sources.map((source) => source.table)) as MetricTable; // names are unique
    const { body, contentType } = await renderMetrics(
      table,
      sources.flatMap(({ cells }) => cells.snapshot()),
    );
    return [body, contentType];
  }
}
