import { defineErrors } from "#base/errors";

/** Makes the failures of this component. */
export const fail = defineErrors("xds", {
  XDS_NO_ANSWER: {
    when: "nobody answered a question for one resource in time",
    hint: "see whether the agent of this node and the controller run and are connected",
  },
  XDS_REJECTED: {
    when: "the resource that answers a question could not be accepted",
    hint: "the reason is in the message; correct the named object",
  },
  XDS_TOO_MANY_LOOKUPS: {
    when: "more than 4096 questions for single resources wait for their answers",
    hint: "look for a workload that scans the cluster's addresses",
  },
  XDS_UNKNOWN_TYPE: { when: "a resource type was asked for that this client does not follow", hint: "report this" },
  XDS_RESOURCE_TYPE: {
    when: "a resource in a response is missing or of another type than the response",
    hint: "check the version of the control plane",
  },
  XDS_RESOURCE_NAME: { when: "a resource in a response has no name", hint: "check the version of the control plane" },
});
