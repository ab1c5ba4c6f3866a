import type { Rules } from "../kinds.ts";
import { defaultTo, ensureRecord, recordAt, textAt, valueAt } from "../object.ts";
import { forbiddenValue, type Cause } from "../status.ts";

/** The label by which every namespace can be selected. */
const NAME_LABEL = "kubernetes.io/metadata.name";
const FINALIZER = "kubernetes";

export const namespaceRules: Rules = {
  prepareCreate(namespace) {
    namespace.metadata.labels = { ...namespace.metadata.labels, [NAME_LABEL]: namespace.metadata.name };
    namespace["spec"] = { finalizers: [FINALIZER] };
    namespace["status"] = { phase: "Active" };
  },
  prepareUpdate(namespace, old, context) {
    namespace.metadata.labels = { ...namespace.metadata.labels, [NAME_LABEL]: namespace.metadata.name };
    if (context.subresource !== "finalize") namespace["spec"] = old["spec"];
    if (namespace.metadata.deletionTimestamp !== undefined) ensureRecord(namespace, "status")["phase"] = "Terminating";
  },
};

export const nodeRules: Rules = {
  prepareCreate(node) {
    ensureRecord(node, "spec");
    ensureRecord(node, "status");
  },
  validate(node, old, context) {
    const causes: Cause[] = [];
    if (old === undefined || context.subresource !== "") return causes;
    const before = textAt(old, "spec", "podCIDR");
    if (before !== "" && textAt(node, "spec", "podCIDR") !== before) {
      causes.push(forbiddenValue("spec.podCIDR", 'node updates may not change podCIDR except from "" to valid'));
    }
    const provider = textAt(old, "spec", "providerID");
    if (provider !== "" && textAt(node, "spec", "providerID") !== provider) {
      causes.push(forbiddenValue("spec.providerID", 'node updates may not change providerID except from "" to valid'));
    }
    return causes;
  },
};

export const serviceAccountRules: Rules = {
  prepareCreate(account) {
    if (valueAt(account, "secrets") === undefined) return;
    defaultTo(recordAt(account), "secrets", []);
  },
};
