import { connect, type Socket } from "node:net";
import { deadline, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { wireguardError } from "./errors.ts";
import { isComplete, MAX_ANSWER_BYTES } from "./uapi.ts";

/** A device answers within milliseconds; one that does not in this time hangs. */
const ANSWER_MS = 10_000;

/**
 * Sends one request to a device's socket and answers what it says. Request and answer are the caller's to overwrite; what passed
 * in between is overwritten here. Throws `WIREGUARD_DEVICE` when nobody answers.
 */
export async function askUapi(path: string, request: Buffer, clock: Clock): Promise<Buffer> {
  const late = new Error(`no answer in ${ANSWER_MS / 1000} s`);
  const bound = deadline(clock, ANSWER_MS, { reason: late });
  const socket = connect({ path });
  try {
    return await exchange(socket, request, bound.signal);
  } catch (cause) {
    throw wireguardError("WIREGUARD_DEVICE", `the device at ${path} cannot be asked: ${messageOf(cause)}`, {
      cause,
      details: { path },
    });
  } finally {
    bound.clear();
    socket.destroy();
  }
}

function exchange(socket: Socket, request: Buffer, signal: AbortSignal): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  let bytes = 0;
  signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  socket.once("error", reject);
  socket.once("close", () => reject(new Error("it closed the connection")));
  socket.on("data", (chunk: Buffer) => {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) return reject(new Error(`its answer is longer than ${MAX_ANSWER_BYTES} bytes`));
    if (!isEnd(chunks)) return;
    resolve(Buffer.concat(chunks));
    for (const part of chunks) part.fill(0); // a private key may have passed
  });
  socket.write(request);
  return promise;
}

/** Whether what has come so far ends with an empty line; the two line ends may come apart. */
function isEnd(chunks: readonly Buffer[]): boolean {
  const [before, last] = [chunks.at(-2), chunks.at(-1)];
  if (last === undefined) return false;
  return isComplete(last.length >= 2 || before === undefined ? last : Buffer.concat([before.subarray(-1), last]));
}

/**
 * Holds a connection to a device's socket open, and calls `onGone` once when it breaks: the process has ended. Resolves when it is
 * connected. The returned function lets go without a call.
 */
export async function holdUapi(path: string, onGone: () => void): Promise<() => void> {
  const socket = connect({ path });
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  let held = false;
  socket.once("connect", () => {
    held = true;
    resolve(undefined);
  });
  socket.on("error", reject);
  socket.once("close", () => {
    reject(new Error("it closed the connection"));
    if (held) onGone();
  });
  await promise;
  socket.resume();
  return () => {
    held = false;
    socket.destroy();
  };
}
