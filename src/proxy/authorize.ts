import type { FlowReason } from "#model/flow";
import { describeDecision, type Decision, type DryRun, type PolicyQuestion, type PolicyRequest } from "#policy";
import type { LocalPod, View } from "./route.ts";

/**
 * What the policies say of a connection to a pod.
 *
 * - `allowed`: with the `question` that is asked again when they change
 * - `ask`: policies apply to single workloads, and the control plane has not said which apply to this one, `name`
 */
export type Authorized =
  | { readonly kind: "allowed"; readonly question: PolicyQuestion; readonly dryRun: DryRun | undefined }
  | { readonly kind: "refused"; readonly reason: FlowReason; readonly detail: string }
  | { readonly kind: "ask"; readonly name: string };

/** Asks the policies that apply to `pod`. */
export function authorize(pod: LocalPod, request: PolicyRequest, { table, policies }: View): Authorized {
  const workload = table.findWorkload(pod.workloadUid);
  if (workload === undefined && policies.hasWorkloadScoped) return { kind: "ask", name: pod.workloadUid };
  const question = { ...request, namespace: pod.namespace, policyNames: workload?.authorizationPolicies ?? [] };
  const decision = policies.decide(question);
  if (decision.allowed) return { kind: "allowed", question, dryRun: decision.dryRun };
  return { kind: "refused", ...refusalCause(decision) };
}

/** Why a connection is refused, for its record. */
function refusalCause(decision: Decision): { readonly reason: FlowReason; readonly detail: string } {
  const reason = decision.reason === "unusable" ? "policy_not_enforced" : "policy_denied";
  return { reason, detail: explainDecision(decision) };
}

/** A decision in words, with what policies in dry run would have changed. */
export function explainDecision(decision: Decision): string {
  const dryRun = dryRunDetail(decision.dryRun);
  return dryRun === undefined ? describeDecision(decision) : `${describeDecision(decision)}; dry run: ${dryRun}`;
}

/** What policies in dry run would have changed, for a record; undefined when nothing. */
export function dryRunDetail(dryRun: DryRun | undefined): string | undefined {
  if (dryRun === undefined) return undefined;
  const by = dryRun.policy === undefined ? "no policy that allows matches" : `by ${dryRun.policy}`;
  return `would be ${dryRun.allowed ? "allowed" : "denied"}, ${by}`;
}
