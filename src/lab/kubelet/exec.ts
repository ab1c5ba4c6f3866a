import { spawn, type ChildProcess } from "node:child_process";
import type { ProcessId } from "../processes.ts";

/** A command to run beside the one of a container. */
export interface ContainerCommand {
  readonly process: ProcessId;
  readonly command: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  /** Runs it on a terminal of its own. */
  readonly tty?: boolean;
}

/** Starts a command in the namespaces of a container. It leads a process group of its own: {@link endGroup} ends all of it. */
export function spawnInContainer(request: ContainerCommand): ChildProcess & {
  stdin: NodeJS.WritableStream;
  stdout: NodeJS.ReadableStream;
  stderr: NodeJS.ReadableStream;
} {
  const { process, environment, tty = false } = request;
  const enter = ["-t", String(process.pid), "-m", "-u", "-n", "-p", "--"];
  // Node's pipes are sockets; a bash that finds one as its input takes itself for a remote login and runs ~/.bashrc, unless
  // it is told that it is no outermost shell.
  const variables = Object.entries({ TERM: "xterm", SHLVL: "1", ...environment }).map(
    ([name, value]) => `${name}=${value}`,
  );
  const command = tty ? onTerminal(request.command) : request.command;
  return spawn("nsenter", [...enter, "env", "-i", ...variables, ...command], {
    stdio: ["pipe", "pipe", "pipe"],
    cwd: "/",
    detached: true,
  });
}

/** Ends a command and what it started in its group. */
export function endGroup(child: ChildProcess): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // it ended between the look and the call
  }
}

/** Runs a command and drops its output; resolves with its exit code. */
export async function execToEnd(request: ContainerCommand, signal: AbortSignal): Promise<number> {
  const child = spawnInContainer(request);
  child.stdin.on("error", () => {}); // a command that does not read
  child.stdin.end();
  child.stdout.resume();
  child.stderr.resume();
  const onAbort = (): void => endGroup(child);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (code) => resolve(code ?? 137));
    });
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** util-linux' `script` makes the terminal; its own record goes nowhere. */
function onTerminal(command: readonly string[]): string[] {
  const line = command.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  return ["script", "-qfec", line, "/dev/null"];
}
