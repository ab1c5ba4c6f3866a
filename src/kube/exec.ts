import { WebSocket, type RawData } from "ws";
import type { Clock } from "#base/clock";
import { deadline } from "#base/clock";
import { kubeError, parseStatusText, statusError, transportError, type KubeStatus } from "./errors.ts";
import type { KubeTransport } from "./transport.ts";

/** A command for a container. */
export interface ExecRequest {
  readonly namespace: string;
  readonly pod: string;
  /** Default: the pod's first container. */
  readonly container?: string;
  readonly command: readonly string[];
  /** Sent to the command, then its input is closed. */
  readonly stdin?: string;
  /** Default 30 s. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** What a command left. */
export interface ExecResult {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number;
}

/** Output beyond this is a failure, not memory. */
const MAX_OUTPUT_BYTES = 16 * 1024 * 1024;
const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;
const ERROR = 3;
const CLOSE = 255;

/** Runs a command over the exec subresource as a WebSocket (`v5.channel.k8s.io`, else v4). See `KubeClient.exec`. */
export async function execInPod(transport: KubeTransport, request: ExecRequest, clock: Clock): Promise<ExecResult> {
  const { options, headers } = await transport.connection();
  const late = kubeError("KUBE_TIMEOUT", `${request.command.join(" ")} in ${request.pod} did not end in time`);
  const { signal, clear } = deadline(clock, request.timeoutMs ?? 30_000, {
    reason: late,
    ...(request.signal === undefined ? {} : { parent: request.signal }),
  });
  const socket = new WebSocket(execUrl(transport.config.server, request), ["v5.channel.k8s.io", "v4.channel.k8s.io"], {
    ca: options.ca,
    cert: options.cert,
    key: options.key,
    rejectUnauthorized: options.rejectUnauthorized,
    ...(options.servername === undefined ? {} : { servername: options.servername }),
    headers,
    perMessageDeflate: false,
  });
  try {
    return await runSession(socket, request, signal);
  } finally {
    clear();
    socket.terminate();
  }
}

function execUrl(server: string, request: ExecRequest): URL {
  const { namespace, pod, container, command, stdin } = request;
  const url = new URL(
    `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods/${encodeURIComponent(pod)}/exec`,
    server,
  );
  url.protocol = "wss:";
  for (const word of command) url.searchParams.append("command", word);
  if (container !== undefined) url.searchParams.append("container", container);
  url.searchParams.append("stdout", "true");
  url.searchParams.append("stderr", "true");
  if (stdin !== undefined) url.searchParams.append("stdin", "true");
  return url;
}

function runSession(socket: WebSocket, request: ExecRequest, signal: AbortSignal): Promise<ExecResult> {
  const what = `exec in ${request.namespace}/${request.pod}`;
  const output: [Buffer[], Buffer[], Buffer[]] = [[], [], []];
  let size = 0;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    socket.on("unexpected-response", (_request, response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("end", () => reject(statusError(what, response.statusCode ?? 500, statusOf(chunks))));
    });
    socket.on("error", (error) => reject(transportError(what, error)));
    socket.on("open", () => {
      if (request.stdin === undefined) return;
      socket.send(Buffer.concat([Buffer.of(STDIN), Buffer.from(request.stdin)]));
      if (socket.protocol === "v5.channel.k8s.io") socket.send(Buffer.of(CLOSE, STDIN));
    });
    socket.on("message", (data: RawData) => {
      const frame = bytesOf(data);
      const channel = frame[0];
      if (channel !== STDOUT && channel !== STDERR && channel !== ERROR) return;
      size += frame.length;
      if (size > MAX_OUTPUT_BYTES)
        reject(kubeError("KUBE_EXEC", `${what} printed more than ${MAX_OUTPUT_BYTES} bytes`));
      output[channel - 1]?.push(frame.subarray(1));
    });
    socket.on("close", () => {
      signal.removeEventListener("abort", onAbort);
      const [stdout, stderr, status] = output;
      try {
        const code = exitCode(what, statusOf(status));
        resolve({ stdout: Buffer.concat(stdout).toString(), stderr: Buffer.concat(stderr).toString(), code });
      } catch (error) {
        reject(error);
      }
    });
  });
}

function bytesOf(data: RawData): Buffer {
  if (Array.isArray(data)) return Buffer.concat(data);
  return Buffer.isBuffer(data) ? data : Buffer.from(data);
}

function statusOf(chunks: readonly Buffer[]): KubeStatus {
  return parseStatusText(Buffer.concat(chunks).toString("utf8"));
}

/** The exit code in the Status that ends a session. Throws `KUBE_EXEC` when the command did not run to its end. */
export function exitCode(what: string, status: KubeStatus): number {
  if (status.status === "Success") return 0;
  for (const cause of status.causes ?? []) {
    if (typeof cause !== "object" || cause === null || !("reason" in cause) || cause.reason !== "ExitCode") continue;
    const code = "message" in cause ? Number(cause.message) : Number.NaN;
    if (Number.isInteger(code)) return code;
  }
  throw kubeError("KUBE_EXEC", `${what} failed: ${status.message ?? "the connection ended before the command"}`);
}
