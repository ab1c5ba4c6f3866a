import { createReadStream, statSync, truncateSync } from "node:fs";
import { open } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { pipeline } from "node:stream/promises";
import { sleep, systemClock } from "#base/clock";
import type { PodWorker } from "./pod-worker.ts";
import { refuse } from "./refuse.ts";

const FOLLOW_POLL_MS = 100;
const TAIL_BLOCK_BYTES = 64 * 1024;

/** A container's log is emptied when it has become this long: the lab keeps logs in memory. */
const MAX_LOG_BYTES = 16 << 20;

/** Options that would need a time beside each line; logs are kept as the container wrote them. */
const UNSUPPORTED = ["sinceSeconds", "sinceTime", "timestamps"];

/** Sends the log of a container: whole or its last lines, of this or the previous run, and what is added later. */
export async function sendLogs(
  worker: PodWorker,
  target: { pod: string; container: string; query: URLSearchParams },
  response: ServerResponse,
): Promise<void> {
  const { query } = target;
  const unsupported = UNSUPPORTED.find((name) => !["", "false", null].includes(query.get(name)));
  if (unsupported !== undefined) return refuse(response, 400, `the lab's kubelet cannot do ${unsupported}`);
  const runner = worker.runner(target.container);
  if (runner === undefined) {
    return refuse(response, 404, `pod ${target.pod} has no container ${target.container} that was started`);
  }
  const { attempt, state } = runner.facts;
  const number = query.get("previous") === "true" ? attempt - 1 : attempt;
  const file = worker.files.container(target.container).attempt(number).log;
  if (sizeOf(file) === undefined) {
    const why = state.kind === "waiting" ? `is waiting to start: ${state.reason}` : "has no such log";
    return refuse(response, 400, `container "${target.container}" in pod "${target.pod}" ${why}`);
  }
  response.writeHead(200, { "content-type": "text/plain" });
  response.flushHeaders();
  const tail = query.get("tailLines");
  let at = tail === null ? 0 : await tailStart(file, Number(tail));
  at = await sendFrom(file, at, response);
  const running = (): boolean => runner.facts.attempt === number && runner.process !== undefined;
  if (query.get("follow") === "true") await follow(file, { at, running, response });
  response.end();
}

async function follow(
  file: string,
  session: { at: number; running: () => boolean; response: ServerResponse },
): Promise<void> {
  const { running, response } = session;
  const clock = systemClock({ unref: true });
  let { at } = session;
  for (let last = false; !response.destroyed && !last;) {
    last = !running(); // looked at before the rest is read
    if ((sizeOf(file) ?? 0) < at) at = 0; // cut, since it had become too long
    at = await sendFrom(file, at, response);
    if (!last) await sleep(clock, FOLLOW_POLL_MS);
  }
}

/** Sends what is there from `at` on; resolves with the place where it ended. */
async function sendFrom(file: string, at: number, response: ServerResponse): Promise<number> {
  const end = sizeOf(file) ?? 0;
  if (end <= at || response.destroyed) return at;
  await pipeline(createReadStream(file, { start: at, end: end - 1 }), response, { end: false });
  return end;
}

/** Where the last `lines` lines of a file begin. */
export async function tailStart(file: string, lines: number): Promise<number> {
  await using handle = await open(file);
  const { size } = await handle.stat();
  if (!(lines > 0)) return size;
  let found = 0;
  for (let end = size; end > 0;) {
    const start = Math.max(0, end - TAIL_BLOCK_BYTES);
    const { buffer } = await handle.read(Buffer.alloc(end - start), 0, end - start, start);
    for (let i = buffer.length - 1; i >= 0; i--) {
      if (buffer[i] !== 10 || start + i === size - 1) continue; // the newline that ends the last line counts for none
      found++;
      if (found === lines) return start + i + 1;
    }
    end = start;
  }
  return 0;
}

/** Empties a log that has become too long. The container writes in append mode: it goes on at the new end. */
export function trimLog(file: string): void {
  if ((sizeOf(file) ?? 0) > MAX_LOG_BYTES) truncateSync(file);
}

function sizeOf(file: string): number | undefined {
  try {
    return statSync(file).size;
  } catch {
    return undefined;
  }
}
