import { explain } from "#base/errors";
import type { EnrolmentTools } from "#enrolment";
import { writeWarning, type EventTools } from "./warning-event.ts";

/** Says on a pod, as a Kubernetes event, that it should be enrolled and is not, why, and that a restart lets the CNI plugin do it. */
export function stuckWarning(tools: EventTools): NonNullable<EnrolmentTools["onStuck"]> {
  return (pod, failure) => {
    const why = explain(failure).replaceAll(/\s*\n\s*/g, "; ");
    const text = `not enrolled yet, its connections are not protected: ${why}. It is tried on; a pod that is started anew is enrolled before its first process runs`;
    const name = `veil-stuck.${pod.uid}.${failure.code.toLowerCase().replaceAll("_", "-")}`;
    void writeWarning(tools, { name, kind: "Pod", object: pod, reason: "VeilNotEnrolled", text });
  };
}
