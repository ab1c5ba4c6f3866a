import { defineErrors } from "#base/errors";

/** Failures of the CNI socket and of what comes over it. */
export const cniError = defineErrors("cni", {
  CNI_LISTEN: {
    when: "the CNI socket cannot be served",
    hint: "stop the other agent of this node, or choose another path with --cni-socket",
  },
  CNI_REQUEST: {
    when: "a request on the CNI socket is malformed",
    hint: "check the version of the CNI plugin that sends it",
  },
  CNI_BUSY: {
    when: "too many pods start or end at once on this node",
    hint: "none: the container runtime asks again",
  },
  CNI_ENVIRONMENT: {
    when: "a CNI variable that the command needs is missing or malformed",
    hint: "look at the container runtime: the message names the variable",
  },
  CNI_INPUT: {
    when: "the configuration that the container runtime gave to the plugin is not readable",
    hint: "look at the node's CNI configuration and the container runtime; the message names the field",
  },
  CNI_VERSION: {
    when: "the node's CNI configuration has a version that the plugin does not speak",
    hint: "the plugin speaks 0.3.0 to 1.1.0: change cniVersion of the node's CNI configuration",
  },
  CNI_NOT_CHAINED: {
    when: "the plugin was run without the result of another plugin",
    hint: "veil-cni makes no interfaces: put it last in a list of plugins",
  },
  CNI_NOT_READY: {
    when: "the agent is not ready to enrol pods",
    hint: "the message names what it waits for; look at its log",
  },
  CNI_NO_CONFIG: {
    when: "there is no CNI configuration on the node",
    hint: "install a network plugin (or wait until it has written its configuration), or check --cni-conf-dir",
  },
  CNI_REMOVED: {
    when: "Veil leaves the cluster: its plugin was taken off the node",
    hint: "none; where it is to stay: kubectl annotate daemonset veil-agent veil.dev/leave-",
  },
  CNI_CONFIG_INVALID: {
    when: "the node's first CNI configuration is not one",
    hint: "mend the named file: the container runtime cannot use it either; nothing is changed until then",
  },
  CNI_CONFIG_VERSION: {
    when: "the node's first CNI configuration has a version that the plugin does not speak",
    hint: "the plugin speaks 0.3.0 to 1.1.0: change cniVersion in the named file; nothing is changed until then",
  },
  CNI_FOLDER: {
    when: "a folder of the node's CNI configuration or plugins cannot be read or written",
    hint: "check --cni-conf-dir and --cni-bin-dir, that the pod mounts both from its node, and that they are not read-only",
  },
});
