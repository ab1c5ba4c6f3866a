import { spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { sleep, type Clock } from "#base/clock";
import { findProcess, isRunning, signalProcess, type ProcessId } from "../processes.ts";
import type { ContainerPlan } from "./container-plan.ts";
import { setupScript } from "./container-script.ts";
import { kubeletError } from "./errors.ts";
import { findText, removePath, writeFileWhole, type ContainerFiles } from "./pod-files.ts";

/** How a container's process ended. */
export interface ProcessEnd {
  readonly exitCode: number;
  /** Set when the command was never reached. */
  readonly startError: string | undefined;
}

/** One run of a container's command. */
export interface ContainerProcess extends ProcessId {
  readonly ended: Promise<ProcessEnd>;
}

/** How often a process is looked at that an earlier kubelet has started. */
const POLL_MS = 100;
const START_DEADLINE_MS = 30_000;
const START_POLL_MS = 2;
const KILLED = 137;
/** Bit of SIGTERM in the masks of /proc/PID/status. */
const SIGTERM_BIT = 1n << 14n;

/**
 * Waits for the command and writes its exit code. Three processes make a container: this one, `unshare`, which holds
 * the pid namespace, and the command as its first process. They outlive the kubelet.
 *
 * `unshare` complains to `$0.err`; the command to the log, which is open as 3.
 */
const RECORDER = `
exec 3>&2 2>/dev/null
"$@" 2>"$0.err"
code=$?
echo $code >"$0.part"
mv "$0.part" "$0.exit"
`;

/**
 * Starts a command in its own mount and (unless the pod is `hostPID`) pid namespace: when its first process ends, the
 * kernel ends all others. Resolves when the command runs. Throws `KUBELET_START` when it does not come that far.
 */
export async function startProcess(plan: ContainerPlan, clock: Clock): Promise<ContainerProcess> {
  const files = plan.files.attempt(plan.attempt);
  mkdirSync(plan.files.folder, { recursive: true });
  for (const file of [files.pid, files.exit, files.error]) removePath(file);
  writeFileWhole(files.script, setupScript(plan), 0o700);
  const log = openSync(files.log, "a", 0o640);
  const base = files.exit.slice(0, -".exit".length);
  const child = spawn("/bin/sh", ["-c", RECORDER, base, ...wrapper(plan), "sh", files.script, ...plan.command], {
    stdio: ["ignore", log, log],
    env: { PATH: process.env["PATH"], ...plan.marks },
    cwd: "/",
    detached: true,
  });
  closeSync(log);
  const exited = new Promise<void>((resolve) => {
    child.once("error", () => resolve());
    child.once("exit", () => resolve());
  });
  child.unref();
  const found = await waitForPid(plan.files, plan.attempt, { clock, exited });
  return { ...found, ended: exited.then(() => readEnd(plan.files, plan.attempt)) };
}

/** Takes over a command that an earlier kubelet has started; undefined when nothing of that attempt is known. */
export async function adoptProcess(
  container: ContainerFiles,
  attempt: number,
  clock: Clock,
): Promise<ContainerProcess | undefined> {
  const recorded = findProcessId(container, attempt);
  if (recorded === undefined) return undefined;
  const ended = async (): Promise<ProcessEnd> => {
    while (isRunning(recorded)) await sleep(clock, POLL_MS);
    // The exit code is written a moment after the end, unless the recorder was killed too.
    for (let tries = 0; tries < 5 && findText(container.attempt(attempt).exit) === undefined; tries++) {
      await sleep(clock, POLL_MS / 5);
    }
    return readEnd(container, attempt);
  };
  return { ...recorded, ended: ended() };
}

/** True when the command of that attempt runs. */
export function isStillRunning(container: ContainerFiles, attempt: number): boolean {
  const recorded = findProcessId(container, attempt);
  return recorded !== undefined && isRunning(recorded);
}

/** Asks a command to end. True when it can hear that: the first process of a pid namespace that does not listen for SIGTERM never gets it. */
export function terminate(target: ProcessId): boolean {
  const status = findText(`/proc/${target.pid}/status`) ?? "";
  const caught = /^SigCgt:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0";
  const hears = (BigInt(`0x${caught}`) & SIGTERM_BIT) !== 0n;
  signalProcess(target, hears ? "SIGTERM" : "SIGKILL");
  return hears;
}

function wrapper(plan: ContainerPlan): string[] {
  const enter = plan.sandbox === undefined ? [] : [`--net=${plan.sandbox.netns}`, `--uts=${plan.sandbox.uts}`];
  const pid = plan.hostPid ? [] : ["--pid"];
  const unshare = ["unshare", "--mount", "--propagation=slave", ...pid, "--fork", "--kill-child"];
  return enter.length === 0 ? unshare : ["nsenter", ...enter, ...unshare];
}

async function waitForPid(
  container: ContainerFiles,
  attempt: number,
  wait: { clock: Clock; exited: Promise<void> },
): Promise<ProcessId> {
  const { clock } = wait;
  const endMs = clock.monotonic() + START_DEADLINE_MS;
  let over = false;
  void wait.exited.then(() => {
    over = true;
  });
  for (;;) {
    const found = findProcessId(container, attempt);
    if (found !== undefined) return found;
    if (over || clock.monotonic() > endMs) throw kubeletError("KUBELET_START", startError(container, attempt));
    await sleep(clock, START_POLL_MS);
  }
}

/** What the command wrote about itself before it began: the line of /proc/PID/stat. */
function findProcessId(container: ContainerFiles, attempt: number): ProcessId | undefined {
  const text = findText(container.attempt(attempt).pid);
  if (text === undefined || !text.endsWith("\n")) return undefined;
  const [pid = 0, startTicks = 0] = text.trim().split(" ").map(Number);
  return pid > 0 ? { pid, startTicks } : undefined;
}

function readEnd(container: ContainerFiles, attempt: number): ProcessEnd {
  const files = container.attempt(attempt);
  const code = Number.parseInt(findText(files.exit) ?? "", 10);
  if (findProcessId(container, attempt) === undefined)
    return { exitCode: 128, startError: startError(container, attempt) };
  if (!Number.isInteger(code)) return { exitCode: KILLED, startError: undefined };
  // `unshare` cannot end by SIGKILL as its child did: it complains and ends with 1.
  const killed = code === 1 && (findText(files.error) ?? "").includes("unshare");
  return { exitCode: killed ? KILLED : code, startError: undefined };
}

function startError(container: ContainerFiles, attempt: number): string {
  const words =
    findText(container.attempt(attempt).error)
      ?.trim()
      .replaceAll(/\s*\n\s*/g, "; ") ?? "";
  return `the command did not start: ${words === "" ? "the system gave no reason" : words.slice(0, 500)}`;
}

/** Ends a process for sure, and waits until it is gone. */
export async function killProcess(target: ProcessId, clock: Clock): Promise<void> {
  for (let tries = 0; tries < 500 && findProcess(target.pid)?.startTicks === target.startTicks; tries++) {
    signalProcess(target, "SIGKILL");
    await sleep(clock, 10);
  }
}
