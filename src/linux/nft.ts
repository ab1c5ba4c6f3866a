import { spawn } from "node:child_process";
import { messageOf } from "#base/errors";
import { linuxError } from "./libc.ts";
import { inNetns, type Netns } from "./netns.ts";

/** Most output of a program that is kept; the rest is dropped. */
const MAX_OUTPUT_BYTES = 4 << 20;

/** A system program to run. */
export interface SystemCommand {
  readonly program: string;
  readonly args: readonly string[];
  /** Standard input. Default: empty. */
  readonly input?: string;
  /** Where to run it. Default: where this process is. */
  readonly netns?: Netns;
  /** Kills the program when aborted. */
  readonly signal?: AbortSignal;
}

/** How a program ended. */
export interface CommandOutcome {
  /** Exit status; undefined when a signal ended it. */
  readonly status: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a program inside a network namespace. The child is forked by this thread while it is inside, so that neither `nsenter` nor
 * `ip netns exec` is needed (one exec less, and no name or path of the namespace). Throws `LINUX_COMMAND` when it cannot be started,
 * `LINUX_NETNS_GONE`, or the signal's reason. A failing exit status is an outcome, not an error.
 */
export async function runCommand(command: SystemCommand): Promise<CommandOutcome> {
  const { program, args, input = "", netns, signal } = command;
  signal?.throwIfAborted();
  const start = () =>
    spawn(program, [...args], { stdio: "pipe", killSignal: "SIGKILL", ...(signal === undefined ? {} : { signal }) });
  const child = netns === undefined ? start() : inNetns(netns, start);
  const stdout = collect(child.stdout);
  const stderr = collect(child.stderr);
  child.stdin.on("error", () => {}); // the program may end without reading; its exit status says why
  child.stdin.end(input);
  const { promise, resolve, reject } = Promise.withResolvers<number | undefined>();
  child.on("error", (cause) => {
    const reason = signal?.aborted === true ? signal.reason : undefined;
    reject(reason ?? linuxError("LINUX_COMMAND", `cannot run ${program}: ${messageOf(cause)}`, { cause }));
  });
  child.on("close", (code) => resolve(code ?? undefined));
  return { status: await promise, stdout: stdout(), stderr: stderr() };
}

function collect(stream: NodeJS.ReadableStream): () => string {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes <= MAX_OUTPUT_BYTES) chunks.push(chunk);
  });
  return () => Buffer.concat(chunks).toString("utf8");
}

/**
 * Gives `script` to nft as one transaction: all of it takes effect, or nothing. Answers what nft printed.
 * Throws `LINUX_COMMAND` with nft's own words.
 */
export async function runNft(
  script: string,
  options: { netns?: Netns; signal?: AbortSignal; args?: readonly string[] } = {},
): Promise<string> {
  const { args = [], ...rest } = options;
  const outcome = await runCommand({ program: "nft", args: [...args, "-f", "-"], input: script, ...rest });
  if (outcome.status === 0) return outcome.stdout;
  throw linuxError("LINUX_COMMAND", `nft refused a transaction: ${firstLine(outcome.stderr)}`, {
    details: { program: "nft", status: outcome.status, stderr: outcome.stderr.slice(0, 2000) },
  });
}

/** The first line of a text, without white space around it. */
function firstLine(text: string): string {
  return text.trim().split("\n", 1)[0] ?? "";
}
