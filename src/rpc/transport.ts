import { connect as connectPlain, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Interceptor, Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { rpcError } from "./errors.ts";

/** Where and how to reach a gRPC server. */
export interface RpcTransportOptions {
  /** `unix:///absolute/path`, or `https://host:port`. */
  readonly target: string;
  /** Trusted roots in PEM, asked for each new connection. Required for https. */
  readonly roots?: () => string;
  /** The name that the server's certificate must have, where it is not the host of `target`. */
  readonly serverName?: string;
  /** The bearer token, asked for each call (files behind it are renewed). */
  readonly token?: () => Promise<string>;
  /** Further request metadata. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** Largest message read, as upstream's proxies accept it. */
export const MAX_MESSAGE_BYTES = 200 * 1024 * 1024;
const PING_INTERVAL_MS = 30_000;
const PING_TIMEOUT_MS = 10_000;

/**
 * A gRPC client transport. One HTTP/2 connection, opened with the first call, pinged every 30 s and dropped when no answer
 * comes within 10 s; a later call opens the next one. Throws `RPC_TARGET` at once for an address that cannot be read.
 */
export function rpcTransport(options: RpcTransportOptions): Transport {
  const url = readTarget(options.target);
  return createGrpcTransport({
    baseUrl: url.protocol === "unix:" ? "http://localhost" : url.origin,
    interceptors: [authorize(options)],
    readMaxBytes: MAX_MESSAGE_BYTES,
    acceptCompression: [],
    pingIntervalMs: PING_INTERVAL_MS,
    pingTimeoutMs: PING_TIMEOUT_MS,
    pingIdleConnection: true,
    nodeOptions: { createConnection: () => dial(url, options) },
  });
}

function readTarget(target: string): URL {
  const url = URL.canParse(target) ? new URL(target) : undefined;
  const unix = url?.protocol === "unix:" && url.host === "" && url.pathname.startsWith("/");
  const https = url?.protocol === "https:" && url.port !== "" && url.pathname === "/";
  if (url === undefined || !(unix || https)) {
    throw rpcError("RPC_TARGET", `cannot read "${target}" as the address of a gRPC server`, { details: { target } });
  }
  return url;
}

function dial(url: URL, options: RpcTransportOptions): Socket {
  if (url.protocol === "unix:") return connectPlain(url.pathname);
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const servername = options.serverName ?? (/^[\d.]+$|:/.test(host) ? undefined : host);
  const socket = connectTls({
    host,
    port: Number(url.port),
    ...(servername !== undefined && { servername }),
    ca: options.roots?.() ?? [],
    minVersion: "TLSv1.2",
    ALPNProtocols: ["h2"],
  });
  socket.setNoDelay(true);
  return socket;
}

function authorize(options: RpcTransportOptions): Interceptor {
  return (next) => async (request) => {
    const token = await options.token?.();
    if (token !== undefined) request.header.set("authorization", `Bearer ${token}`);
    for (const [name, value] of Object.entries(options.headers ?? {})) request.header.set(name, value);
    return next(request);
  };
}
