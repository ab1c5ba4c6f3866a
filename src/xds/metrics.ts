import { defineMetrics } from "#base/metrics";

/** The metrics of both ends of xDS. A process shows those that it uses. */
export const xdsMetrics = defineMetrics("xds", {
  istio_xds_connection_terminations_total: {
    kind: "counter",
    help: "The total number of completed connections to xds server.",
    labels: ["reason"],
  },
  istio_xds_message_total: { kind: "counter", help: "Total number of messages received.", labels: ["url"] },
  istio_xds_message_bytes_total: {
    kind: "counter",
    help: "Total number of bytes received in the resources of messages.",
    labels: ["url"],
  },
  veil_xds_rejected_resources_total: {
    kind: "counter",
    help: "Resources that this client received and refused.",
    labels: ["url"],
  },
  veil_xds_streams: { kind: "gauge", help: "Streams that are open at this server.", labels: [] },
  veil_xds_client_versions: {
    kind: "gauge",
    help: "Streams that are open at this server, by the version that their client says it has; none: it says none.",
    labels: ["version"],
  },
  veil_xds_sent_messages_total: { kind: "counter", help: "Responses that this server sent.", labels: ["url"] },
  veil_xds_sent_resources_total: {
    kind: "counter",
    help: "Resources and removals that this server sent.",
    labels: ["url"],
  },
  veil_xds_nacks_total: { kind: "counter", help: "Responses that clients refused in part or whole.", labels: ["url"] },
});
