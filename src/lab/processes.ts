import { closeSync, readdirSync, readFileSync, statSync } from "node:fs";
import { sleep, type Clock } from "#base/clock";

/** One run of one program: a pid alone may be used again by the kernel. */
export interface ProcessId {
  readonly pid: number;
  /** Clock ticks since boot at which it was started. */
  readonly startTicks: number;
}

/** The environment variable that marks every process of a lab. */
export const LAB_VARIABLE = "VEIL_LAB";

/** Parses `/proc/PID/stat`; undefined when it is none. The name in brackets may hold brackets and spaces. */
export function findStat(text: string): (ProcessId & { parent: number; state: string }) | undefined {
  const close = text.lastIndexOf(")");
  const pid = Number.parseInt(text, 10);
  const fields = text.slice(close + 2).split(" ");
  const startTicks = Number(fields[19]);
  if (close < 0 || !Number.isInteger(pid) || !Number.isInteger(startTicks)) return undefined;
  return { pid, startTicks, parent: Number(fields[1]), state: fields[0] ?? "" };
}

/** The running process with this pid; undefined when there is none, or only a zombie. */
export function findProcess(pid: number): (ProcessId & { parent: number }) | undefined {
  const stat = findStat(readProc(`${pid}/stat`));
  return stat === undefined || stat.state === "Z" || stat.state === "X" ? undefined : stat;
}

/** True when that very run is still there. */
export function isRunning(process: ProcessId): boolean {
  return findProcess(process.pid)?.startTicks === process.startTicks;
}

/** All pids of the machine. */
export function allPids(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

/** What tells that a process belongs to a lab; one is enough. */
export interface Marks {
  /** Value of `VEIL_LAB` in its environment. */
  readonly variable: string;
  /** Beginning of the source of a mount that it sees. */
  readonly mount: string;
  /** `device:inode` of the lab's network namespaces. */
  readonly netns: ReadonlySet<string>;
}

/** The processes that carry one of the marks, zombies left out. */
export function findMarked(marks: Marks): ProcessId[] {
  return allPids().flatMap((pid) => {
    const found = findProcess(pid);
    return found !== undefined && isMarked(pid, marks) ? [{ pid, startTicks: found.startTicks }] : [];
  });
}

/** True when the process carries one of the marks. */
export function isMarked(pid: number, marks: Marks): boolean {
  const variable = `${LAB_VARIABLE}=${marks.variable}`;
  if (readProc(`${pid}/environ`).split("\0").includes(variable)) return true;
  const netns = namespaceKey(`/proc/${pid}/ns/net`);
  if (netns !== undefined && marks.netns.has(netns)) return true;
  return mountTable(pid).includes(` ${marks.mount}`);
}

/** `device:inode` of a namespace file; undefined when it is gone. */
export function namespaceKey(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path);
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

/** Sends a signal to that very run; does nothing when it has ended. */
export function signalProcess(target: ProcessId, signal: NodeJS.Signals): void {
  if (!isRunning(target)) return;
  try {
    process.kill(target.pid, signal);
  } catch {
    // it ended between the look and the call
  }
}

const POLL_MS = 10;

/** Kills with SIGKILL what `find` finds until it finds nothing, or `deadlineMs` has passed; returns what is left. */
export async function killAll(find: () => ProcessId[], clock: Clock, deadlineMs: number): Promise<ProcessId[]> {
  const endMs = clock.monotonic() + deadlineMs;
  for (;;) {
    const found = find();
    if (found.length === 0 || clock.monotonic() > endMs) return found;
    for (const target of found) signalProcess(target, "SIGKILL");
    await sleep(clock, POLL_MS);
  }
}

/** The process and all its descendants. */
export function processTree(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const pid of allPids()) {
    const parent = findProcess(pid)?.parent;
    if (parent !== undefined) children.set(parent, [...(children.get(parent) ?? []), pid]);
  }
  const tree: number[] = [];
  const visit = (pid: number): void => {
    tree.push(pid);
    for (const child of children.get(pid) ?? []) visit(child);
  };
  visit(root);
  return tree;
}

/** Memory of a process in bytes: its proportional share of what it maps (PSS), or its resident set where that is not told. */
export function memoryBytes(pid: number): number {
  const pss = /^Pss:\s+(\d+) kB/m.exec(readProc(`${pid}/smaps_rollup`));
  const rss = pss ?? /^VmRSS:\s+(\d+) kB/m.exec(readProc(`${pid}/status`));
  return Number(rss?.[1] ?? 0) * 1024;
}

/** The sources (`tmpfs`, `/dev/vda`) and roots of all mounts that a process sees, as /proc tells them. */
export function mountTable(pid: number): string {
  return readProc(`${pid}/mountinfo`);
}

/** Arguments of a process; empty when it is gone. */
export function commandLine(pid: number): string[] {
  return readProc(`${pid}/cmdline`).split("\0").slice(0, -1);
}

function readProc(path: string): string {
  try {
    return readFileSync(`/proc/${path}`, "utf8");
  } catch {
    return ""; // it has ended, or belongs to someone else
  }
}

const FIRST_INHERITABLE_FD = 3;
const O_CLOEXEC = 0o2_000_000;

/**
 * Closes the descriptors that this process was started with and would pass on, but for standard streams and `keep`. Node
 * itself stops the first few at its start, and passes none on that it opens; those of higher numbers are left: a pipe of
 * the shell that started a lab would stay open as long as the lab.
 */
export function closeInherited(keep: readonly number[]): void {
  for (const name of readdirSync("/proc/self/fd")) {
    const fd = Number(name);
    const flags = /^flags:\s+([0-7]+)/m.exec(readProc(`self/fdinfo/${name}`))?.[1];
    if (fd < FIRST_INHERITABLE_FD || keep.includes(fd) || flags === undefined) continue;
    if ((Number.parseInt(flags, 8) & O_CLOEXEC) === 0) closeSync(fd);
  }
}
