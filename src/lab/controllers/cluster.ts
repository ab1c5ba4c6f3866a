import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import {
  objectKey,
  type DaemonSet,
  type Deployment,
  type EndpointSlice,
  type Informer,
  type KubeClient,
  type KubeObject,
  type Lease,
  type Node,
  type Pod,
  type ReplicaSet,
  type Service,
} from "#kube";

/** What the controllers share: live copies of all that they look at. */
export interface Cluster {
  readonly client: KubeClient;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly pods: Informer<Pod>;
  readonly nodes: Informer<Node>;
  readonly services: Informer<Service>;
  readonly slices: Informer<EndpointSlice>;
  readonly deployments: Informer<Deployment>;
  readonly replicaSets: Informer<ReplicaSet>;
  readonly daemonSets: Informer<DaemonSet>;
  readonly leases: Informer<Lease>;
}

/** One controller: wires itself to the informers, and stops when asked. */
export interface Controller {
  stop(): void;
}

/** Splits `namespace/name`. */
export function splitKey(key: string): { namespace: string; name: string } {
  const slash = key.indexOf("/");
  return { namespace: key.slice(0, Math.max(0, slash)), name: key.slice(slash + 1) };
}

/** `namespace/name` of the object of `kind` that controls this one; undefined when there is none. */
export function ownerKey(object: KubeObject, kind: string): string | undefined {
  const owner = object.metadata?.ownerReferences?.find((reference) => reference.controller === true);
  if (owner?.kind !== kind) return undefined;
  return objectKey({ metadata: { name: owner.name, namespace: object.metadata?.namespace ?? "" } });
}

/** True when `object` is controlled by the object with this UID. */
export function isOwnedBy(object: KubeObject, uid: string | undefined): boolean {
  return object.metadata?.ownerReferences?.some((one) => one.controller === true && one.uid === uid) ?? false;
}

/** The reference by which an object names the one that controls it. */
export function controllerReference(
  owner: KubeObject,
): NonNullable<NonNullable<KubeObject["metadata"]>["ownerReferences"]> {
  const { apiVersion = "", kind = "", metadata = {} } = owner;
  const { name = "", uid = "" } = metadata;
  return [{ apiVersion, kind, name, uid, controller: true, blockOwnerDeletion: true }];
}

type Selector = { matchLabels?: Record<string, string>; matchExpressions?: SelectorTerm[] };
type SelectorTerm = { key: string; operator: string; values?: string[] };

/** True when labels meet a selector. An empty selector meets everything, an undefined one nothing. */
export function meetsSelector(selector: Selector | undefined, labels: Readonly<Record<string, string>>): boolean {
  if (selector === undefined) return false;
  const equal = Object.entries(selector.matchLabels ?? {}).every(([key, value]) => labels[key] === value);
  return equal && (selector.matchExpressions ?? []).every((term) => meetsTerm(term, labels[term.key]));
}

function meetsTerm({ operator, values = [] }: SelectorTerm, value: string | undefined): boolean {
  switch (operator) {
    case "In":
      return value !== undefined && values.includes(value);
    case "NotIn":
      return value === undefined || !values.includes(value);
    case "Exists":
      return value !== undefined;
    case "DoesNotExist":
      return value === undefined;
    default:
      return false; // an operator of a later Kubernetes: select nothing rather than everything
  }
}

/** True when a pod counts for whoever made it: not ended, not about to be deleted. */
export function isActive(pod: Pod): boolean {
  const { phase } = pod.status ?? {};
  return phase !== "Succeeded" && phase !== "Failed" && pod.metadata?.deletionTimestamp === undefined;
}

/** True when the node's Ready condition says so and pods may be put there. */
export function isUsableNode(node: Node): boolean {
  const ready = node.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
  return ready && node.spec?.unschedulable !== true && node.metadata?.deletionTimestamp === undefined;
}

/** True when two JSON values are equal, whatever the order of their fields. */
export function sameJson(a: unknown, b: unknown): boolean {
  return sortedJson(a) === sortedJson(b);
}

/** JSON text with fields in alphabetical order. */
export function sortedJson(value: unknown): string {
  return JSON.stringify(value, (_key, item: unknown) =>
    typeof item === "object" && item !== null && !Array.isArray(item)
      ? Object.fromEntries(Object.entries(item).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : item,
  );
}
