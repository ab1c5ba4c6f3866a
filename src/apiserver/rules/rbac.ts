import type { Rules } from "../kinds.ts";
import { defaultTo, isRecord, listAt, sameJson, textAt, textsAt } from "../object.ts";
import { invalidValue, required, unsupportedValue, type Cause } from "../status.ts";

const GROUP = "rbac.authorization.k8s.io";

export const roleRules: Rules = {
  validate(role) {
    const causes: Cause[] = [];
    for (const [index, rule] of listAt(role, "rules").entries()) {
      const field = `rules[${index}]`;
      if (textsAt(rule, "verbs").length === 0)
        causes.push(required(`${field}.verbs`, "verbs must contain at least one value"));
      if (textsAt(rule, "nonResourceURLs").length > 0) {
        if (role.kind === "Role")
          causes.push(
            invalidValue(
              `${field}.nonResourceURLs`,
              textsAt(rule, "nonResourceURLs"),
              "namespaced rules cannot apply to non-resource URLs",
            ),
          );
        continue;
      }
      if (textsAt(rule, "apiGroups").length === 0)
        causes.push(required(`${field}.apiGroups`, "resource rules must supply at least one api group"));
      if (textsAt(rule, "resources").length === 0)
        causes.push(required(`${field}.resources`, "resource rules must supply at least one resource"));
    }
    return causes;
  },
};

function defaultSubjects(binding: Record<string, unknown>): void {
  const ref = binding["roleRef"];
  if (isRecord(ref)) defaultTo(ref, "apiGroup", GROUP);
  for (const subject of listAt(binding, "subjects")) {
    if (isRecord(subject) && subject["kind"] !== "ServiceAccount") defaultTo(subject, "apiGroup", GROUP);
  }
}

function validateSubject(subject: unknown, field: string): readonly Cause[] {
  const causes: Cause[] = [];
  const kind = textAt(subject, "kind");
  if (textAt(subject, "name") === "") causes.push(required(`${field}.name`));
  if (!["User", "Group", "ServiceAccount"].includes(kind)) {
    causes.push(unsupportedValue(`${field}.kind`, kind, ["ServiceAccount", "User", "Group"]));
  }
  if (kind === "ServiceAccount" && textAt(subject, "namespace") === "") causes.push(required(`${field}.namespace`));
  return causes;
}

export const bindingRules: Rules = {
  prepareCreate: defaultSubjects,
  prepareUpdate: defaultSubjects,
  validate(binding, old) {
    const kinds = binding.kind === "RoleBinding" ? ["Role", "ClusterRole"] : ["ClusterRole"];
    const causes: Cause[] = [];
    const kind = textAt(binding, "roleRef", "kind");
    if (!kinds.includes(kind)) causes.push(unsupportedValue("roleRef.kind", kind, kinds));
    if (textAt(binding, "roleRef", "name") === "") causes.push(required("roleRef.name"));
    if (old !== undefined && !sameJson(binding["roleRef"], old["roleRef"])) {
      causes.push(invalidValue("roleRef", binding["roleRef"], "cannot change roleRef"));
    }
    for (const [index, subject] of listAt(binding, "subjects").entries()) {
      causes.push(...validateSubject(subject, `subjects[${index}]`));
    }
    return causes;
  },
};
