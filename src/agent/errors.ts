import { defineErrors } from "#base/errors";

/** Failures of the agent as a whole; those of its parts are in their components. */
export const agentError = defineErrors("agent", {
  AGENT_ROOT_FILE: {
    when: "the root of the port for another ztunnel cannot be written",
    hint: "make room on that disk or choose another file with --root-file; --ztunnel-listen none does without it",
  },
  AGENT_NO_ROOTS: {
    when: "the roots that the controller's certificate is checked with are not known yet",
    hint: "none during installation; later look for ConfigMap veil-ca-root-cert in Veil's namespace, and at the controller that publishes it",
  },
  AGENT_NO_TOKEN: {
    when: "the file with the agent's own token cannot be read",
    hint: "check --token-file, and that the pod mounts a service account token of audience istio-ca",
  },
  AGENT_NO_CONTROLLER: {
    when: "the controller cannot be asked whether all nodes know that a pod is plain",
    hint: "look at the controller; the pod stays enrolled until it can be asked",
  },
});
