import { defineErrors } from "#base/errors";

/** Makes the failures of this component. */
export const fail = defineErrors("controller", {
  CONTROLLER_LISTEN: {
    when: "the metrics port is taken",
    hint: "stop the process that holds it, or choose another with --metrics-listen",
  },
  CONTROLLER_ADDRESS: {
    when: "an address to listen on cannot be read",
    hint: "write host:port, for example 0.0.0.0:15012",
  },
});
