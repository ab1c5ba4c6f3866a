import type { Pod } from "./resources.ts";

/** True when the pod's Ready condition says so. */
export function isReadyPod(pod: Pod): boolean {
  return pod.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
}
