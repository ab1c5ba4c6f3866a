export { examineCluster, examineTunnels, type ClusterOptions } from "./cluster.ts";
export { exitCodeOf, type Finding } from "./finding.ts";
export { findingsAsJson, formatFindings } from "./report.ts";
export { examineNode, type NodeOptions } from "./node.ts";
