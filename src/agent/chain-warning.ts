import type { InstallerOptions } from "#cni";
import { writeWarning, type EventTools } from "./warning-event.ts";

/** Says on the node, as a Kubernetes event, that the CNI plugin is not run there, and why. */
export function chainWarning(tools: EventTools): NonNullable<InstallerOptions["onProblem"]> {
  return ({ code, reason }) => {
    const { node } = tools;
    const text = `the CNI plugin cannot be put into the node's configuration: ${reason} (${code}). What was there stays in force; new pods are enrolled after their start where the plugin was never chained. It is tried on`;
    const name = `veil-cni.${node}.${code.toLowerCase().replaceAll("_", "-")}`;
    const object = { name: node, uid: node }; // by which kubectl finds events of a node
    void writeWarning(tools, { name, kind: "Node", object, reason: "VeilCniNotChained", text });
  };
}
