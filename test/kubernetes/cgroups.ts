import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CGROUP } from "./layout.ts";

const ROOT = "/sys/fs/cgroup";

/** True for the unified hierarchy (version 2). */
function isUnified(): boolean {
  return existsSync(join(ROOT, "cgroup.controllers"));
}

/** The roots of all hierarchies that hold processes: one in version 2, one for each controller in version 1. */
function hierarchies(): string[] {
  if (isUnified()) return [ROOT];
  return readdirSync(ROOT, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && existsSync(join(ROOT, entry.name, "cgroup.procs")))
    .map((entry) => join(ROOT, entry.name));
}

/** The hierarchy in which processes are found and put. */
function mainHierarchy(): string {
  return isUnified() ? ROOT : join(ROOT, "pids");
}

/** Makes cgroups of the cluster: for the daemons of a place, or for a node's kubelet to take as its root. */
export function makeCgroups(names: readonly string[]): void {
  for (const root of hierarchies()) {
    for (const name of ["", ...names]) {
      const folder = join(root, CGROUP, name);
      mkdirSync(folder, { recursive: true });
      // A new cpuset is empty, and nothing can run in it. In version 1 it is filled by hand, from its parent's.
      for (const file of ["cpuset.cpus", "cpuset.mems"]) {
        if (root.endsWith("/cpuset")) writeFileSync(join(folder, file), readFileSync(join(folder, "..", file)));
      }
      if (isUnified() && name === "") enableControllers(folder);
    }
  }
}

function enableControllers(folder: string): void {
  for (const parent of [ROOT, folder]) {
    writeFileSync(join(parent, "cgroup.subtree_control"), "+cpu +cpuset +memory +pids");
  }
}

/** The command of a shell that puts itself into a cgroup; what it becomes, and all that this starts, stay there. */
export function enterCgroup(name: string): string {
  return `echo $$ >${join(mainHierarchy(), CGROUP, name, "cgroup.procs")}`;
}

/** All processes of the cluster, or those in one of its cgroups. */
export function clusterProcesses(name = ""): number[] {
  return foldersBelow(join(mainHierarchy(), CGROUP, name)).flatMap((folder) => {
    try {
      return readFileSync(join(folder, "cgroup.procs"), "utf8").split("\n").filter(Boolean).map(Number);
    } catch {
      return []; // removed between the two looks
    }
  });
}

/** The cluster's cgroups that are there, or one of them and those in it; the inner ones first. */
export function clusterCgroups(name = ""): string[] {
  return hierarchies().flatMap((root) => foldersBelow(join(root, CGROUP, name)));
}

/** Removes all cgroups that have no process, or those of a place. */
export function removeCgroups(name = ""): void {
  for (const folder of clusterCgroups(name)) {
    try {
      rmdirSync(folder);
    } catch {
      // its processes are still ending, or it is gone
    }
  }
}

/** A folder and those in it, the inner ones first; empty when it is not there. */
function foldersBelow(folder: string): string[] {
  let entries;
  try {
    entries = readdirSync(folder, { withFileTypes: true });
  } catch {
    return [];
  }
  return [
    ...entries.filter((entry) => entry.isDirectory()).flatMap((entry) => foldersBelow(join(folder, entry.name))),
    folder,
  ];
}
