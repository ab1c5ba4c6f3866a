import { defineErrors } from "#base/errors";

/** Makes the failures of this component. */
export const fail = defineErrors("controller", {
  CONTROLLER_LISTEN: {
    when: "the metrics port is taken",
    hint: "stop the process that holds it, or choose another with --metrics-listen",
  },
});
