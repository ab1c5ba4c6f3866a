import type { Attributes, Authorizer, Rule } from "./authorizer.ts";
import type { Admission } from "./engine.ts";
import { resourceOf } from "./kinds.ts";
import { listAt, textAt, textsAt, type KubeObject } from "./object.ts";
import { forbidden } from "./status.ts";
import type { Transaction } from "./store.ts";
import { MASTERS_GROUP, type User } from "./user.ts";

const GROUP = "rbac.authorization.k8s.io";

/**
 * Nobody may give what they do not have: who writes a role needs all its rules (or the verb `escalate` on it), who
 * writes a binding needs all rules of the role it names (or the verb `bind` on that).
 */
export function refuseEscalation(rbac: Authorizer): Admission {
  return ({ verb, kind, object, old, context }) => {
    const resource = resourceOf(kind);
    if (verb === "delete" || kind.group !== GROUP || context.user.groups.includes(MASTERS_GROUP)) return;
    const binding = resource.includes("bindings");
    const target = binding
      ? roleOf(context.transaction, object)
      : { plural: kind.plural, name: object.metadata.name, rules: listAt(object, "rules") };
    if (old !== undefined && !binding && JSON.stringify(old["rules"]) === JSON.stringify(object["rules"])) return;
    const namespace = object.metadata.namespace ?? "";
    const attributes: Attributes = {
      verb: binding ? "bind" : "escalate",
      group: GROUP,
      resource: target.plural,
      namespace,
      name: target.name,
      path: "",
      fieldSelector: "",
    };
    if (rbac.allows(context.user, attributes)) return;
    const missing = target.rules.find((rule) => !hasRule(rbac, context.user, { rule, namespace }));
    if (missing === undefined) return;
    const why = `user "${context.user.name}" is attempting to grant RBAC permissions not currently held: ${JSON.stringify(missing)}`;
    throw forbidden({ group: GROUP, resource: kind.plural, name: object.metadata.name }, why);
  };
}

function roleOf(
  transaction: Transaction,
  binding: Readonly<KubeObject>,
): { plural: string; name: string; rules: readonly Rule[] } {
  const name = textAt(binding, "roleRef", "name");
  const plural = textAt(binding, "roleRef", "kind") === "Role" ? "roles" : "clusterroles";
  const namespace = plural === "roles" ? (binding.metadata.namespace ?? "") : "";
  const role = transaction.get({ resource: `${plural}.${GROUP}`, namespace, name });
  return { plural, name, rules: listAt(role?.object, "rules") };
}

/** True when a user holds everything that a rule allows: asked for each of its combinations. */
function hasRule(rbac: Authorizer, user: User, { rule, namespace }: { rule: Rule; namespace: string }): boolean {
  const names = textsAt(rule, "resourceNames");
  const usual = { namespace, path: "", fieldSelector: "" };
  return textsAt(rule, "verbs").every(
    (verb) =>
      textsAt(rule, "nonResourceURLs").every((path) =>
        rbac.allows(user, { ...usual, verb, group: "", resource: "", name: "", path }),
      ) &&
      textsAt(rule, "apiGroups").every((group) =>
        textsAt(rule, "resources").every((resource) =>
          (names.length === 0 ? [""] : names).every((name) =>
            rbac.allows(user, { ...usual, verb, group, resource, name }),
          ),
        ),
      ),
  );
}
