import type { Rules } from "../kinds.ts";
import { definitionRules } from "./definitions.ts";
import { namespaceRules, nodeRules, serviceAccountRules } from "./cluster.ts";
import { configMapRules, eventRules, leaseRules, secretRules, sliceRules } from "./data.ts";
import { podRules } from "./pods.ts";
import { bindingRules, roleRules } from "./rbac.ts";
import { serviceRules } from "./services.ts";
import { daemonSetRules, deploymentRules, replicaSetRules } from "./workloads.ts";

/** What is special about the built-in kinds, by resource. */
export const BUILTIN_RULES: Readonly<Record<string, Rules>> = {
  pods: podRules,
  namespaces: namespaceRules,
  nodes: nodeRules,
  services: serviceRules,
  serviceaccounts: serviceAccountRules,
  configmaps: configMapRules,
  secrets: secretRules,
  events: eventRules,
  "deployments.apps": deploymentRules,
  "daemonsets.apps": daemonSetRules,
  "replicasets.apps": replicaSetRules,
  "leases.coordination.k8s.io": leaseRules,
  "endpointslices.discovery.k8s.io": sliceRules,
  "customresourcedefinitions.apiextensions.k8s.io": definitionRules,
  "roles.rbac.authorization.k8s.io": roleRules,
  "clusterroles.rbac.authorization.k8s.io": roleRules,
  "rolebindings.rbac.authorization.k8s.io": bindingRules,
  "clusterrolebindings.rbac.authorization.k8s.io": bindingRules,
};
