import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { openNetns, type Netns } from "#linux";

/** Finds the network namespace of a running pod. */
export interface NetnsFinder {
  /** The pod's namespace, which the caller disposes; undefined when it is not there (yet, or any more). */
  find(podUid: string): Netns | undefined;
}

/** Finds namespaces in a directory of files that are named by pod UID (bind mounts of the namespaces). */
export function directoryFinder(directory: string): NetnsFinder {
  return {
    find: (uid) => (/^[\w-]+$/.test(uid) ? openIfNetns(join(directory, uid)) : undefined),
  };
}

/**
 * Finds namespaces by the processes of a pod: its UID stands in their cgroup's path (with `-` or `_`). The oldest process decides;
 * processes in the namespace of the node itself do not count. `procDirectory` is another `/proc` in tests.
 */
export function procFinder(procDirectory = "/proc"): NetnsFinder {
  return {
    find: (uid) => {
      const node = namespaceKey(`${procDirectory}/self/ns/net`);
      const candidates = processesOf(procDirectory, uid).toSorted((a, b) => a.startTicks - b.startTicks);
      for (const { pid } of candidates) {
        const path = `${procDirectory}/${pid}/ns/net`;
        if (namespaceKey(path) !== node) return openIfNetns(path);
      }
      return undefined;
    },
  };
}

/** Opens a namespace; undefined when the path is not one: a mere file stands there before the namespace is mounted on it. */
export function openIfNetns(path: string): Netns | undefined {
  try {
    if (statSync(path).dev !== statSync("/proc/self/ns/net").dev) return undefined;
    return openNetns(path);
  } catch {
    return undefined;
  }
}

function namespaceKey(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path);
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

function processesOf(procDirectory: string, uid: string): { pid: number; startTicks: number }[] {
  const forms = [uid, uid.replaceAll("-", "_")];
  return readdirSync(procDirectory)
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      const cgroup = readIfThere(`${procDirectory}/${name}/cgroup`);
      if (uid === "" || !forms.some((form) => cgroup.includes(form))) return [];
      return [{ pid: Number(name), startTicks: startTicksOf(readIfThere(`${procDirectory}/${name}/stat`)) }];
    });
}

/** Field 22 of `/proc/PID/stat`; the name before it is in brackets and may hold anything. */
function startTicksOf(stat: string): number {
  const afterName = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(afterName[19] ?? Number.POSITIVE_INFINITY);
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // the process has ended
  }
}
