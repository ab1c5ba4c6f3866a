import { defineMetrics } from "#base/metrics";

/** The controller's own metrics. */
export const controllerMetrics = defineMetrics("controller", {
  veil_controller_resources: {
    kind: "gauge",
    help: "Workloads and services that are published.",
    labels: [],
  },
  veil_controller_policies: {
    kind: "gauge",
    help: "Policies that are published.",
    labels: [],
  },
  veil_controller_publications_total: {
    kind: "counter",
    help: "Batches of changes that were published.",
    labels: [],
  },
  veil_controller_published_changes_total: {
    kind: "counter",
    help: "Workloads, services and policies that were published or withdrawn.",
    labels: [],
  },
  veil_controller_object_problems_total: {
    kind: "counter",
    help: "Parts of Kubernetes objects that could not be used.",
    labels: [],
  },
  veil_controller_api_connected: {
    kind: "gauge",
    help: "1 while all watches of the Kubernetes API are alive.",
    labels: [],
  },
  veil_controller_neighbours: {
    kind: "gauge",
    help: "1 while another that enrols or encrypts is on the cluster, by its name.",
    labels: ["name"],
  },
  veil_controller_leading: {
    kind: "gauge",
    help: "1 while this replica holds the Lease and writes what one replica alone writes.",
    labels: [],
  },
  veil_controller_trust_bundles_written_total: {
    kind: "counter",
    help: "ConfigMaps with the trust bundle that were created or corrected.",
    labels: [],
  },
  veil_controller_trust_bundle_failures_total: {
    kind: "counter",
    help: "Failed attempts to write a trust bundle; each is tried again.",
    labels: [],
  },
  veil_controller_awaits_total: {
    kind: "counter",
    help: "Questions whether all nodes know a workload's state, by result (all, behind).",
    labels: ["result"],
  },
});
