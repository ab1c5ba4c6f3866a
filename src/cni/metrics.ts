import { defineMetrics } from "#base/metrics";

/** What the CNI socket counts. */
export const cniMetrics = defineMetrics("cni", {
  veil_cni_requests_total: {
    kind: "counter",
    help: "Requests on the CNI socket by command (istio-cni's event is cmdadd) and outcome.",
    labels: ["command", "outcome"],
  },
  veil_cni_chained: { kind: "gauge", help: "1 while the plugin is in the node's CNI configuration.", labels: [] },
  veil_cni_repairs_total: {
    kind: "counter",
    help: "Times the plugin's list was written: the first time, and when something had changed it or its source.",
    labels: [],
  },
});
