import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { LabStatus } from "#lab";
import { must, VEIL, type TestLab } from "../../test/netns/harness.ts";
import { family } from "../data-path/processes.ts";

/** Memory and descriptors of one process: pages in KiB that it alone has written. */
export interface Use {
  readonly dirtyKib: number;
  readonly descriptors: number;
}

/** What was seen at one moment, by process: `agent node1`, `proxy node1, at work` and so on. */
export interface Sample {
  readonly minute: number;
  readonly uses: Readonly<Record<string, Use>>;
}

/** The processes of a lab's proxies, agents and controller, by name. */
export async function watched(lab: TestLab): Promise<ReadonlyMap<string, number>> {
  const status = JSON.parse(await must([VEIL, "lab", "status", "--name", lab.name, "-o", "json"])) as LabStatus;
  const roots = status.nodes.flatMap(({ name, roles }) => roles.map(({ role, pid }) => ({ role, name, pid })));
  return new Map(
    roots.flatMap(({ role, name, pid }) => {
      if (pid === undefined || !/^(proxy|agent|controller)$/.test(role)) return [];
      const programs = family(pid).filter((one) => isRole(one, role));
      return programs.map((one, i) => [role === "proxy" ? `${role} ${name}, ${PROXY[i]}` : `${role} ${name}`, one]);
    }),
  );
}

/** The processes of a proxy, oldest first. */
const PROXY = ["supervisor", "at work", "waiting"];

/** Of the program itself, not of the shell that started it. */
function isRole(pid: number, role: string): boolean {
  const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  return words.includes(role) && words.some((word) => word.endsWith("/main/veil.ts"));
}

/** Looks at each process; one that has ended is left out. */
export function look(pids: ReadonlyMap<string, number>): Sample["uses"] {
  return Object.fromEntries(
    [...pids].flatMap(([name, pid]) => {
      const use = measure(pid);
      return use === undefined ? [] : [[name, use]];
    }),
  );
}

function measure(pid: number): Use | undefined {
  try {
    const dirty = /^Private_Dirty:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1];
    return { dirtyKib: Number(dirty), descriptors: readdirSync(`/proc/${pid}/fd`).length };
  } catch {
    return undefined;
  }
}

/** The heaps of threads just after all their garbage was collected: what somebody still holds. */
export interface Heaps {
  readonly minute: number;
  /** KiB, by process and thread: `proxy node1, main` and so on. */
  readonly usedKib: Readonly<Record<string, number>>;
}

/** Collects the garbage of agents, controller and proxies at work, and answers what is left. */
export async function collectGarbage(pids: ReadonlyMap<string, number>): Promise<Heaps["usedKib"]> {
  const found: Record<string, number> = {};
  const program = join(import.meta.dirname, "heap.ts");
  for (const [name, pid] of pids) {
    if (/, (supervisor|waiting)$/.test(name)) continue;
    const text = await must(["nsenter", "--target", String(pid), "--net", process.execPath, program, String(pid)]);
    for (const [thread, kib] of Object.entries(JSON.parse(text) as Record<string, number>)) {
      found[`${name.replace(", at work", "")}, ${thread}`] = kib;
    }
  }
  return found;
}
