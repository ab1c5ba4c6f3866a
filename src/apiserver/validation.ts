import { invalidValue, required, type Cause } from "./status.ts";
import { labelKeyProblem, labelValueProblem } from "./selectors.ts";
import { isRecord, type KubeObject } from "./object.ts";

const DNS_LABEL = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const DNS_SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const PATH_SEGMENT = /^(?!\.{1,2}$)[^/%]+$/;
const MAX_ANNOTATION_BYTES = 256 * 1024;

/** How the names of a resource must look. */
type NameForm = "label" | "subdomain" | "path";

const FORMS: Readonly<Record<string, NameForm>> = {
  namespaces: "label",
  services: "label",
  "roles.rbac.authorization.k8s.io": "path",
  "rolebindings.rbac.authorization.k8s.io": "path",
  "clusterroles.rbac.authorization.k8s.io": "path",
  "clusterrolebindings.rbac.authorization.k8s.io": "path",
};

/** Why text cannot be the name of an object of this resource; undefined when it can. */
function nameProblem(resource: string, name: string): string | undefined {
  const form = FORMS[resource] ?? "subdomain";
  if (form === "path")
    return PATH_SEGMENT.test(name) ? undefined : "may not be '.' or '..' and may not contain '/' or '%'";
  if (form === "label") {
    return DNS_LABEL.test(name)
      ? undefined
      : "a lowercase RFC 1123 label must consist of at most 63 lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
  }
  return name.length <= 253 && DNS_SUBDOMAIN.test(name)
    ? undefined
    : "a lowercase RFC 1123 subdomain must consist of at most 253 lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
}

/** True for a DNS label of at most 63 characters. */
export function isDnsLabel(text: string): boolean {
  return DNS_LABEL.test(text);
}

/** What is said of a number that is no port. */
export const PORT_RANGE = "must be between 1 and 65535, inclusive";

/** True for 1 to 65535. */
export function isPort(value: number | undefined): boolean {
  return value !== undefined && value >= 1 && value <= 65_535;
}

/** Checks names, labels, annotations, finalizers and owners. */
export function validateMeta(object: Readonly<KubeObject>, resource: string): readonly Cause[] {
  const { metadata } = object;
  const causes: Cause[] = [...validateLabels(metadata.labels, "metadata.labels")];
  const problem = nameProblem(resource, metadata.name);
  if (problem !== undefined) causes.push(invalidValue("metadata.name", metadata.name, problem));
  causes.push(...validateAnnotations(metadata.annotations ?? {}));
  for (const finalizer of metadata.finalizers ?? []) {
    const wrong = labelKeyProblem(finalizer);
    if (wrong !== undefined) causes.push(invalidValue("metadata.finalizers", finalizer, wrong));
  }
  for (const [index, owner] of (metadata.ownerReferences ?? []).entries()) {
    for (const field of ["apiVersion", "kind", "name", "uid"] as const) {
      if (!owner[field]) causes.push(required(`metadata.ownerReferences[${index}].${field}`));
    }
  }
  return causes;
}

function validateAnnotations(annotations: Readonly<Record<string, string>>): readonly Cause[] {
  const causes: Cause[] = [];
  let bytes = 0;
  for (const [key, value] of Object.entries(annotations)) {
    const wrong = labelKeyProblem(key.toLowerCase());
    if (wrong !== undefined) causes.push(invalidValue("metadata.annotations", key, wrong));
    bytes += key.length + value.length;
  }
  if (bytes > MAX_ANNOTATION_BYTES) {
    causes.push(invalidValue("metadata.annotations", bytes, `must have at most ${MAX_ANNOTATION_BYTES} bytes`));
  }
  return causes;
}

/** Checks the keys and values of labels at `field`. */
export function validateLabels(labels: unknown, field: string): readonly Cause[] {
  const causes: Cause[] = [];
  if (!isRecord(labels)) return causes;
  for (const [key, value] of Object.entries(labels)) {
    const keyProblem = labelKeyProblem(key);
    if (keyProblem !== undefined) causes.push(invalidValue(field, key, keyProblem));
    const valueProblem = typeof value === "string" ? labelValueProblem(value) : "must be a string";
    if (valueProblem !== undefined) causes.push(invalidValue(field, value, valueProblem));
  }
  return causes;
}
