import type { ObjectMeta } from "#kube";

/** What is the same for everything in a cluster. */
export interface Cluster {
  /** For example `Kubernetes`; the first part of workload uids. */
  readonly clusterId: string;
  /** The network that addresses of this cluster belong to; empty for the only one. */
  readonly network: string;
  readonly trustDomain: string;
  /** Domain of services, for example `cluster.local`. */
  readonly clusterDomain: string;
  /** Policies in this namespace are about the whole mesh. Default `istio-system`. */
  readonly rootNamespace?: string;
  /** Workloads behind a waypoint let in nobody but it, unless other policies allow more. Default: false, as istiod's. */
  readonly enforceWaypoints?: boolean;
}

/** A part of an object that could not be used; the rest of the object, or its last good state, stays in force. */
export interface Problem {
  /** Kind and name, for example `Pod shop/cart-1`. */
  readonly object: string;
  /** Path of the field. */
  readonly field: string;
  readonly message: string;
  /** The object itself, where its author is to be told on it. */
  readonly about?: { readonly apiVersion: string; readonly kind: string; readonly metadata: ObjectMeta };
}

/** The uid of a pod's workload. */
export function podUid(cluster: Cluster, namespace: string, name: string): string {
  return `${cluster.clusterId}//Pod/${namespace}/${name}`;
}

/** The uid of an endpoint that no pod stands behind. */
export function endpointUid(cluster: Cluster, slice: { namespace: string; name: string }, ip: string): string {
  return `${cluster.clusterId}/discovery.k8s.io/EndpointSlice/${slice.namespace}/${slice.name}/${ip}`;
}

/** The uid of a WorkloadEntry's workload. */
export function workloadEntryUid(cluster: Cluster, key: string): string {
  return `${cluster.clusterId}/networking.istio.io/WorkloadEntry/${key}`;
}

/** The uid of an endpoint that is written into a ServiceEntry. */
export function entryEndpointUid(cluster: Cluster, key: string, address: string): string {
  return `${cluster.clusterId}/networking.istio.io/ServiceEntry/${key}/${address}`;
}

/** The alias under which an address is asked for. */
export function addressAlias(network: string, ip: string): string {
  return `${network}/${ip}`;
}
