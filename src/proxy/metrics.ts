import { defineMetrics } from "#base/metrics";

const PEER_LABELS = [
  "workload",
  "canonical_service",
  "canonical_revision",
  "workload_namespace",
  "principal",
  "app",
  "version",
  "cluster",
] as const;

/** The labels that every traffic metric carries, as upstream's proxies write them. */
const TRAFFIC_LABELS: readonly string[] = [
  "reporter",
  ...PEER_LABELS.map((label) => `source_${label}`),
  ...PEER_LABELS.map((label) => `destination_${label}`),
  "destination_service",
  "destination_service_namespace",
  "destination_service_name",
  "request_protocol",
  "response_flags",
  "connection_security_policy",
];

const traffic = (help: string) => ({ kind: "counter", help, labels: TRAFFIC_LABELS }) as const;
const counter = (help: string, labels: readonly string[] = []) => ({ kind: "counter", help, labels }) as const;
const gauge = (help: string, labels: readonly string[] = []) => ({ kind: "gauge", help, labels }) as const;

/** The proxy's metrics; names and labels of `istio_*` and `workload_manager_*` are upstream's. */
export const proxyMetrics = defineMetrics("proxy", {
  istio_tcp_connections_opened_total: traffic("Connections that were forwarded."),
  istio_tcp_connections_closed_total: traffic("Forwarded connections that have ended."),
  istio_tcp_connections_failed_total: traffic("Connections that were refused; response_flags says why."),
  istio_tcp_sent_bytes_total: traffic("Bytes from the destination to the source, counted while they flow."),
  istio_tcp_received_bytes_total: traffic("Bytes from the source to the destination, counted while they flow."),
  istio_tcp_sockets_open: gauge("Connections that are open now.", ["reporter"]),
  istio_on_demand_dns_total: counter("Hostnames of workloads without an address that were looked up."),
  istio_crl_policy_rejections_total: counter(
    "Peers that were refused, and sessions that were ended, because of a revocation list.",
    ["reporter"],
  ),
  istio_crl_untracked_connections_total: counter(
    "Sessions that cannot be ended by a revocation list: no path could be found in what the peer presented.",
    ["reporter"],
  ),
  istio_build: gauge("The running version.", ["component", "tag"]),
  workload_manager_active_proxy_count: gauge("Pods that are served."),
  workload_manager_pending_proxy_count: gauge("Pods that wait for their listeners or their certificate."),
  workload_manager_proxies_started_total: counter("Pods that were taken over since the start."),
  workload_manager_proxies_stopped_total: counter("Pods that were given up since the start."),
  process_open_fds: gauge("Descriptors that are open."),
  process_max_fds: gauge("Descriptors that may be open."),
  process_cpu_seconds_total: counter("Processor time of all threads, seconds."),
  process_resident_memory_bytes: gauge("Resident memory."),
  veil_proxy_refused_total: counter("Connections that were refused, by reason.", ["direction", "reason"]),
  veil_proxy_plaintext_total: counter("Connections that were forwarded in clear, by reason.", ["direction", "reason"]),
  veil_proxy_dry_run_total: counter(
    "Connections for which policies in dry run would have decided otherwise, by what they would have done (allow, deny).",
    ["result"],
  ),
  veil_proxy_held_connections: gauge(
    "Connections that wait for an answer about their destination or for a certificate.",
  ),
  veil_proxy_records_dropped_total: counter("Access records that were dropped because nobody read them fast enough."),
  veil_proxy_tunnels_rejected_total: counter("Sessions that were refused before a tunnel was asked for.", ["code"]),
  veil_proxy_drained_total: counter("Connections that were reset because the time of a drain was over.", ["direction"]),
  veil_proxy_settings_refused_total: counter(
    "Settings of pods' network namespaces that could not be made; docs/upgrade.md says what each is for.",
    ["setting"],
  ),
  veil_proxy_addresses: gauge("Workloads and services that this node knows."),
});
