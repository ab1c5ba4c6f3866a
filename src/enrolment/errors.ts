import { defineErrors } from "#base/errors";

/** Failures of enrolment. */
export const enrolmentError = defineErrors("enrolment", {
  ENROLMENT_NOT_ROOT: {
    when: "the agent is not root",
    hint: "run it as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN as user 0 of its container",
  },
  ENROLMENT_KERNEL: {
    when: "nft or the kernel cannot do what redirection needs",
    hint: "install nftables; the kernel needs nf_tables with inet, nat, redirect and ct (modules nft_redir, nft_nat, nft_ct)",
  },
  ENROLMENT_ZDS_MESSAGE: {
    when: "the proxy sent a ZDS message that is malformed, out of order or of another version",
    hint: "check that the program connected to the ZDS socket is a proxy that speaks ZDS version 1",
  },
  ENROLMENT_ZDS_TIMEOUT: {
    when: "the proxy did not answer a ZDS message in time",
    hint: "look at the proxy's log and load; it is asked again",
  },
  ENROLMENT_ZDS_CLOSED: {
    when: "the proxy closed its ZDS connection while it was asked something",
    hint: "look at the proxy's log; everything is sent again when it comes back",
  },
  ENROLMENT_PROXY_REFUSED: {
    when: "the proxy cannot serve a pod",
    hint: "the message carries the proxy's own words; it is asked again",
  },
  ENROLMENT_NO_NETNS: {
    when: "the network namespace of a pod cannot be found",
    hint: "if the pod runs, check --pod-netns-dir, or that the agent sees the node's /proc",
  },
  ENROLMENT_NO_CONTROLLER: {
    when: "a running pod is to be enrolled while the controller cannot be reached",
    hint: "look at the controller; the pod stays as it is until then",
  },
  ENROLMENT_BEHIND: {
    when: "nodes have not confirmed in time that a pod is plain again",
    hint: "look at the named nodes' agents and proxies; the pod stays enrolled until they have, or until the bound has passed",
  },
  ENROLMENT_UNEXPECTED: {
    when: "a step of enrolment failed in a way that has no code of its own",
    hint: "the message carries the cause; the step is tried again",
  },
  ENROLMENT_CNI_UNKNOWN_POD: {
    when: "the API does not know the pod that the CNI plugin announces",
    hint: "none when the pod was deleted meanwhile; otherwise look at the connection to the API",
  },
  ENROLMENT_NOT_IN_PLACE: {
    when: "a pod that is to be enrolled is not, or its rules are not there any more",
    hint: "look at the agent's log for this pod; restart the pod if something else has removed its rules",
  },
  ENROLMENT_CNI_TIMEOUT: {
    when: "a new pod could not be enrolled in time, and must not start",
    hint: "the message carries the last failure; the container runtime asks again",
  },
});
