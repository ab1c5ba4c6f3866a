import { isLive } from "#discovery";
import { PROBE_SOURCES, probePorts } from "#enrolment";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";
import type { NetworkPolicy } from "./kinds.ts";
import { admits, coversPort, policyPod, rulesFor, type PolicyRule } from "./policy-match.ts";
import type { JudgedPod } from "./pods.ts";

const voice = voiceOf("network policies");
/** The label `k8s-app` of network plugins that judge packets at the pod's interface, where probes have Veil's source. */
const JUDGE_AT_POD: ReadonlySet<string> = new Set(["cilium", "aws-node"]);

/**
 * Finds enrolled pods whose kubelet's probes their NetworkPolicies hold back. Network plugins let the node itself reach its pods; those
 * that judge at the pod's interface see the probes' own source (docs/adr/0085-probes-have-a-source-of-their-own.md) instead.
 */
export function checkProbes(policies: readonly NetworkPolicy[], pods: readonly JudgedPod[]): readonly Finding[] {
  if (!pods.some(({ pod, labels }) => isLive(pod) && JUDGE_AT_POD.has(labels["k8s-app"] ?? ""))) return [];
  const held = pods.filter((one) => one.eligibility.eligible && isHeld(one, policies)).map(({ name }) => name);
  if (held.length === 0) return [];
  return [
    voice.problem(
      `NetworkPolicies keep the kubelet's probes from ${count(held.length, "enrolled pod")}, as their source is ${PROBE_SOURCES.v4}: ${someOf(held)}`,
      `let ipBlock ${PROBE_SOURCES.v4}/32 (IPv6: ${PROBE_SOURCES.v6}/128) in on the probes' ports (docs/platforms.md)`,
    ),
  ];
}

function isHeld({ pod }: JudgedPod, policies: readonly NetworkPolicy[]): boolean {
  const server = policyPod(pod, {});
  const rules = rulesFor(server, policies, "ingress");
  if (rules === undefined) return false;
  const kubelet = { ...server, ips: [pod.status?.podIP?.includes(":") === true ? PROBE_SOURCES.v6 : PROBE_SOURCES.v4] };
  const lets = (port: number): boolean =>
    rules.some((rule) => admits(byAddress(rule), kubelet) && coversPort(rule, port, server));
  return !probePorts(pod).every(lets);
}

/** Selectors mean pods; the node is none. */
function byAddress(rule: PolicyRule): PolicyRule {
  return { ...rule, peers: rule.peers?.filter(({ ipBlock }) => ipBlock !== undefined) };
}
