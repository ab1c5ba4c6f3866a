import { defineErrors } from "#base/errors";

/** Failures of making the objects of an installation. */
export const installError = defineErrors("install", {
  INSTALL_VALUE: {
    when: "a value of the installation is unknown, has the wrong type or is out of its range",
    hint: "see deploy/chart/values.yaml for all values and what they may be",
  },
  INSTALL_CONTRADICTION: {
    when: "two values of the installation contradict each other",
    hint: "change one of the two that the message names",
  },
});
