import { chmodSync, mkdirSync, unlinkSync } from "node:fs";
import {
  createSecureServer,
  createServer,
  type Http2SecureServer,
  type Http2Server,
  type ServerHttp2Session,
} from "node:http2";
import { connect, type AddressInfo } from "node:net";
import { dirname } from "node:path";
import type { ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { sleep, systemClock } from "#base/clock";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import { rpcError } from "./errors.ts";
import { MAX_MESSAGE_BYTES } from "./transport.ts";

/** Where a server listens. */
export type RpcListen =
  | { readonly unix: string; /** File mode of the socket. Default 0o600. */ readonly mode?: number }
  | {
      readonly host: string;
      /** 0 lets the kernel choose. */
      readonly port: number;
      readonly tls: () => { readonly certPem: string; readonly keyPem: string };
    };

/** What a gRPC server is made of. */
export interface RpcServerOptions {
  readonly name: string;
  readonly listen: RpcListen;
  readonly routes: (router: ConnectRouter) => void;
  readonly log: Log;
}

/**
 * A gRPC server over a Unix socket (plain) or TCP (TLS, ALPN h2). A socket file that nobody answers on is taken over.
 * Throws `RPC_LISTEN` when the place is taken.
 */
export class RpcServer implements Service {
  readonly name: string;
  readonly #options: RpcServerOptions;
  #server: Http2Server | Http2SecureServer | undefined;
  readonly #sessions = new Set<ServerHttp2Session>();

  constructor(options: RpcServerOptions) {
    this.name = options.name;
    this.#options = options;
  }

  /** The TCP port that is served; 0 for a Unix socket or before the start. */
  get port(): number {
    const address: AddressInfo | string | null | undefined = this.#server?.address();
    return typeof address === "object" ? (address?.port ?? 0) : 0;
  }

  async start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { listen, routes, log } = this.#options;
    const handler = connectNodeAdapter({
      routes,
      readMaxBytes: MAX_MESSAGE_BYTES,
      acceptCompression: [],
      connect: false,
      grpcWeb: false,
    });
    if ("unix" in listen) {
      mkdirSync(dirname(listen.unix), { recursive: true });
      await removeStaleSocket(listen.unix);
      this.#server = createServer(handler);
    } else {
      const { certPem, keyPem } = listen.tls();
      this.#server = createSecureServer({ cert: certPem, key: keyPem, minVersion: "TLSv1.2" }, handler);
      this.#server.on("tlsClientError", (error: Error) =>
        log.debug({ err: error }, "tls handshake of a caller failed"),
      );
    }
    this.#server.on("session", (session: ServerHttp2Session) => {
      this.#sessions.add(session);
      session.on("close", () => this.#sessions.delete(session));
      session.on("error", (error: Error) => log.debug({ err: error }, "session of a caller broke"));
    });
    await this.#listen(this.#server);
  }

  /** Takes the certificate anew; connections that are open keep the one they have. */
  reload(): void {
    const { listen } = this.#options;
    if ("unix" in listen || this.#server === undefined || !("setSecureContext" in this.#server)) return;
    const { certPem, keyPem } = listen.tls();
    this.#server.setSecureContext({ cert: certPem, key: keyPem, minVersion: "TLSv1.2" });
  }

  async drain(deadlineMs: number): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    const closed = new Promise<void>((resolve) => {
      server.close(() => resolve());
    });
    for (const session of this.#sessions) session.close();
    await Promise.race([closed, sleep(systemClock({ unref: true }), deadlineMs)]);
    for (const session of this.#sessions) session.destroy();
    await closed;
  }

  async #listen(server: Http2Server | Http2SecureServer): Promise<void> {
    const { listen, name } = this.#options;
    const where = "unix" in listen ? listen.unix : `${listen.host}:${listen.port}`;
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause: Error) => {
        reject(rpcError("RPC_LISTEN", `${name} cannot listen on ${where}`, { cause, details: { where } }));
      });
      if ("unix" in listen) server.listen(listen.unix, resolve);
      else server.listen(listen.port, listen.host, resolve);
    });
    if ("unix" in listen) chmodSync(listen.unix, listen.mode ?? 0o600);
  }
}

/** Removes a socket file that no process answers on; leaves one that is alive, so that listening fails loudly. */
async function removeStaleSocket(path: string): Promise<void> {
  const state = await new Promise<"alive" | "stale" | "none">((resolve) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve("alive");
    });
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code === "ENOENT" ? "none" : "stale"));
  });
  if (state === "stale") unlinkSync(path);
}
