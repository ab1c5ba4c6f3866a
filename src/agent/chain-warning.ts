import { explain } from "#base/errors";
import type { InstallerOptions } from "#cni";
import { writeWarning, type EventTools } from "./warning-event.ts";

/** Says on the node, as a Kubernetes event, that the CNI plugin cannot be put there, why, and what to do. */
export function chainWarning(tools: EventTools): NonNullable<InstallerOptions["onProblem"]> {
  return (code, failure) => {
    const { node } = tools;
    const why = explain(failure).replaceAll(/\s*\n\s*/g, "; ");
    const text = `the CNI plugin cannot be put into the node's configuration: ${why}. What was there stays in force; new pods are enrolled after their start where the plugin was never chained. It is tried on`;
    const name = `veil-cni.${node}.${code.toLowerCase().replaceAll("_", "-")}`;
    const object = { name: node, uid: node }; // by which kubectl finds events of a node
    void writeWarning(tools, { name, kind: "Node", object, reason: "VeilCniNotChained", text });
  };
}
