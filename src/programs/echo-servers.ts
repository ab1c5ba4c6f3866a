import { createSocket } from "node:dgram";
import { createServer, type Socket } from "node:net";

/** What the programs of pods use of their process: they import nothing else, to be small and quick. */
export interface ProgramContext {
  out(line: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
}

/** Where a server listens. */
export interface ServerOptions {
  readonly port: number;
  readonly address: string;
}

const MAX_HEAD_BYTES = 64 * 1024;
const MAX_CONNECTIONS = 10_000;

/** Sends back every byte. Resolves when the signal aborts and all connections have ended or been cut. */
export function tcpEcho(options: ServerOptions, context: ProgramContext): Promise<void> {
  return serve(options, context, (socket) => {
    socket.pipe(socket);
  });
}

/**
 * Answers every HTTP/1.1 request with a text that names the pod, and the body of the request, in clear words.
 * Connections are kept unless the client says `Connection: close`.
 */
export function httpEcho(options: ServerOptions & { words: string }, context: ProgramContext): Promise<void> {
  const name = context.env["HOSTNAME"] ?? "somebody";
  return serve(options, context, (socket) => {
    let waiting = Buffer.alloc(0);
    socket.on("data", (chunk: Buffer) => {
      waiting = Buffer.concat([waiting, chunk]);
      for (let request = takeRequest(waiting); request !== undefined; request = takeRequest(waiting)) {
        waiting = waiting.subarray(request.size);
        socket.write(
          response(request, `hello from ${name}: ${options.words} (${request.line})${echo(request.body)}\n`),
        );
        if (request.close) socket.end();
      }
      if (waiting.length > MAX_HEAD_BYTES && !waiting.includes("\r\n\r\n")) socket.destroy();
    });
    socket.on("end", () => socket.end());
  });
}

/** Sends back every datagram. */
export async function udpEcho(options: ServerOptions, context: ProgramContext): Promise<void> {
  const socket = createSocket(options.address.includes(":") ? "udp6" : "udp4");
  socket.on("message", (message, peer) => socket.send(message, peer.port, peer.address));
  await new Promise<void>((resolve, reject) => {
    socket.once("error", reject);
    socket.bind(options.port, options.address, resolve);
  });
  context.out(`listening on udp ${options.address}:${options.port}`);
  await aborted(context.signal);
  socket.close();
}

/** One request at the head of what has come. */
export interface TakenRequest {
  /** For example `GET / HTTP/1.1`. */
  readonly line: string;
  readonly body: string;
  readonly close: boolean;
  /** Bytes of the whole request. */
  readonly size: number;
}

/** Takes the first whole request; undefined while it is not there yet. Only bodies with a length are known. */
export function takeRequest(bytes: Buffer): TakenRequest | undefined {
  const end = bytes.indexOf("\r\n\r\n");
  if (end < 0) return undefined;
  const [line = "", ...headers] = bytes.subarray(0, end).toString("latin1").split("\r\n");
  const header = (name: string): string =>
    headers
      .find((one) => one.toLowerCase().startsWith(`${name}:`))
      ?.slice(name.length + 1)
      .trim() ?? "";
  const length = Math.min(Number.parseInt(header("content-length"), 10) || 0, MAX_HEAD_BYTES);
  const size = end + 4 + length;
  if (bytes.length < size) return undefined;
  const body = bytes.subarray(end + 4, size).toString("utf8");
  return { line, body, close: header("connection").toLowerCase() === "close", size };
}

function response(request: TakenRequest, text: string): string {
  const connection = request.close ? "close" : "keep-alive";
  const head = [
    "HTTP/1.1 200 OK",
    "Content-Type: text/plain",
    `Content-Length: ${Buffer.byteLength(text)}`,
    `Connection: ${connection}`,
  ];
  return `${head.join("\r\n")}\r\n\r\n${text}`;
}

function echo(body: string): string {
  return body === "" ? "" : ` you said: ${body}`;
}

async function serve(options: ServerOptions, context: ProgramContext, accept: (socket: Socket) => void): Promise<void> {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.on("close", () => sockets.delete(socket));
    accept(socket);
  });
  server.maxConnections = MAX_CONNECTIONS;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.address, resolve);
  });
  context.out(`listening on ${options.address}:${options.port}`);
  await aborted(context.signal);
  server.close();
  for (const socket of sockets) socket.destroy();
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
