import { defineErrors } from "#base/errors";

/** Failures of the data path and of what feeds it. */
export const proxyError = defineErrors("proxy", {
  PROXY_NO_POD_DATA: {
    when: "a connection's original destination could not be read from the kernel",
    hint: "the connection did not come through the pod's redirection rules; look at nft list ruleset in the pod's namespace",
  },
  PROXY_LISTEN: {
    when: "a listener in a pod's network namespace could not be opened",
    hint: "something in the pod listens on 15001, 15006, 15008 or 15053 already, or the pod has ended; the agent tries again",
  },
  PROXY_NO_CERTIFICATE: {
    when: "no certificate came for a pod in time",
    hint: "look at the agent's log of this node: it fetches certificates from the controller",
  },
  PROXY_WRONG_TUNNEL_TARGET: {
    when: "a peer asked through a tunnel for something that is not this pod",
    hint: "the peer believes that this address is another pod, or it probes; its identity is in the record",
  },
  PROXY_SELF_CALL: {
    when: "a connection points at one of the proxy's own ports",
    hint: "15001, 15006 and 15008 belong to the proxy; nothing else may be dialled there",
  },
  PROXY_CONTROL_PLANE: {
    when: "nobody answered who a destination inside the cluster's ranges is",
    hint: "check that the agent of this node runs and reaches the controller; connections are refused until one answers",
  },
  PROXY_DRAINED: {
    when: "the proxy was told to stop before a connection had ended",
    hint: "raise --drain when connections need longer",
  },
  PROXY_POLICY_CHANGED: {
    when: "an authorization policy came, changed or went, and a running connection is not allowed any more",
    hint: "the record's detail names the policy; veil why explains which policies apply",
  },
  PROXY_LIMIT: {
    when: "a limit of the data path was reached",
    hint: "docs/limits.md lists the limits; the detail names the one",
  },
  PROXY_NO_FILES: {
    when: "a pod's connection is refused because the process is about to run out of file descriptors",
    hint: "raise the limit of open files (LimitNOFILE) of the proxy, or spread its pods; running connections go on",
  },
  PROXY_MEMORY: {
    when: "a new connection is refused because the proxy has used nearly all the memory that it may use",
    hint: "raise the memory limit of the proxy; running connections go on, and new ones are taken when a fifth is free again",
  },
  PROXY_LOG_STALLED: {
    when: "a new connection is refused because nobody reads the access log, and --records is required",
    hint: "look at whoever reads the proxy's standard output; running connections go on, and new ones are taken when it reads again",
  },
  PROXY_ZDS_MESSAGE: {
    when: "a message of the agent on the ZDS socket was malformed or out of order",
    hint: "agent and proxy may be of different versions; the connection is opened again",
  },
  PROXY_ZDS_UNKNOWN: {
    when: "the agent asked for something that this version of the proxy does not know",
    hint: "agent and proxy are of different versions: finish the upgrade; what the proxy knows goes on",
  },
  PROXY_ZDS_CONNECTION: {
    when: "the agent's ZDS socket cannot be reached or was closed",
    hint: "check that the agent of this node runs; pods that are served stay served",
  },
  PROXY_XDS_RESOURCE: {
    when: "a resource of the control plane was refused",
    hint: "the message names the resource and the field; what was there before stays in force",
  },
  PROXY_THREAD: {
    when: "a data thread ended or answered nothing",
    hint: "the process ends and its supervisor starts the next one; report the trace that the log shows",
  },
  PROXY_FLAG: {
    when: "an option of veil proxy is wrong",
    hint: "the message names the option; veil proxy --help shows all",
  },
});
