import { defineErrors } from "#base/errors";

/** Failures of the demo. */
export const demoError = defineErrors("demo", {
  DEMO_KUBECTL: {
    when: "kubectl answered with an error during the demo",
    hint: "the message carries kubectl's own words; `veil lab status --name demo` shows what of the lab is not well",
  },
  DEMO_WAIT: {
    when: "something that the demo waits for did not happen in time",
    hint: "look at the named object with `veil kubectl` while the lab is kept (`veil demo --keep`), or into `veil lab status`",
  },
  DEMO_NOT_PROVEN: {
    when: "the capture or the records did not show what the demo claims",
    hint: "the table names the check that failed; `veil demo --keep` leaves the lab running to look closer",
  },
});
