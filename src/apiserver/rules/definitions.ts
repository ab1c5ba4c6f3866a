import type { Rules, WriteContext } from "../kinds.ts";
import {
  copyOf,
  formatTime,
  textsAt,
  defaultTo,
  ensureRecord,
  isRecord,
  listAt,
  recordAt,
  textAt,
  valueAt,
  type KubeObject,
} from "../object.ts";
import { invalidValue, required, unsupportedValue, type Cause } from "../status.ts";

const DEFINITIONS = "customresourcedefinitions.apiextensions.k8s.io";

/** Holds a definition until its objects are gone. */
export const CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io";

function fill(definition: KubeObject): void {
  const names = ensureRecord(ensureRecord(definition, "spec"), "names");
  const kind = textAt(names, "kind");
  if (kind !== "") {
    defaultTo(names, "singular", kind.toLowerCase());
    defaultTo(names, "listKind", `${kind}List`);
  }
  defaultTo(ensureRecord(definition, "spec"), "conversion", { strategy: "None" });
}

function validateVersion(version: unknown, field: string): readonly Cause[] {
  const causes: Cause[] = [];
  if (!/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/.test(textAt(version, "name"))) {
    causes.push(invalidValue(`${field}.name`, textAt(version, "name"), "must be a DNS label"));
  }
  for (const flag of ["served", "storage"]) {
    if (typeof valueAt(version, flag) !== "boolean") causes.push(required(`${field}.${flag}`));
  }
  const schema = valueAt(version, "schema", "openAPIV3Schema");
  if (!isRecord(schema)) causes.push(required(`${field}.schema.openAPIV3Schema`, "schemas are required"));
  else if (textAt(schema, "type") !== "object") {
    causes.push(
      invalidValue(`${field}.schema.openAPIV3Schema.type`, textAt(schema, "type"), "must be object at the root"),
    );
  }
  return causes;
}

/** Why the names of a definition cannot be had; undefined when they can. */
function namesProblem(definition: KubeObject, context: WriteContext): string | undefined {
  const group = textAt(definition, "spec", "group");
  const own = namesOf(definition);
  for (const { object } of context.transaction.list(DEFINITIONS)) {
    if (object.metadata.name === definition.metadata.name || textAt(object, "spec", "group") !== group) continue;
    const taken = [...namesOf(object)].find((name) => own.has(name));
    if (taken !== undefined) return `"${taken}" is already in use by ${object.metadata.name}`;
  }
  return undefined;
}

function namesOf(definition: Readonly<KubeObject>): Set<string> {
  const names = recordAt(definition, "spec", "names");
  return new Set([
    textAt(names, "plural"),
    textAt(names, "singular"),
    textAt(names, "kind"),
    ...textsAt(names, "shortNames"),
  ]);
}

/** Accepts the names and says so in the status, as clients wait for it (`kubectl wait --for=condition=Established`). */
function accept(definition: KubeObject, context: WriteContext): void {
  const problem = namesProblem(definition, context);
  const status = ensureRecord(definition, "status");
  const condition = (type: string, reason: string): Record<string, unknown> => {
    const before = listAt(status, "conditions").find((one) => textAt(one, "type") === type);
    const value = problem === undefined ? "True" : "False";
    const lastTransitionTime =
      textAt(before, "status") === value ? textAt(before, "lastTransitionTime") : formatTime(context.nowMs);
    return { type, status: value, reason, message: problem ?? "", lastTransitionTime };
  };
  const conditions = [
    condition("NamesAccepted", problem === undefined ? "NoConflicts" : "NameConflict"),
    condition("Established", problem === undefined ? "InitialNamesAccepted" : "NotAccepted"),
  ];
  const stored = listAt(definition, "spec", "versions").filter((version) => valueAt(version, "storage") === true);
  const versions = new Set([...textsAt(status, "storedVersions"), ...stored.map((version) => textAt(version, "name"))]);
  definition["status"] = {
    conditions,
    acceptedNames: copyOf(recordAt(definition, "spec", "names")),
    storedVersions: [...versions],
  };
}

function validateNames(definition: KubeObject): readonly Cause[] {
  const causes: Cause[] = [];
  const plural = textAt(definition, "spec", "names", "plural");
  const group = textAt(definition, "spec", "group");
  for (const field of ["plural", "kind"]) {
    if (textAt(definition, "spec", "names", field) === "") causes.push(required(`spec.names.${field}`));
  }
  if (group === "") causes.push(required("spec.group"));
  else if (!group.includes(".")) {
    causes.push(invalidValue("spec.group", group, "should be a domain with at least one dot"));
  }
  if (definition.metadata.name !== `${plural}.${group}`) {
    causes.push(invalidValue("metadata.name", definition.metadata.name, 'must be spec.names.plural+"."+spec.group'));
  }
  return causes;
}

/** Defaults, acceptance of the names, and the checks of a CustomResourceDefinition. */
export const definitionRules: Rules = {
  warnings: (definition) =>
    JSON.stringify(definition["spec"] ?? {}).includes('"x-kubernetes-validations"')
      ? ["spec.versions: veil apiserver does not evaluate x-kubernetes-validations (CEL)"]
      : [],
  prepareCreate(definition, context) {
    fill(definition);
    delete definition["status"];
    const finalizers = new Set([...(definition.metadata.finalizers ?? []), CLEANUP_FINALIZER]);
    definition.metadata.finalizers = [...finalizers];
    accept(definition, context);
  },
  prepareUpdate(definition, _old, context) {
    fill(definition);
    if (context.subresource === "") accept(definition, context);
  },
  validate(definition, old, context) {
    if (context.subresource !== "") return [];
    const spec = recordAt(definition, "spec");
    const causes = [...validateNames(definition)];
    const scope = textAt(spec, "scope");
    if (!["Cluster", "Namespaced"].includes(scope))
      causes.push(unsupportedValue("spec.scope", scope, ["Cluster", "Namespaced"]));
    if (old !== undefined && scope !== textAt(old, "spec", "scope"))
      causes.push(invalidValue("spec.scope", scope, "field is immutable"));
    const versions = listAt(spec, "versions");
    if (versions.length === 0) causes.push(required("spec.versions"));
    for (const [index, version] of versions.entries())
      causes.push(...validateVersion(version, `spec.versions[${index}]`));
    if (versions.filter((version) => valueAt(version, "storage") === true).length !== 1) {
      causes.push(
        invalidValue("spec.versions", versions.length, "must have exactly one version marked as storage version"),
      );
    }
    const strategy = textAt(spec, "conversion", "strategy");
    if (strategy !== "None") causes.push(unsupportedValue("spec.conversion.strategy", strategy, ["None"]));
    return causes;
  },
};
