import { defineMetrics } from "#base/metrics";

const LABELS = [
  "request_query_type",
  "request_protocol",
  "source_canonical_service",
  "source_canonical_revision",
] as const;

/** Upstream's names and labels (zt src/dns/metrics.rs). */
export const dnsMetrics = defineMetrics("dns", {
  istio_dns_requests_total: { kind: "counter", help: "DNS questions of enrolled pods.", labels: LABELS },
  istio_dns_upstream_requests_total: {
    kind: "counter",
    help: "Questions that were forwarded to the nameservers.",
    labels: LABELS,
  },
  istio_dns_upstream_failures_total: {
    kind: "counter",
    help: "Forwarded questions that no nameserver answered.",
    labels: LABELS,
  },
  istio_dns_upstream_request_duration_seconds: {
    kind: "histogram",
    help: "How long nameservers took to answer.",
    labels: LABELS,
    buckets: [0.0005, 0.001, 0.01, 0.1, 1, 5],
  },
});
