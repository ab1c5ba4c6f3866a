import { createClient, type Transport } from "@connectrpc/connect";
import { CodedError, messageOf } from "#base/errors";
import { REDIRECTION_ANNOTATION } from "#model/redirection";
import type { Announcer, PodFacts } from "#enrolment";
import { isKubeError, resources, type KubeClient } from "#kube";
import { Propagation } from "#proto";
import { agentError } from "./errors.ts";

/** How long the controller may take to tell that all nodes know; it is asked again then. */
const CONFIRM_MS = 5000;

/** Announces enrolment by the pod's annotation, and asks the controller whether everybody knows. */
export function kubeAnnouncer(options: {
  readonly client: Pick<KubeClient, "patch">;
  readonly controller: Transport;
  readonly clusterId: string;
}): Announcer {
  const { client, controller, clusterId } = options;
  const propagation = createClient(Propagation, controller);
  return {
    async announce(pod, enrolled, signal) {
      const { name, namespace, uid } = pod;
      const annotations = { [REDIRECTION_ANNOTATION]: enrolled ? "enabled" : null };
      const body = { metadata: { uid, annotations } }; // the UID makes it fail for a successor of the same name
      try {
        await client.patch(resources.pods, { name, namespace, signal }, { type: "merge", body });
      } catch (error) {
        if (!isKubeError(error, "KUBE_NOT_FOUND") && !isKubeError(error, "KUBE_CONFLICT")) throw error;
      }
    },
    async confirmPlain(pod, signal) {
      try {
        const request = { uid: workloadUid(clusterId, pod), hbone: false, timeoutMs: CONFIRM_MS };
        return (await propagation.await(request, { signal, timeoutMs: 2 * CONFIRM_MS })).nodesBehind;
      } catch (cause) {
        if (cause instanceof CodedError) throw cause;
        throw agentError("AGENT_NO_CONTROLLER", `the controller cannot confirm: ${messageOf(cause)}`, { cause });
      }
    },
  };
}

/** The name of a pod's workload in xDS. */
export function workloadUid(clusterId: string, pod: Pick<PodFacts, "name" | "namespace">): string {
  return `${clusterId}//Pod/${pod.namespace}/${pod.name}`;
}
