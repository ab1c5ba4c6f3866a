import { existsSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import type { Clock } from "#base/clock";
import { tryCommand } from "./commands.ts";
import { labError } from "./errors.ts";
import {
  isNetnsOf,
  LABS_FOLDER,
  mountMark,
  NETNS_FOLDER,
  netnsPath,
  type LabLayout,
  type NodeLayout,
} from "./layout.ts";
import { lockLab } from "./lock.ts";
import { removeNetns } from "./network.ts";
import { allPids, findMarked, isMarked, killAll, namespaceKey, type Marks } from "./processes.ts";
import type { Progress } from "./progress.ts";
import { holdsNamespace, isFolderMounted } from "./state.ts";

/** What a command on a lab works with. */
export interface LabContext {
  readonly lab: LabLayout;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly progress: Progress;
  /** Absolute path of Veil's start script. */
  readonly program: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** How long a command waits for another one on the same lab. */
export const LOCK_WAIT_MS = 600_000;
const KILL_DEADLINE_MS = 10_000;

/** What was removed, counted. All zero: there was no such lab. */
export interface Removed {
  readonly processes: number;
  readonly namespaces: number;
  readonly folders: number;
}

/**
 * Removes everything of a lab, however much of it there is and whoever was killed while making or removing it.
 * Throws `LAB_LEFT_BEHIND` with what could not be removed.
 */
export async function takeDown(context: LabContext): Promise<Removed> {
  const { lab, clock, signal } = context;
  await using _ = await lockLab(lab, { clock, signal, waitMs: LOCK_WAIT_MS, note: context.progress.note });
  return context.progress.step(`lab ${lab.name} taken down`, () => removeLab(lab, clock));
}

/** As {@link takeDown}, for one that holds the lab already. Cannot be interrupted: it takes well under a second. */
export async function removeLab(lab: LabLayout, clock: Clock): Promise<Removed> {
  const marks = labMarks(lab);
  if (isMarked(process.pid, { ...marks, variable: "" })) {
    throw labError("LAB_INSIDE", `lab ${lab.name} cannot be taken down by a process inside it`);
  }
  const found = findMarked(marks).length;
  const stubborn = await killAll(() => findMarked(marks), clock, KILL_DEADLINE_MS);
  const namespaces = labNetns(lab);
  await Promise.all(namespaces.map(removeNetns));
  const folders = await removeFolder(lab);
  const left = [
    ...stubborn.map(({ pid }) => `process ${pid}`),
    ...labNetns(lab).map((netns) => `network namespace ${netns}`),
    ...(existsSync(lab.folder) ? [`folder ${lab.folder}`] : []),
  ];
  if (left.length > 0) {
    throw labError("LAB_LEFT_BEHIND", `lab ${lab.name} is not gone: ${left.join(", ")}`, { details: { left } });
  }
  return { processes: found, namespaces: namespaces.length, folders };
}

/** Removes nodes, with everything that runs on them, of a lab whose other nodes stay. */
export async function removeNodes(lab: LabLayout, nodes: readonly NodeLayout[], clock: Clock): Promise<void> {
  for (const node of nodes) {
    const netns = new Set([namespaceKey(netnsPath(node.netns))].filter((key) => key !== undefined));
    const marks: Marks = { variable: "", mount: `${mountMark(lab, node)} `, netns };
    await killAll(() => findMarked(marks), clock, KILL_DEADLINE_MS);
    await removeNetns(node.netns);
    for (const file of [node.mountNamespace, node.utsNamespace]) {
      if (holdsNamespace(file)) await tryCommand(["umount", "-l", file]);
      rmSync(file, { force: true });
    }
    rmSync(node.folder, { recursive: true, force: true });
  }
}

/** What is there of a lab, by name; empty when it is gone. For tests and for `up`. */
export function labNetns(lab: LabLayout): string[] {
  try {
    return readdirSync(NETNS_FOLDER).filter((name) => isNetnsOf(lab, name));
  } catch {
    return []; // nobody has made a named namespace on this machine yet
  }
}

/**
 * How processes of the lab are told from others. Those of pods have network namespaces without a name: whatever else
 * runs in one of these (a capture, a shell) keeps it alive, so it counts too.
 */
function labMarks(lab: LabLayout): Marks {
  const named = labNetns(lab).map((netns) => namespaceKey(netnsPath(netns)));
  const mount = mountMark(lab);
  const ours = new Set([namespaceKey("/proc/self/ns/net"), namespaceKey("/proc/1/ns/net")]);
  const noNames: Marks = { variable: "", mount, netns: new Set() };
  const pods = allPids()
    .filter((pid) => isMarked(pid, noNames))
    .map((pid) => namespaceKey(`/proc/${pid}/ns/net`))
    .filter((key) => !ours.has(key));
  const netns = new Set([...named, ...pods].filter((key) => key !== undefined));
  return { variable: lab.name, mount, netns };
}

/** More mounts than this on one folder are not ours. */
const MAX_MOUNTS = 8;

async function removeFolder(lab: LabLayout): Promise<number> {
  const existed = existsSync(lab.folder) ? 1 : 0;
  for (let i = 0; i < MAX_MOUNTS && isFolderMounted(lab); i++) await tryCommand(["umount", "-l", lab.folder]);
  if (isFolderMounted(lab)) return existed;
  rmSync(lab.folder, { recursive: true, force: true });
  try {
    rmdirSync(LABS_FOLDER);
  } catch {
    // other labs are there
  }
  return existed;
}
