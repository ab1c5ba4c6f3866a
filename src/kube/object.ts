/**
 * A type of @kubernetes/client-node as it is on the wire: dates are strings, and names that its generator had to
 * escape (`_continue`) read as JSON has them (`continue`).
 */
export type Wire<T> = T extends Date
  ? string
  : T extends readonly (infer Item)[]
    ? Wire<Item>[]
    : T extends object
      ? { [Key in keyof T as Key extends `_${infer Plain}` ? Plain : Key]: Wire<T[Key]> }
      : T;

/** The metadata that every object has. Timestamps are RFC 3339 text. */
export interface ObjectMeta {
  name?: string;
  generateName?: string;
  namespace?: string;
  uid?: string;
  resourceVersion?: string;
  generation?: number;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  deletionGracePeriodSeconds?: number;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  finalizers?: string[];
  ownerReferences?: {
    apiVersion: string;
    kind: string;
    name: string;
    uid: string;
    controller?: boolean;
    blockOwnerDeletion?: boolean;
  }[];
}

/** What all kinds share. */
export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata?: ObjectMeta;
}

/** Where a kind is served; `T` is the type of its objects. */
export interface ResourceRef<T extends KubeObject = KubeObject> {
  /** `""` for the core group. */
  readonly group: string;
  readonly version: string;
  readonly plural: string;
  readonly kind: string;
  readonly namespaced: boolean;
  /** Carries the type only; never set. */
  readonly __object?: T;
}

/** Makes a reference; for kinds that {@link ./resources.ts} does not list, such as custom resources. */
export function resourceRef<T extends KubeObject>(ref: Omit<ResourceRef<T>, "__object">): ResourceRef<T> {
  return ref;
}

/** `group/version`, or `v1` for the core group. */
export function apiVersionOf(ref: ResourceRef): string {
  return ref.group === "" ? ref.version : `${ref.group}/${ref.version}`;
}

/** `namespace/name`, or `name` for objects of the cluster: the key of an object within its kind. */
export function objectKey(object: KubeObject): string {
  const { name = "", namespace } = object.metadata ?? {};
  return namespace === undefined || namespace === "" ? name : `${namespace}/${name}`;
}

/** Where an object, or a collection when `name` is left out, is served, from `/api` or `/apis` on. Parts are escaped. */
export function resourcePath(
  ref: ResourceRef,
  at: { namespace?: string | undefined; name?: string | undefined; subresource?: string | undefined } = {},
): string {
  const parts = ref.group === "" ? ["api", ref.version] : ["apis", ref.group, ref.version];
  if (ref.namespaced && at.namespace !== undefined && at.namespace !== "") parts.push("namespaces", at.namespace);
  parts.push(ref.plural);
  if (at.name !== undefined) parts.push(at.name);
  if (at.subresource !== undefined) parts.push(...at.subresource.split("/"));
  return `/${parts.map(encodeURIComponent).join("/")}`;
}
