import { defineMetrics } from "#base/metrics";

/** Metrics of the authority. */
export const caMetrics = defineMetrics("ca", {
  veil_ca_certificates_issued_total: {
    kind: "counter",
    help: "Certificates issued, by kind (workload, server, intermediate).",
    labels: ["kind"],
  },
  veil_ca_requests_refused_total: {
    kind: "counter",
    help: "Certificate requests refused, by error code.",
    labels: ["code"],
  },
  veil_ca_certificate_end_seconds: {
    kind: "gauge",
    help: "End of life of the authority's own certificates, seconds since the epoch.",
    labels: ["certificate"],
  },
  veil_ca_maintenance_failures_total: {
    kind: "counter",
    help: "Failed attempts to renew the intermediate or to read the authority's keys again.",
    labels: [],
  },
});
