import { defineMetrics } from "#base/metrics";

/** What the CNI socket counts. */
export const cniMetrics = defineMetrics("cni", {
  veil_cni_requests_total: {
    kind: "counter",
    help: "Requests on the CNI socket by command (istio-cni's event is cmdadd) and outcome.",
    labels: ["command", "outcome"],
  },
});
