import { defineMetrics } from "#base/metrics";

/** What enrolment counts. */
export const enrolmentMetrics = defineMetrics("enrolment", {
  veil_enrolment_pods: { kind: "gauge", help: "Pods of this node by state of enrolment.", labels: ["state"] },
  veil_enrolment_failures_total: {
    kind: "counter",
    help: "Steps of enrolment or un-enrolment that failed and are tried again, by code.",
    labels: ["code"],
  },
  veil_enrolment_seconds_total: {
    kind: "counter",
    help: "Seconds from the wish to the announcement of all pods that were enrolled.",
    labels: [],
  },
  veil_enrolment_enrolled_total: { kind: "counter", help: "Pods that were enrolled.", labels: [] },
  veil_zds_connections: { kind: "gauge", help: "Proxies connected to the ZDS socket.", labels: [] },
});
