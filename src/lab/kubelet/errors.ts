import { defineErrors } from "#base/errors";

/** Failures of the lab's kubelet. Those of one pod are told in its status and events; the rest goes on. */
export const kubeletError = defineErrors("kubelet", {
  KUBELET_NO_ADDRESS: {
    when: "all addresses of a node's pod range are in use",
    hint: "delete pods of that node, or give the lab more nodes",
  },
  KUBELET_NETWORK: {
    when: "the network of a pod could not be made",
    hint: "the message carries the words of ip; the pod is tried again by itself",
  },
  KUBELET_VOLUME: {
    when: "a volume of a pod could not be filled",
    hint: "create the Secret or ConfigMap that the message names, or mark it as optional; the pod is tried again by itself",
  },
  KUBELET_UNSUPPORTED: {
    when: "a pod asks for something that the lab's kubelet does not have",
    hint: "the message names the field; change it, or run the pod on a real cluster",
  },
  KUBELET_ENVIRONMENT: {
    when: "a variable of a container could not be resolved",
    hint: "create what the message names; the pod is tried again by itself",
  },
  KUBELET_ENROLMENT: {
    when: "a pod with an enrolment label had to start, and the agent of its node could not enrol it",
    hint: "look at the agent of that node (kubectl -n veil-system logs); the pod waits and is tried again by itself",
  },
  KUBELET_START: {
    when: "the process of a container could not be started",
    hint: "the message carries the system's words; check command, workingDir and volumeMounts",
  },
  KUBELET_PORT_FORWARD: {
    when: "a client that forwards ports sent something that is no SPDY/3.1, or a port could not be reached",
    hint: "the message says what; forward a port that the pod listens on, with kubectl or what speaks as it does",
  },
  KUBELET_STATE: {
    when: "a file of the kubelet's own state could not be read",
    hint: "delete the pod that the message names; it is made again",
  },
});
