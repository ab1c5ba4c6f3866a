import type { WebSocket, RawData } from "ws";
import { endGroup, spawnInContainer } from "./exec.ts";
import type { ContainerRunner } from "./container-runner.ts";

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;
const STATUS = 3;
const CLOSE = 255;
/** Output waits while more than this is on its way to the client. */
const MAX_BUFFERED_BYTES = 1 << 20;
const NORMAL_CLOSURE = 1000;

/**
 * Runs a command in a container and connects it to a client by the channel protocol of Kubernetes (v5 and v4): each
 * frame begins with the number of its channel; the last one carries a Status with the exit code. When the client goes,
 * the command is ended.
 */
export function runExecSession(client: WebSocket, runner: ContainerRunner | undefined, query: URLSearchParams): void {
  const running = runner?.process;
  if (runner === undefined || running === undefined) return finish(client, failure("the container does not run now"));
  const flag = (...names: readonly string[]): boolean => names.some((name) => /^(1|true)$/.test(query.get(name) ?? ""));
  const tty = flag("tty");
  const child = spawnInContainer({
    process: running,
    command: query.getAll("command"),
    environment: runner.environment,
    tty,
  });
  const wantsInput = flag("input", "stdin");
  child.stdin.on("error", () => {}); // a command that does not read its input
  if (!wantsInput) child.stdin.end();
  client.send(Buffer.of(STDOUT)); // tells the client that the command has begun
  forward(client, child.stdout, STDOUT);
  forward(client, child.stderr, tty ? STDOUT : STDERR);
  client.on("message", (data: RawData) => takeInput(bytesOf(data), child.stdin));
  client.on("close", () => endGroup(child));
  client.on("error", () => endGroup(child));
  child.once("error", (error) => finish(client, failure(error.message)));
  child.once("close", (code) => finish(client, statusOf(code ?? 137)));
}

function forward(client: WebSocket, stream: NodeJS.ReadableStream, channel: number): void {
  stream.on("data", (chunk: Buffer) => {
    client.send(Buffer.concat([Buffer.of(channel), chunk]), () => stream.resume());
    if (client.bufferedAmount > MAX_BUFFERED_BYTES) stream.pause();
  });
}

function takeInput(frame: Buffer, stdin: NodeJS.WritableStream): void {
  if (frame[0] === STDIN && frame.length > 1) stdin.write(frame.subarray(1));
  if (frame[0] === CLOSE && frame[1] === STDIN) stdin.end();
}

function finish(client: WebSocket, status: object): void {
  client.send(Buffer.concat([Buffer.of(STATUS), Buffer.from(JSON.stringify(status))]), () =>
    client.close(NORMAL_CLOSURE),
  );
}

function statusOf(code: number): object {
  if (code === 0) return { metadata: {}, status: "Success" };
  return {
    metadata: {},
    status: "Failure",
    reason: "NonZeroExitCode",
    message: `command terminated with non-zero exit code: exit status ${code}`,
    details: { causes: [{ reason: "ExitCode", message: String(code) }] },
  };
}

function failure(message: string): object {
  return { metadata: {}, status: "Failure", reason: "InternalError", message, code: 500 };
}

function bytesOf(data: RawData): Buffer {
  if (Array.isArray(data)) return Buffer.concat(data);
  return Buffer.isBuffer(data) ? data : Buffer.from(data);
}
