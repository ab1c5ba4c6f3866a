import { probePorts, type PodFacts } from "#enrolment";
import type { Pod } from "#kube";

/** What enrolment wants to know of a pod of the API. */
export function podFacts(pod: Pod): PodFacts {
  const { uid = "", name = "", namespace = "default", labels = {}, annotations = {} } = pod.metadata ?? {};
  const { serviceAccountName = "default", hostNetwork = false } = pod.spec ?? {};
  const phase = pod.status?.phase ?? "Pending";
  const account = { serviceAccount: serviceAccountName, hostNetwork, phase };
  return { uid, name, namespace, ...account, labels, annotations, probePorts: probePorts(pod) };
}
