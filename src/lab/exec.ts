import { spawn } from "node:child_process";
import { resources } from "#kube";
import { labError } from "./errors.ts";
import { labClient } from "./install.ts";
import { enterNode } from "./node-namespaces.ts";
import { findNode } from "./up.ts";
import type { LabContext } from "./down.ts";
import { findPodProcesses } from "./veil-processes.ts";

/**
 * The words that run a command at a place of the lab: `nodeK`, or `namespace/pod`. In a pod it sees what the pod's
 * processes see: network, mounts, hostname. Throws `LAB_NOT_UP` or `LAB_NO_SUCH_PLACE`.
 */
export async function enterPlace(context: Pick<LabContext, "lab" | "clock">, place: string): Promise<string[]> {
  const [namespace = "", name] = place.split("/");
  if (name === undefined) return enterNode(findNode(context.lab, place));
  const client = await labClient(context);
  try {
    const pod = await client.find(resources.pods, { namespace, name });
    if (pod === undefined) throw labError("LAB_NO_SUCH_PLACE", `lab ${context.lab.name} has no pod ${place}`);
    const [pid] = findPodProcesses(context.lab, pod.metadata?.uid ?? "");
    if (pid === undefined) throw labError("LAB_NO_SUCH_PLACE", `no process of pod ${place} runs`);
    return ["nsenter", `--target=${pid}`, "--net", "--mount", "--uts", "--"];
  } finally {
    client.close();
  }
}

/** Runs a command at a place of the lab with this process's terminal; resolves with its exit code. */
export async function runAtPlace(context: LabContext, place: string, command: readonly string[]): Promise<number> {
  const words = command[0] === "--" ? command.slice(1) : command;
  const [program = "", ...args] = [...(await enterPlace(context, place)), ...words];
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: "inherit" });
    child.once("error", reject);
    child.once("exit", (code, signal) => resolve(code ?? (signal === "SIGINT" ? 130 : 1)));
  });
}
