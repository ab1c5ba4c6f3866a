import { defineMetrics } from "#base/metrics";

/** Metrics of the node's certificates. */
export const identityMetrics = defineMetrics("identity", {
  veil_identity_certificates: {
    kind: "gauge",
    help: "Identities held for the pods of this node, by state (ready, pending, failed).",
    labels: ["state"],
  },
  veil_identity_fetches_total: {
    kind: "counter",
    help: "Certificates asked for, by result (ok, or the error code).",
    labels: ["result"],
  },
  veil_identity_earliest_end_seconds: {
    kind: "gauge",
    help: "When the first of the certificates at hand ends, seconds since the epoch; 0 when there is none.",
    labels: [],
  },
});
