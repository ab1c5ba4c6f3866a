import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { sleep, systemClock } from "#base/clock";
import { run } from "../netns/harness.ts";
import { clusterCgroups, clusterProcesses, removeCgroups } from "./cgroups.ts";
import { FOLDER, HOST_LINK, NETNS_FOLDER, NETNS_PREFIX } from "./layout.ts";

const clock = systemClock();
const KILL_DEADLINE_MS = 20_000;
const POLL_MS = 20;

/**
 * Removes everything of a test cluster, however much of it there is and whoever was killed while making or removing it.
 * Only for who holds the cluster's lock. Fails with what could not be removed.
 */
export async function removeCluster(): Promise<void> {
  await killProcesses(() => clusterProcesses());
  for (const netns of clusterNetns()) await run(["ip", "netns", "delete", netns]);
  await run(["ip", "link", "delete", HOST_LINK]);
  for (let mounts = 0; mounts < 8 && isMounted(); mounts++) await run(["umount", "-l", FOLDER]);
  if (!isMounted()) rmSync(FOLDER, { recursive: true, force: true });
  // The kernel takes a moment to see that a cgroup's processes have ended.
  const endMs = clock.monotonic() + KILL_DEADLINE_MS;
  for (removeCgroups(); clusterCgroups().length > 0 && clock.monotonic() < endMs; removeCgroups()) {
    await sleep(clock, POLL_MS);
  }
  assert.deepEqual(leftoversOfCluster(), [], "the test cluster is not gone");
}

/** What is there of a cluster on this machine; empty when it is gone. */
export function leftoversOfCluster(): string[] {
  return [
    ...clusterProcesses().map((pid) => `process ${pid}`),
    ...clusterNetns().map((netns) => `network namespace ${netns}`),
    ...clusterCgroups().map((folder) => `cgroup ${folder}`),
    ...(existsSync(`/sys/class/net/${HOST_LINK}`) ? [`link ${HOST_LINK}`] : []),
    ...(existsSync(FOLDER) ? [`folder ${FOLDER}`] : []),
  ];
}

/** Kills with SIGKILL until `find` finds nothing; gives up after a while, and then says which are left. */
export async function killProcesses(find: () => number[]): Promise<void> {
  const endMs = clock.monotonic() + KILL_DEADLINE_MS;
  for (;;) {
    const pids = find();
    if (pids.length === 0) return;
    assert.ok(clock.monotonic() < endMs, `processes ${pids.join(", ")} do not end`);
    for (const pid of pids) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // it has ended
      }
    }
    await sleep(clock, POLL_MS);
  }
}

function clusterNetns(): string[] {
  return existsSync(NETNS_FOLDER) ? readdirSync(NETNS_FOLDER).filter((name) => name.startsWith(NETNS_PREFIX)) : [];
}

function isMounted(): boolean {
  return readFileSync("/proc/self/mountinfo", "utf8").includes(` ${FOLDER} `);
}
