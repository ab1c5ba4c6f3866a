import { apiVersionOf, type Kind } from "./kinds.ts";
import { copyOf, isRecord, sameJson, type KubeObject } from "./object.ts";
import { badRequest } from "./status.ts";

const ORPHAN = "orphan";
const FOREGROUND = "foregroundDeletion";

/** Puts an object that is created where the request says. Throws 400 when the object says otherwise. */
export function placeInNamespace(kind: Kind, object: KubeObject, namespace: string): void {
  const given = object.metadata.namespace ?? "";
  if (kind.namespaced && given !== "" && given !== namespace) {
    throw badRequest(
      `the namespace of the provided object does not match the namespace sent on the request: metadata.namespace is "${given}", the request says "${namespace}"`,
    );
  }
  if (!kind.namespaced && given !== "") {
    throw badRequest(`metadata.namespace must be empty for ${kind.kind}, which is not namespaced`);
  }
  if (kind.namespaced) object.metadata.namespace = namespace;
  else delete object.metadata.namespace;
}

/** Writes how dependents are to be treated into the finalizers. */
export function setPolicy(object: KubeObject, policy: "Background" | "Foreground" | "Orphan"): void {
  const finalizers = new Set(object.metadata.finalizers ?? []);
  finalizers.delete(ORPHAN);
  finalizers.delete(FOREGROUND);
  if (policy === "Orphan") finalizers.add(ORPHAN);
  if (policy === "Foreground") finalizers.add(FOREGROUND);
  if (finalizers.size > 0) object.metadata.finalizers = [...finalizers];
  else delete object.metadata.finalizers;
}

/** Nothing holds a marked object any more. */
export function isFree(object: KubeObject): boolean {
  const { finalizers, deletionGracePeriodSeconds } = object.metadata;
  const own = object.kind === "Namespace" && isRecord(object["spec"]) ? object["spec"]["finalizers"] : [];
  const held = Array.isArray(own) && own.length > 0;
  return (finalizers ?? []).length === 0 && (deletionGracePeriodSeconds ?? 0) === 0 && !held;
}

/** The object under the version that the request uses. Changes it. */
export function asVersion(object: KubeObject, kind: Kind): KubeObject {
  object.apiVersion = apiVersionOf(kind);
  return object;
}

/** Takes a field back to what it was. */
export function restore(object: KubeObject, old: Readonly<KubeObject>, field: string): void {
  if (old[field] === undefined) delete object[field];
  else object[field] = copyOf(old[field]);
}

/** What nobody may change through an update. */
export function keepMeta(object: KubeObject, old: Readonly<KubeObject>): void {
  const { metadata } = object;
  const before = old.metadata;
  metadata.name = before.name;
  metadata.uid = before.uid;
  if (before.namespace === undefined) delete metadata.namespace;
  else metadata.namespace = before.namespace;
  for (const field of ["creationTimestamp", "deletionTimestamp", "generateName", "resourceVersion"] as const) {
    if (before[field] === undefined) delete metadata[field];
    else metadata[field] = before[field];
  }
  for (const field of ["generation", "deletionGracePeriodSeconds"] as const) {
    if (before[field] === undefined) delete metadata[field];
    else metadata[field] = before[field];
  }
}

/** Only server-side apply writes them; anybody may drop them all. */
export function keepManagedFields(object: KubeObject, old: Readonly<KubeObject>): void {
  if (object.metadata.managedFields?.length === 0) return;
  if (old.metadata.managedFields === undefined) delete object.metadata.managedFields;
  else object.metadata.managedFields = copyOf(old.metadata.managedFields);
}

/** True when what the generation counts has changed: everything but metadata and status. */
export function specChanged(object: Readonly<KubeObject>, old: Readonly<KubeObject>): boolean {
  if (old.metadata.generation === undefined) return false;
  const strip = (one: Readonly<KubeObject>): unknown => ({
    ...one,
    metadata: undefined,
    status: undefined,
    apiVersion: undefined,
  });
  return !sameJson(strip(object), strip(old));
}
