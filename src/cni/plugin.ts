import { CodedError, errorTables, messageOf } from "#base/errors";
import { cniError } from "./errors.ts";
import { CNI_VERSIONS, decodePluginRequest, type CniPod, type PluginRequest } from "./request.ts";

/** What the plugin needs of the agent. */
export interface PluginHost {
  /** Resolves when the pod may start; a rejection keeps it from starting. */
  add(pod: CniPod & { readonly netnsPath: string }, signal: AbortSignal): Promise<unknown>;
  /** Resolves when all is in place that the pod's labels ask for. */
  check(pod: CniPod): Promise<void>;
  /** What is not ready yet; empty when everything is. */
  pending(): readonly string[];
}

/** What the plugin prints, and whether it ends well. */
export interface PluginAnswer {
  readonly command: string;
  readonly text: string;
  /** Why it does not; undefined when it ends well. */
  readonly failure: CodedError | undefined;
}

/** Codes of the CNI specification 1.1, section 5, for ours; others are {@link OTHER_FAILURE}. */
const NUMBERS: Readonly<Record<string, number>> = {
  CNI_VERSION: 1,
  CNI_ENVIRONMENT: 4,
  CNI_INPUT: 6,
  CNI_REQUEST: 6,
  CNI_NOT_CHAINED: 7,
  CNI_BUSY: 11,
  ENROLMENT_CNI_TIMEOUT: 11,
  ENROLMENT_CNI_UNKNOWN_POD: 11,
  CNI_NOT_READY: 50,
};
/** The first number that is a plugin's own. */
const OTHER_FAILURE = 100;

/**
 * Does what the container runtime asks. Never rejects: a failure is an answer.
 *
 * - ADD: waits until the pod may start, then passes on the result of the plugins before.
 * - CHECK: whether a pod that is to be enrolled is.
 * - DEL, GC: nothing is left on the node: a pod's rules go with its namespace, and the API tells which pods have ended.
 * - STATUS: fails only where no pod could start without us (strict): a node whose STATUS fails is made NotReady, and then emptied.
 */
export async function answerPlugin(body: string, host: PluginHost, signal: AbortSignal): Promise<PluginAnswer> {
  let request: PluginRequest | undefined;
  try {
    request = decodePluginRequest(body);
    return { command: request.command, text: await act(request, host, signal), failure: undefined };
  } catch (error) {
    const failure = error instanceof CodedError ? error : new CodedError("CNI_UNEXPECTED", messageOf(error));
    return { command: request?.command ?? "unknown", text: failureText(failure, request?.cniVersion), failure };
  }
}

/** The error that a plugin prints (CNI specification 1.1, section 5), with what to do in its details. */
export function failureText(failure: CodedError, cniVersion = CNI_VERSIONS.at(-1)): string {
  const hint = [...errorTables.values()].map((table) => table[failure.code]?.hint).find((found) => found !== undefined);
  return JSON.stringify({
    cniVersion,
    code: NUMBERS[failure.code] ?? OTHER_FAILURE,
    msg: `${failure.code}: ${messageOf(failure)}`,
    details: hint ?? "",
  });
}

async function act(request: PluginRequest, host: PluginHost, signal: AbortSignal): Promise<string> {
  const { command, pod, netnsPath, strict, cniVersion, prevResult } = request;
  if (command === "STATUS" && strict && host.pending().length > 0) {
    throw cniError("CNI_NOT_READY", `the agent waits for ${host.pending().join(", ")}`);
  }
  if (command === "CHECK" && pod !== undefined) await host.check(pod);
  if (command !== "ADD") return "";
  if (pod !== undefined) await host.add({ ...pod, netnsPath }, signal);
  return JSON.stringify({ ...prevResult, cniVersion });
}
