import type { Attributes } from "./authorizer.ts";
import type { Admission } from "./engine.ts";
import { resourceOf } from "./kinds.ts";
import { listAt, recordAt, sameJson, textAt, valueAt, type KubeObject } from "./object.ts";
import { forbidden } from "./status.ts";
import type { Store } from "./store.ts";
import { nodeOf, type User } from "./user.ts";

const LEASE_NAMESPACE = "kube-node-lease";
const WRITE_OWN = new Set(["get", "create", "update", "patch", "delete"]);
const READ = new Set(["get", "list", "watch"]);
const RESTRICTED_LABEL = "node-restriction.kubernetes.io/";

/**
 * What a node's credentials may do beyond RBAC: only what is the node's own. Its Node and lease, the pods that are bound
 * to it and their status, tokens bound to those pods, events; Secrets and ConfigMaps only those that its pods use.
 */
export class NodeAuthorizer {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** True when this is a node and the request is about what is its own. */
  allows(user: User, wanted: Attributes): boolean {
    const node = nodeOf(user);
    if (node === undefined) return false;
    switch (`${wanted.resource}.${wanted.group}`.replace(/\.$/, "")) {
      case "nodes":
      case "nodes/status":
        return this.#allowsNode(node, wanted);
      case "pods":
        return this.#allowsPods(node, wanted);
      case "pods/status":
        return ["get", "update", "patch"].includes(wanted.verb) && this.#runs(node, wanted);
      case "leases.coordination.k8s.io":
        return WRITE_OWN.has(wanted.verb) && wanted.namespace === LEASE_NAMESPACE && (wanted.name === node || wanted.verb === "create");
      case "events":
        return ["create", "update", "patch"].includes(wanted.verb);
      case "secrets":
      case "configmaps":
        return READ.has(wanted.verb) && this.#uses(node, wanted);
      case "serviceaccounts":
        return wanted.verb === "get" && this.#hasAccount(node, wanted);
      case "serviceaccounts/token":
        return wanted.verb === "create" && this.#hasAccount(node, wanted);
      case "tokenreviews.authentication.k8s.io":
      case "subjectaccessreviews.authorization.k8s.io":
        return wanted.verb === "create";
      default:
        return false;
    }
  }

  /** Refuses, while writing, what the request alone did not show: other nodes' objects in the body, labels, tokens of other pods. */
  readonly admit: Admission = ({ verb, kind, object, old, context }) => {
    const node = nodeOf(context.user);
    if (node === undefined) return;
    const subject = { resource: kind.plural, group: kind.group, name: object.metadata.name };
    const refuse = (why: string): never => {
      throw forbidden(subject, `node "${node}" ${why}`);
    };
    switch (resourceOf(kind)) {
      case "nodes":
        if (object.metadata.name !== node) refuse("may only change its own Node");
        if (old !== undefined && restrictedLabels(object) !== restrictedLabels(old)) refuse(`may not change labels with the prefix ${RESTRICTED_LABEL}`);
        if (old === undefined && restrictedLabels(object) !== "{}") refuse(`may not set labels with the prefix ${RESTRICTED_LABEL}`);
        if (old !== undefined && verb === "update" && !sameJson(valueAt(object, "spec", "taints"), valueAt(old, "spec", "taints"))) refuse("may not change its taints");
        break;
      case "pods":
        if (textAt(old ?? object, "spec", "nodeName") !== node) refuse("may only change pods that are bound to it");
        if (verb === "create") refuse("may not create pods");
        break;
      case "leases.coordination.k8s.io":
        if (object.metadata.name !== node) refuse("may only change its own lease");
        break;
      case "events":
        if (!this.#isOwnEvent(node, object)) refuse("may only report what happens on it");
        break;
      default:
    }
  };

  /** A token that a node asks for must be bound to a pod that runs there under that account. */
  allowsToken(user: User, namespace: string, review: Readonly<Record<string, unknown>>): boolean {
    const node = nodeOf(user);
    if (node === undefined) return true;
    const reference = valueAt(review, "spec", "boundObjectRef");
    if (textAt(reference, "kind") !== "Pod") return false;
    const pod = this.#store.get({ resource: "pods", namespace, name: textAt(reference, "name") });
    return pod !== undefined && textAt(reference, "uid") === pod.object.metadata.uid && textAt(pod.object, "spec", "nodeName") === node;
  }

  #allowsNode(node: string, wanted: Attributes): boolean {
    if (wanted.verb === "create") return wanted.resource === "nodes";
    if (wanted.verb === "list" || wanted.verb === "watch") return selects(wanted, "metadata.name", node);
    return WRITE_OWN.has(wanted.verb) && wanted.name === node;
  }

  #allowsPods(node: string, wanted: Attributes): boolean {
    if (wanted.verb === "list" || wanted.verb === "watch") return selects(wanted, "spec.nodeName", node);
    return ["get", "delete"].includes(wanted.verb) && this.#runs(node, wanted);
  }

  #runs(node: string, wanted: Attributes): boolean {
    const pod = this.#store.get({ resource: "pods", namespace: wanted.namespace, name: wanted.name });
    return pod !== undefined && textAt(pod.object, "spec", "nodeName") === node;
  }

  #podsOf(node: string, namespace: string): readonly Readonly<KubeObject>[] {
    return this.#store
      .list("pods", namespace)
      .map(({ object }) => object)
      .filter((pod) => textAt(pod, "spec", "nodeName") === node);
  }

  #hasAccount(node: string, wanted: Attributes): boolean {
    return this.#podsOf(node, wanted.namespace).some((pod) => textAt(pod, "spec", "serviceAccountName") === wanted.name);
  }

  #uses(node: string, wanted: Attributes): boolean {
    const name = wanted.name || selected(wanted, "metadata.name");
    if (name === "" || wanted.namespace === "") return false;
    return this.#podsOf(node, wanted.namespace).some((pod) => references(pod, wanted.resource === "secrets").has(name));
  }

  #isOwnEvent(node: string, event: Readonly<KubeObject>): boolean {
    const host = textAt(event, "source", "host");
    return host === "" || host === node;
  }
}

function selected(wanted: Attributes, field: string): string {
  const parts = wanted.fieldSelector.split(",").map((part) => /^([^=!]+)==?(.+)$/.exec(part));
  return parts.find((match) => match?.[1] === field)?.[2] ?? "";
}

function selects(wanted: Attributes, field: string, value: string): boolean {
  return selected(wanted, field) === value;
}

function restrictedLabels(object: Readonly<KubeObject>): string {
  const labels = Object.entries(object.metadata.labels ?? {}).filter(([key]) => key.includes(RESTRICTED_LABEL));
  return JSON.stringify(Object.fromEntries(labels.toSorted(([a], [b]) => (a < b ? -1 : 1))));
}

/** The Secrets or ConfigMaps that a pod names: volumes, projections, environment, image pull secrets. */
function references(pod: Readonly<KubeObject>, secrets: boolean): Set<string> {
  const names = new Set<string>();
  const spec = recordAt(pod, "spec");
  const [volume, nameField, key, from] = secrets
    ? (["secret", "secretName", "secretKeyRef", "secretRef"] as const)
    : (["configMap", "name", "configMapKeyRef", "configMapRef"] as const);
  for (const one of listAt(spec, "volumes")) {
    names.add(textAt(one, volume, nameField));
    for (const source of listAt(one, "projected", "sources")) names.add(textAt(source, volume, "name"));
  }
  for (const container of [...listAt(spec, "initContainers"), ...listAt(spec, "containers")]) {
    for (const env of listAt(container, "env")) names.add(textAt(env, "valueFrom", key, "name"));
    for (const source of listAt(container, "envFrom")) names.add(textAt(source, from, "name"));
  }
  if (secrets) for (const secret of listAt(spec, "imagePullSecrets")) names.add(textAt(secret, "name"));
  names.delete("");
  return names;
}
