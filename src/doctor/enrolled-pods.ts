import { misreadLabels } from "#enrolment";
import type { Event, Namespace } from "#kube";
import { DATAPLANE_MODE_LABEL, MTLS_LABEL } from "#model/enrol-labels";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";
import { isRunning, type JudgedPod } from "./pods.ts";

const voice = voiceOf("enrolment");
/** An agent that is there needs moments; a network plugin and a slow node, more. */
const GRACE_MS = 60_000;
/** Why a pod whose labels ask for it is left alone. */
const LEFT_ALONE: Readonly<Record<string, string>> = {
  host_network: "uses its node's network",
  sidecar: "has a sidecar of its own",
  namespace_excluded: "is in a namespace that is never enrolled",
};

/** Whether the pods are as their labels ask: those that are not enrolled, cannot start, or cannot be enrolled. */
export function checkEnrolment(
  { pods, namespaces }: { readonly pods: readonly JudgedPod[]; readonly namespaces: readonly Namespace[] },
  events: readonly Event[],
  nowMs: number,
): readonly Finding[] {
  const late = pods.filter((one) => isLate(one, nowMs));
  const wanted = late.filter(({ eligibility }) => eligibility.eligible);
  const findings = [
    ...wanted.filter((one) => isRunning(one) && !one.enrolled).map((one) => notEnrolled(one, events)),
    ...wanted.filter((one) => isHeld(one)).map(heldBack),
    ...late.filter((one) => isRunning(one) && one.enrolled && !one.eligibility.eligible).map(stillEnrolled),
    ...checkLabels(pods, namespaces),
  ];
  if (findings.length > 0) return findings;
  const enrolled = pods.filter((one) => isRunning(one) && one.eligibility.eligible);
  return [
    voice.ok(
      enrolled.length === 0
        ? "no running pod's labels ask for it; label a namespace with io.cilium/mtls-enabled=true"
        : `${count(enrolled.length, "running pod")} enrolled, as labels ask`,
    ),
  ];
}

function isLate({ pod }: JudgedPod, nowMs: number): boolean {
  const started = Date.parse(pod.status?.startTime ?? pod.metadata?.creationTimestamp ?? "");
  return !(nowMs - started < GRACE_MS);
}

/** On a node, and none of its containers has begun: the CNI plugin, for one, lets it wait. */
function isHeld({ pod, node }: JudgedPod): boolean {
  return pod.status?.phase === "Pending" && node !== "" && (pod.status.podIPs ?? []).length === 0;
}

function notEnrolled({ pod, name, node }: JudgedPod, events: readonly Event[]): Finding {
  const told = events.find(
    ({ reason, involvedObject }) => reason === "VeilNotEnrolled" && involvedObject.uid === pod.metadata?.uid,
  );
  const why = told?.message ?? `its labels ask for it, and the agent of ${node} has not done it`;
  return voice.problem(
    `pod ${name} is not enrolled, its connections are not protected: ${why}`,
    `look whether the agent of ${node} is ready; then restart the pod (kubectl rollout restart of what made it): it starts enrolled`,
  );
}

function heldBack({ name, node }: JudgedPod): Finding {
  return voice.problem(
    `pod ${name} waits on ${node} for its network`,
    `kubectl describe pod: the message of veil-cni, if it is that, says what it waits for; look at the agent of ${node}`,
  );
}

function stillEnrolled({ name, node }: JudgedPod): Finding {
  return voice.warning(
    `pod ${name} is enrolled, and its labels do not ask for it any more`,
    `nothing, while its connections end; otherwise look at the agent of ${node}`,
  );
}

/** Labels that somebody thinks enrol, and do not. */
function checkLabels(pods: readonly JudgedPod[], namespaces: readonly Namespace[]): Finding[] {
  const misread = [
    ...namespaces.map(
      ({ metadata }) => [`namespace ${metadata?.name}`, misreadLabels(metadata?.labels ?? {})] as const,
    ),
    ...pods.map(({ name, labels }) => [`pod ${name}`, misreadLabels(labels)] as const),
  ].filter(([, labels]) => labels.length > 0);
  const unread = misread.map(([about, labels]) =>
    voice.warning(
      `${about} has a label that enrols nothing: ${labels.join(", ")}`,
      "write one of the values it can be",
    ),
  );
  return [...unread, ...Object.entries(LEFT_ALONE).flatMap(([reason, why]) => leftAlone(pods, reason, why))];
}

function leftAlone(pods: readonly JudgedPod[], reason: string, why: string): Finding[] {
  const asking = pods.filter(
    ({ eligibility, labels }) =>
      eligibility.reason === reason && (labels[DATAPLANE_MODE_LABEL] === "ambient" || labels[MTLS_LABEL] === "true"),
  );
  if (asking.length === 0) return [];
  const names = someOf(asking.map(({ name }) => name));
  return [
    voice.warning(
      `${count(asking.length, "pod")} with a label that asks for it cannot be enrolled, as it ${why}: ${names}`,
      "take the label away, or what stands against it",
    ),
  ];
}
