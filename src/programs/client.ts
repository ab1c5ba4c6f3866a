import { lookup } from "node:dns/promises";
import { connect, type Socket } from "node:net";
import { deadline, sleep, type Clock } from "#base/clock";
import type { ProgramContext } from "./echo-servers.ts";

/** What the periodic client does. */
export interface ClientOptions {
  /** `host:port` of HTTP servers; asked in turn. */
  readonly targets: readonly { readonly host: string; readonly port: number }[];
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** Stop after this many tries; undefined: never. */
  readonly count: number | undefined;
  /** One connection per target that is kept, instead of a new one for each try. */
  readonly keep: boolean;
  /** Said in each request, in clear. */
  readonly words: string;
}

/** How one try went. */
export interface TryResult {
  readonly ok: boolean;
  /** First line of the answer's body, or why there was none. */
  readonly answer: string;
}

const MAX_ANSWER_BYTES = 64 * 1024;

/**
 * Asks HTTP servers, one after the other, every `intervalMs`, and prints a line per try:
 *
 *     2026-11-21T14:00:00.123Z http://shop.default:80 ok 3.1ms new 10.244.1.5:40312 hello from shop-1: …
 *
 * The fields: time, target, `ok` or `failed`, how long it took, `new` or `kept` connection, own address, answer or reason.
 */
export async function runClient(options: ClientOptions, clock: Clock, context: ProgramContext): Promise<void> {
  const kept = new Map<string, Socket>();
  for (let tries = 0; options.count === undefined || tries < options.count; tries++) {
    const startMs = clock.monotonic();
    const target = options.targets[tries % options.targets.length];
    if (target === undefined || context.signal.aborted) break;
    const name = `${target.host}:${target.port}`;
    const old = kept.get(name);
    const time = new Date(clock.now()).toISOString();
    const { result, socket, from } = await tryOnce({ options, target, old, number: tries, clock, context });
    const tookMs = Math.round((clock.monotonic() - startMs) * 10) / 10;
    const line = [
      time,
      `http://${name}`,
      result.ok ? "ok" : "failed",
      `${tookMs}ms`,
      old === undefined ? "new" : "kept",
    ];
    context.out([...line, from, result.answer].join(" "));
    if (socket === undefined) kept.delete(name);
    else kept.set(name, socket);
    if (tries + 1 === options.count) break;
    const restMs = Math.max(0, options.intervalMs - (clock.monotonic() - startMs));
    await sleep(clock, restMs, context.signal).catch(() => undefined);
  }
  for (const socket of kept.values()) socket.destroy();
}

interface Try {
  readonly options: ClientOptions;
  readonly target: { host: string; port: number };
  readonly old: Socket | undefined;
  readonly number: number;
  readonly clock: Clock;
  readonly context: ProgramContext;
}

/** `socket`: the connection to keep. */
async function tryOnce(attempt: Try): Promise<{ result: TryResult; socket: Socket | undefined; from: string }> {
  const { options, target, clock, context } = attempt;
  const limit = deadline(clock, options.timeoutMs, { reason: new Error("no answer in time"), parent: context.signal });
  let socket = attempt.old;
  let from = "-";
  try {
    socket ??= await dial(target, limit.signal);
    from = `${socket.localAddress ?? "-"}:${socket.localPort ?? 0}`;
    const text = await ask(socket, requestText(attempt), limit.signal);
    if (!options.keep) socket.destroy();
    const result = readAnswer(text);
    return { result, socket: options.keep ? socket : undefined, from };
  } catch (error) {
    socket?.destroy();
    return { result: { ok: false, answer: reasonOf(error, limit.signal) }, socket: undefined, from };
  } finally {
    limit.clear();
  }
}

function requestText({ options, target, number, context }: Try): string {
  const body = `${options.words} (${context.env["HOSTNAME"] ?? "client"}, try ${number + 1})`;
  return [
    "POST /hello HTTP/1.1",
    `Host: ${target.host}:${target.port}`,
    "User-Agent: veil-program-client",
    `Content-Length: ${Buffer.byteLength(body)}`,
    `Connection: ${options.keep ? "keep-alive" : "close"}`,
    "",
    body,
  ].join("\r\n");
}

async function dial(target: { host: string; port: number }, signal: AbortSignal): Promise<Socket> {
  const { address } = await lookup(target.host);
  signal.throwIfAborted();
  const socket = connect({ host: address, port: target.port, noDelay: true });
  const abort = (): void => void socket.destroy();
  signal.addEventListener("abort", abort, { once: true });
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", reject);
      socket.once("close", () => reject(new Error("closed")));
    });
  } finally {
    signal.removeEventListener("abort", abort);
  }
  socket.on("error", () => socket.destroy());
  return socket;
}

/** Sends a request and resolves with the whole answer. */
function ask(socket: Socket, request: string, signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    if (socket.destroyed) return reject(new Error("closed since the last answer"));
    let text = "";
    const settle = (act: () => void): void => {
      socket.off("data", onData).off("close", onClose).off("error", onError);
      signal.removeEventListener("abort", onAbort);
      act();
    };
    const onAbort = (): void => settle(() => reject(signal.reason));
    const onError = (error: Error): void => settle(() => reject(error));
    const onClose = (): void => settle(() => reject(new Error("closed before the answer")));
    const onData = (chunk: Buffer): void => {
      text += chunk.toString("utf8");
      if (isWhole(text) || text.length > MAX_ANSWER_BYTES) settle(() => resolve(text));
    };
    socket.on("data", onData).on("close", onClose).on("error", onError);
    signal.addEventListener("abort", onAbort, { once: true });
    socket.write(request);
  });
}

/** True when the head and as much body as it announces are there. */
export function isWhole(text: string): boolean {
  const end = text.indexOf("\r\n\r\n");
  if (end < 0) return false;
  const length = Number(/\r\ncontent-length: *(\d+)/i.exec(text)?.[1] ?? 0);
  return Buffer.byteLength(text.slice(end + 4)) >= length;
}

/** The verdict on a whole answer. */
export function readAnswer(text: string): TryResult {
  const status = /^HTTP\/1\.[01] (\d{3})/.exec(text)?.[1];
  const body = text.slice(text.indexOf("\r\n\r\n") + 4).split("\n", 1)[0] ?? "";
  if (status === undefined) return { ok: false, answer: "the answer is no HTTP" };
  return status.startsWith("2") ? { ok: true, answer: body } : { ok: false, answer: `status ${status} ${body}`.trim() };
}

function reasonOf(error: unknown, signal: AbortSignal): string {
  const cause: unknown = signal.aborted ? signal.reason : error;
  if (!(cause instanceof Error)) return "failed";
  return "code" in cause && typeof cause.code === "string" ? cause.code : cause.message;
}
