import { mountMark, type LabLayout, type NodeLayout } from "./layout.ts";
import { VEIL_ROLES, type VeilRole } from "./manifests.ts";
import { allPids, commandLine, findProcess, mountTable } from "./processes.ts";

/** A role that is a pod, on a node; without a pid: it should run there, and does not. */
export interface VeilProcess {
  readonly node: string;
  readonly role: VeilRole;
  readonly pid: number | undefined;
}

const VEIL_PROGRAM = /\/main\/veil\.[tj]s$/;

/**
 * The roles that are pods, found by their processes, not by asking the API: a status that needs the API could not tell
 * that it is the API that is gone. Of a process and its children of the same role only the first counts.
 */
export function findVeilProcesses(lab: LabLayout): (VeilProcess & { pid: number })[] {
  const found = new Map<number, VeilProcess & { pid: number }>();
  for (const pid of allPids()) {
    const role = veilRoleOf(pid);
    const node = role === undefined ? undefined : nodeOf(lab, pid);
    if (role !== undefined && node !== undefined) found.set(pid, { node, role, pid });
  }
  return [...found.values()].filter(({ pid, role }) => {
    const parent = findProcess(pid)?.parent;
    return parent === undefined || found.get(parent)?.role !== role;
  });
}

/** What of Veil runs, or should run, on a node: an agent and a proxy always, the controller where it is. */
export function veilRoles(node: NodeLayout, processes: readonly VeilProcess[]): VeilProcess[] {
  const here = processes.filter((found) => found.node === node.name);
  const missing = (["agent", "proxy"] as const).filter((role) => here.every((found) => found.role !== role));
  return [...here, ...missing.map((role) => ({ node: node.name, role, pid: undefined }))].toSorted((a, b) =>
    a.role.localeCompare(b.role),
  );
}

/** The processes of a pod, oldest first: its containers see files of a folder that carries its UID. */
export function findPodProcesses(lab: LabLayout, uid: string): number[] {
  const start = (pid: number): number => findProcess(pid)?.startTicks ?? Number.POSITIVE_INFINITY;
  return allPids()
    .filter((pid) => nodeOf(lab, pid) !== undefined && mountTable(pid).includes(`/pods/${uid}/`))
    .toSorted((a, b) => start(a) - start(b));
}

function veilRoleOf(pid: number): VeilRole | undefined {
  const words = commandLine(pid);
  const at = words.findIndex((word) => VEIL_PROGRAM.test(word));
  const role = at < 0 ? undefined : words[at + 1];
  return isVeilRole(role) ? role : undefined;
}

function isVeilRole(text: string | undefined): text is VeilRole {
  return text !== undefined && Object.hasOwn(VEIL_ROLES, text);
}

/** The node whose mounts a process sees. */
function nodeOf(lab: LabLayout, pid: number): string | undefined {
  const mark = mountMark(lab);
  const table = mountTable(pid);
  const at = table.indexOf(` ${mark}`);
  return at < 0 ? undefined : /^\S+/.exec(table.slice(at + 1 + mark.length))?.[0];
}
