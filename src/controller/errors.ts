import { defineErrors } from "#base/errors";

/** Failures of the controller itself. */
export const controllerError = defineErrors("controller", {
  CONTROLLER_NOT_LEADING: {
    when: "a replica of the controller was about to write something that is its leader's to write",
    hint: "nothing: the replica that holds the Lease veil-controller writes it; look there if that does not happen",
  },
});
