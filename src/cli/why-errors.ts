import { defineErrors } from "#base/errors";

/** Failures of `veil why`. */
export const whyError = defineErrors("why", {
  WHY_POD: {
    when: "`veil why` was asked about a pod that it cannot find or read",
    hint: "name pods as kubectl get pods -A shows them: NAMESPACE/POD, and NAMESPACE/POD:PORT for the destination",
  },
});
