import type * as api from "@kubernetes/client-node"; // types only: loading that library costs 400 ms and 80 MB
import { resourceRef, type KubeObject, type ResourceRef, type Wire } from "./object.ts";

export type Pod = Wire<api.V1Pod>;
export type Container = Wire<api.V1Container>;
export type Namespace = Wire<api.V1Namespace>;
export type Node = Wire<api.V1Node>;
export type Service = Wire<api.V1Service>;
export type EndpointSlice = Wire<api.V1EndpointSlice>;
export type ConfigMap = Wire<api.V1ConfigMap>;
export type Secret = Wire<api.V1Secret>;
export type ServiceAccount = Wire<api.V1ServiceAccount>;
export type Deployment = Wire<api.V1Deployment>;
export type DaemonSet = Wire<api.V1DaemonSet>;
export type ReplicaSet = Wire<api.V1ReplicaSet>;
export type Lease = Wire<api.V1Lease>;
export type Event = Wire<api.CoreV1Event>;
export type CustomResourceDefinition = Wire<api.V1CustomResourceDefinition>;
export type Role = Wire<api.V1Role>;
export type RoleBinding = Wire<api.V1RoleBinding>;
export type ClusterRole = Wire<api.V1ClusterRole>;
export type ClusterRoleBinding = Wire<api.V1ClusterRoleBinding>;
export type PodTemplateSpec = Wire<api.V1PodTemplateSpec>;

function core<T extends KubeObject>(kind: string, plural: string, namespaced = true): ResourceRef<T> {
  return resourceRef<T>({ group: "", version: "v1", plural, kind, namespaced });
}

function apps<T extends KubeObject>(kind: string, plural: string): ResourceRef<T> {
  return resourceRef<T>({ group: "apps", version: "v1", plural, kind, namespaced: true });
}

function rbac<T extends KubeObject>(kind: string, plural: string, namespaced: boolean): ResourceRef<T> {
  return resourceRef<T>({ group: "rbac.authorization.k8s.io", version: "v1", plural, kind, namespaced });
}

/** The built-in kinds that Veil works with. */
export const resources = {
  pods: core<Pod>("Pod", "pods"),
  namespaces: core<Namespace>("Namespace", "namespaces", false),
  nodes: core<Node>("Node", "nodes", false),
  services: core<Service>("Service", "services"),
  configMaps: core<ConfigMap>("ConfigMap", "configmaps"),
  secrets: core<Secret>("Secret", "secrets"),
  serviceAccounts: core<ServiceAccount>("ServiceAccount", "serviceaccounts"),
  events: core<Event>("Event", "events"),
  endpointSlices: resourceRef<EndpointSlice>({
    group: "discovery.k8s.io",
    version: "v1",
    plural: "endpointslices",
    kind: "EndpointSlice",
    namespaced: true,
  }),
  deployments: apps<Deployment>("Deployment", "deployments"),
  daemonSets: apps<DaemonSet>("DaemonSet", "daemonsets"),
  replicaSets: apps<ReplicaSet>("ReplicaSet", "replicasets"),
  leases: resourceRef<Lease>({
    group: "coordination.k8s.io",
    version: "v1",
    plural: "leases",
    kind: "Lease",
    namespaced: true,
  }),
  customResourceDefinitions: resourceRef<CustomResourceDefinition>({
    group: "apiextensions.k8s.io",
    version: "v1",
    plural: "customresourcedefinitions",
    kind: "CustomResourceDefinition",
    namespaced: false,
  }),
  roles: rbac<Role>("Role", "roles", true),
  roleBindings: rbac<RoleBinding>("RoleBinding", "rolebindings", true),
  clusterRoles: rbac<ClusterRole>("ClusterRole", "clusterroles", false),
  clusterRoleBindings: rbac<ClusterRoleBinding>("ClusterRoleBinding", "clusterrolebindings", false),
} as const;
