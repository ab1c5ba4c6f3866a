export {
  CLUSTER_RULES,
  INSIDE_RULES,
  PLUGIN_ACCOUNT,
  PLUGIN_RULES,
  WIREGUARD_RULES,
  type AccessRule,
  type InstalledRole,
} from "./access.ts";
export { leave } from "./leave.ts";
export { NETWORKING_KINDS, POLICY_KINDS, WIREGUARD_KINDS } from "./kinds.ts";
export { installationTrees, installedKinds, renderInstallation } from "./objects.ts";
export { OWN_VERSION, TextOf, ValueAt, When, type Choice, type Condition, type Tree } from "./template.ts";
export { CONTRADICTIONS, VALUE_TABLE, type ValueSpec } from "./value-table.ts";
export { nested, readValues, type GivenValues } from "./values.ts";
export { INSTALLED } from "./workloads.ts";
