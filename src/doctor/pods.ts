import { decideEligibility, heededLabels, type Eligibility, type PodFacts } from "#enrolment";
import type { Namespace, Pod } from "#kube";
import { ENROL_LABELS } from "#model/enrol-labels";
import { REDIRECTION_ANNOTATION } from "#model/redirection";

export type Labels = Readonly<Record<string, string>>;

/** A pod, and what Veil makes of it. */
export interface JudgedPod {
  readonly pod: Pod;
  /** `namespace/name`. */
  readonly name: string;
  readonly namespace: string;
  readonly node: string;
  readonly labels: Labels;
  readonly eligibility: Eligibility;
  /** Whether its agent has said that it is enrolled. */
  readonly enrolled: boolean;
}

/** How an installation judges pods. */
interface Judging {
  /** Labels that enrol. Default: all that Veil knows. */
  readonly enrolLabels?: readonly string[];
  /** Where Veil is installed. Default: `veil-system`. */
  readonly namespace?: string;
}

/** What each pod's and its namespace's labels ask for, of those labels that enrol. */
export function judgePods(
  pods: readonly Pod[],
  namespaces: readonly Namespace[],
  judging: Judging = {},
): readonly JudgedPod[] {
  const labelsOf = new Map(namespaces.map(({ metadata }) => [metadata?.name ?? "", metadata?.labels ?? {}]));
  return pods.map((pod) => judge(pod, labelsOf.get(pod.metadata?.namespace ?? "") ?? {}, judging));
}

function judge(pod: Pod, namespaceLabels: Labels, { enrolLabels = ENROL_LABELS, namespace: own }: Judging): JudgedPod {
  const facts = factsOf(pod);
  const { namespace, labels, annotations } = facts;
  return {
    pod,
    name: `${namespace}/${facts.name}`,
    namespace,
    node: pod.spec?.nodeName ?? "",
    labels,
    eligibility: decideEligibility(
      { ...facts, labels: heededLabels(labels, enrolLabels) },
      heededLabels(namespaceLabels, enrolLabels),
      own,
    ),
    enrolled: annotations[REDIRECTION_ANNOTATION] === "enabled",
  };
}

function factsOf({ metadata, spec, status }: Pod): PodFacts {
  const { name = "", namespace = "", uid = "", labels = {}, annotations = {} } = metadata ?? {};
  return {
    uid,
    name,
    namespace,
    serviceAccount: spec?.serviceAccountName ?? "default",
    hostNetwork: spec?.hostNetwork === true,
    phase: status?.phase ?? "",
    labels,
    annotations,
  };
}

/** Whether a pod has begun and not ended. */
export function isRunning({ pod }: JudgedPod): boolean {
  return pod.status?.phase === "Running" && pod.metadata?.deletionTimestamp === undefined;
}
