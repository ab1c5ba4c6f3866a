import { listAt, textAt, textsAt, type KubeObject } from "./object.ts";
import type { Store } from "./store.ts";
import { MASTERS_GROUP, type User } from "./user.ts";

/** What somebody wants to do, as RBAC sees it. */
export interface Attributes {
  readonly verb: string;
  readonly group: string;
  /** Plural, with `/subresource` when there is one; empty for paths that are no resources. */
  readonly resource: string;
  readonly namespace: string;
  readonly name: string;
  /** For paths that are no resources. */
  readonly path: string;
  /** As the client gave it; nodes may only look at what they select by their own name. */
  readonly fieldSelector: string;
}

/** A rule of a role that applies to somebody. */
export type Rule = unknown;

/** Decides by role-based access control; members of `system:masters` may do everything. */
export class Authorizer {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** True when a role allows it. What no rule allows is refused. */
  allows(user: User, attributes: Attributes): boolean {
    if (user.groups.includes(MASTERS_GROUP)) return true;
    return this.rules(user, attributes.namespace).some((rule) => ruleAllows(rule, attributes));
  }

  /** All rules that apply to a user: those of the cluster, and those of one namespace. */
  rules(user: User, namespace: string): readonly Rule[] {
    const cluster = this.#bound("clusterrolebindings.rbac.authorization.k8s.io", undefined, user);
    const local = namespace === "" ? [] : this.#bound("rolebindings.rbac.authorization.k8s.io", namespace, user);
    return [...cluster, ...local];
  }

  #bound(resource: string, namespace: string | undefined, user: User): Rule[] {
    const rules: Rule[] = [];
    for (const { object } of this.#store.list(resource, namespace)) {
      if (listAt(object, "subjects").some((subject) => isSubject(subject, user, namespace)))
        rules.push(...this.#rulesOf(object));
    }
    return rules;
  }

  #rulesOf(binding: Readonly<KubeObject>): readonly Rule[] {
    const kind = textAt(binding, "roleRef", "kind");
    const name = textAt(binding, "roleRef", "name");
    const local = kind === "Role";
    const resource = `${local ? "roles" : "clusterroles"}.rbac.authorization.k8s.io`;
    const role = this.#store.get({ resource, namespace: local ? (binding.metadata.namespace ?? "") : "", name });
    return listAt(role?.object, "rules");
  }
}

function isSubject(subject: unknown, user: User, namespace: string | undefined): boolean {
  const name = textAt(subject, "name");
  switch (textAt(subject, "kind")) {
    case "User":
      return name === user.name;
    case "Group":
      return user.groups.includes(name);
    case "ServiceAccount":
      return user.name === `system:serviceaccount:${textAt(subject, "namespace") || (namespace ?? "")}:${name}`;
    default:
      return false;
  }
}

function ruleAllows(rule: Rule, wanted: Attributes): boolean {
  if (!covers(textsAt(rule, "verbs"), wanted.verb)) return false;
  if (wanted.resource === "")
    return textsAt(rule, "nonResourceURLs").some((pattern) => matchesPath(pattern, wanted.path));
  const subresource = wanted.resource.split("/")[1];
  const resources = textsAt(rule, "resources");
  const names = textsAt(rule, "resourceNames");
  return (
    covers(textsAt(rule, "apiGroups"), wanted.group) &&
    (covers(resources, wanted.resource) || (subresource !== undefined && resources.includes(`*/${subresource}`))) &&
    (names.length === 0 || (wanted.name !== "" && names.includes(wanted.name)))
  );
}

function covers(list: readonly string[], value: string): boolean {
  return list.includes("*") || list.includes(value);
}

function matchesPath(pattern: string, path: string): boolean {
  return pattern.endsWith("*") ? path.startsWith(pattern.slice(0, -1)) : pattern === path;
}
