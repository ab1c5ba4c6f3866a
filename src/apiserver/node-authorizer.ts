import type { Attributes } from "./authorizer.ts";
import type { Admission } from "./engine.ts";
import { resourceOf } from "./kinds.ts";
import { isRecord, listAt, recordAt, sameJson, textAt, textsAt, valueAt, type KubeObject } from "./object.ts";
import { forbidden } from "./status.ts";
import type { Store } from "./store.ts";
import { nodeOf, type User } from "./user.ts";

const LEASE_NAMESPACE = "kube-node-lease";
const WRITE_OWN = new Set(["get", "create", "update", "patch", "delete"]);
const READ = new Set(["get", "list", "watch"]);
/** An annotation of ServiceAccounts: with "true" their tokens may write only what belongs to the node they are bound to. */
const NODE_BOUND_ANNOTATION = "veil.dev/node-bound";
const NODE_NAME_EXTRA = "authentication.kubernetes.io/node-name";
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
    const rule = this.#rules[wanted.group === "" ? wanted.resource : `${wanted.resource}.${wanted.group}`];
    return rule?.(node, wanted) === true;
  }

  /** By resource: what a node may do with it. */
  readonly #rules: Readonly<Record<string, (node: string, wanted: Attributes) => boolean>> = {
    nodes: (node, wanted) => this.#allowsNode(node, wanted),
    "nodes/status": (node, wanted) => this.#allowsNode(node, wanted),
    pods: (node, wanted) => this.#allowsPods(node, wanted),
    "pods/status": (node, wanted) => ["get", "update", "patch"].includes(wanted.verb) && this.#runs(node, wanted),
    "leases.coordination.k8s.io": (node, wanted) =>
      WRITE_OWN.has(wanted.verb) &&
      wanted.namespace === LEASE_NAMESPACE &&
      (wanted.name === node || wanted.verb === "create"),
    events: (_node, { verb }) => ["create", "update", "patch"].includes(verb),
    secrets: (node, wanted) => READ.has(wanted.verb) && this.#uses(node, wanted),
    configmaps: (node, wanted) => READ.has(wanted.verb) && this.#uses(node, wanted),
    serviceaccounts: (node, wanted) => wanted.verb === "get" && this.#hasAccount(node, wanted),
    "serviceaccounts/token": (node, wanted) => wanted.verb === "create" && this.#hasAccount(node, wanted),
    "tokenreviews.authentication.k8s.io": (_node, { verb }) => verb === "create",
    "subjectaccessreviews.authorization.k8s.io": (_node, { verb }) => verb === "create",
  };

  /** Refuses, while writing, what the request alone did not show: other nodes' objects in the body, labels, tokens of other pods. */
  readonly admit: Admission = (request) => {
    const node = nodeOf(request.context.user) ?? this.#boundNode(request.context.user);
    if (node === undefined) return;
    const { kind, object } = request;
    const problem = RESTRICTIONS[resourceOf(kind)]?.(node, request);
    if (problem === undefined) return;
    throw forbidden(
      { resource: kind.plural, group: kind.group, name: object.metadata.name },
      `node "${node}" ${problem}`,
    );
  };

  /** A token that a node asks for must be bound to a pod that runs there under that account, and for whom a volume of it says. */
  allowsToken(user: User, namespace: string, review: Readonly<Record<string, unknown>>): boolean {
    const node = nodeOf(user);
    if (node === undefined) return true;
    const reference = valueAt(review, "spec", "boundObjectRef");
    if (textAt(reference, "kind") !== "Pod") return false;
    const pod = this.#store.get({ resource: "pods", namespace, name: textAt(reference, "name") });
    return (
      pod !== undefined &&
      textAt(reference, "uid") === pod.object.metadata.uid &&
      textAt(pod.object, "spec", "nodeName") === node &&
      hasAudience(pod.object, textsAt(review, "spec", "audiences"))
    );
  }

  /**
   * The node that a token is bound to, when its account may write for one node only (an agent's, on each node the same account);
   * empty, which is no node, when the token is bound to none. Undefined: no such account.
   */
  #boundNode(user: User): string | undefined {
    const [, namespace = "", name = ""] = /^system:serviceaccount:([^:]+):([^:]+)$/.exec(user.name) ?? [];
    if (name === "") return undefined;
    const account = this.#store.get({ resource: "serviceaccounts", namespace, name });
    if (account?.object.metadata.annotations?.[NODE_BOUND_ANNOTATION] !== "true") return undefined;
    return user.extra[NODE_NAME_EXTRA]?.[0] ?? "";
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
    return this.#podsOf(node, wanted.namespace).some(
      (pod) => textAt(pod, "spec", "serviceAccountName") === wanted.name,
    );
  }

  #uses(node: string, wanted: Attributes): boolean {
    const name = wanted.name || selected(wanted, "metadata.name");
    if (name === "" || wanted.namespace === "") return false;
    return this.#podsOf(node, wanted.namespace).some((pod) => references(pod, wanted.resource === "secrets").has(name));
  }
}

type Restriction = (node: string, request: Parameters<Admission>[0]) => string | undefined;

/** By resource: why a node may not write this; undefined when it may. */
const RESTRICTIONS: Readonly<Record<string, Restriction>> = {
  nodes: restrictNode,
  pods: (node, { verb, object, old }) => {
    if (verb === "create") return "may not create pods";
    return textAt(old ?? object, "spec", "nodeName") === node ? undefined : "may only change pods that are bound to it";
  },
  "leases.coordination.k8s.io": (node, { object }) =>
    object.metadata.name === node ? undefined : "may only change its own lease",
  "ciliumnodes.cilium.io": restrictTunnels,
  "wireguardnodes.veil.dev": restrictTunnels,
  events: (node, { object }) => {
    const host = textAt(object, "source", "host");
    return host === "" || host === node ? undefined : "may only report what happens on it";
  },
};

/** A node's keys, addresses and reports are its own. */
function restrictTunnels(node: string, { object }: Parameters<Admission>[0]): string | undefined {
  return object.metadata.name === node ? undefined : "may only change what is named as it is";
}

function restrictNode(node: string, { verb, object, old }: Parameters<Admission>[0]): string | undefined {
  if (object.metadata.name !== node) return "may only change its own Node";
  if (restrictedLabels(object) !== (old === undefined ? "{}" : restrictedLabels(old))) {
    return `may not change labels with the prefix ${RESTRICTED_LABEL}`;
  }
  if (verb !== "update" || sameJson(valueAt(object, "spec", "taints"), valueAt(old, "spec", "taints")))
    return undefined;
  return "may not change its taints";
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

/** A token for these audiences (none: the API itself) is in a volume of the pod. */
function hasAudience(pod: Readonly<KubeObject>, [audience = "", ...more]: readonly string[]): boolean {
  const sources = listAt(pod, "spec", "volumes").flatMap((volume) => listAt(volume, "projected", "sources"));
  const tokens = sources.map((source) => valueAt(source, "serviceAccountToken")).filter(isRecord);
  return more.length === 0 && tokens.some((token) => textAt(token, "audience") === audience);
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
