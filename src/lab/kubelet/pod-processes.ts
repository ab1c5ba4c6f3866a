import type { Clock } from "#base/clock";
import { allPids, findProcess } from "../processes.ts";
import { killProcess } from "./container-process.ts";
import { findText } from "./pod-files.ts";

/** The variable that marks every process of a pod, however it got away from its container. */
export const POD_VARIABLE = "VEIL_POD";

/** The mark of a pod: of this state folder, since pods of other labs run on the same machine. */
export function podMark(state: string, uid: string): string {
  return `${state}:${uid}`;
}

/** Ends all processes that carry the mark of a pod of this state folder for which `condemned` says so. */
export async function killPodProcesses(
  state: string,
  condemned: (uid: string) => boolean,
  clock: Clock,
): Promise<void> {
  const prefix = `${POD_VARIABLE}=${podMark(state, "")}`;
  for (const pid of allPids()) {
    const environ = findText(`/proc/${pid}/environ`) ?? "";
    const mark = environ.split("\0").find((word) => word.startsWith(prefix));
    if (mark === undefined || !condemned(mark.slice(prefix.length))) continue;
    const found = findProcess(pid);
    if (found !== undefined) await killProcess(found, clock);
  }
}
