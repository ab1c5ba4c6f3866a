import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";

const TICKS_PER_SECOND = 100;

/** Runs a command to its end; throws with what it said when it fails. */
export function must(words: readonly string[]): string {
  const [program = "", ...args] = words;
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw error ?? new Error(`${words.join(" ")}: ${stderr}${stdout}`);
  return stdout;
}

/** Runs a command to its end, without holding up this process; rejects with what it said when it fails or takes too long. */
export async function run(words: readonly string[], timeoutMs = 120_000): Promise<string> {
  const [program = "", ...args] = words;
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], timeout: timeoutMs, killSignal: "SIGKILL" });
  let [out, complaint] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (complaint += text));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => {
      if (code === 0) resolve(out);
      else reject(new Error(`${words.join(" ")}: ${complaint || out || `ended with ${code}`}`));
    });
  });
}

/** Everything that was started, to be ended with this process. */
const started = new Set<ChildProcess>();

/** Starts a program that runs until {@link stopAll}. What it says on standard error is passed on when `DEBUG` is set. */
export function start(words: readonly string[], env: Readonly<Record<string, string>> = {}): ChildProcess {
  const [program = "", ...args] = words;
  const loud = process.env["DEBUG"] === undefined ? "ignore" : "inherit";
  const child = spawn(program, args, {
    stdio: ["ignore", process.env["DEBUG"] === undefined ? "ignore" : 2, loud],
    env: { ...process.env, ...env },
    detached: true, // a process group of its own: workers end with their master
  });
  child.on("error", () => undefined); // whoever waits for its port says it
  started.add(child);
  return child;
}

/** Ends everything that {@link start} started. Also done when this process ends otherwise than by a signal. */
export function stopAll(): void {
  for (const { pid, exitCode, signalCode } of started) {
    if (pid !== undefined && exitCode === null && signalCode === null) process.kill(-pid, "SIGKILL");
  }
  started.clear();
}
process.once("exit", stopAll);

/** Words that run a command inside a network namespace. */
export function inside(netns: string): readonly string[] {
  return ["nsenter", `--net=${netns}`];
}

/** A process and all that it started, as they are now. */
export function family(pid: number): number[] {
  const children = readProc(`/proc/${pid}/task/${pid}/children`).split(" ").filter(Boolean).map(Number);
  return [pid, ...children.flatMap(family)];
}

/** User and system time of processes and what they started, of all threads; seconds. */
export function cpuSeconds(roots: readonly number[]): number {
  const ticks = roots.flatMap(family).reduce((sum, pid) => {
    const fields = readProc(`/proc/${pid}/stat`).split(") ").at(-1)?.split(" ") ?? [];
    return sum + Number(fields[11] ?? 0) + Number(fields[12] ?? 0);
  }, 0);
  return ticks / TICKS_PER_SECOND;
}

/** Memory of processes and what they started, pages that several share counted once; bytes. */
export function memoryBytes(roots: readonly number[]): number {
  return roots.flatMap(family).reduce((sum, pid) => {
    const kilobytes = /^Pss:\s+(\d+) kB/m.exec(readProc(`/proc/${pid}/smaps_rollup`))?.[1];
    return sum + Number(kilobytes ?? 0) * 1024;
  }, 0);
}

/** So long in a row no more CPU than this share may be used by each of the processes' worlds. */
const QUIET_SECONDS = 4;
const QUIET_CPU_SECONDS = 0.03;

/**
 * Waits until nothing that was started still loads: `veil proxy` prepares its next process some seconds after its start.
 * `roots` has one entry for each end of a world.
 */
export async function untilQuiet(roots: readonly number[]): Promise<void> {
  for (let [quiet, before] = [0, cpuSeconds(roots)]; quiet < QUIET_SECONDS;) {
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const now = cpuSeconds(roots);
    quiet = now - before <= (QUIET_CPU_SECONDS * roots.length) / 2 ? quiet + 1 : 0;
    before = now;
  }
}

/** What a file of /proc says; nothing when its process has ended. */
function readProc(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
