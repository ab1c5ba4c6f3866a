import type { Rules } from "../kinds.ts";
import { defaultTo, ensureRecord, isRecord, listAt, recordAt, textAt, valueAt, type KubeObject } from "../object.ts";
import { invalidValue, required, unsupportedValue, type Cause } from "../status.ts";

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

export const definitionRules: Rules = {
  prepareCreate(definition) {
    fill(definition);
    definition["status"] = { conditions: [], acceptedNames: { plural: "", kind: "" }, storedVersions: [] };
  },
  prepareUpdate: fill,
  validate(definition, old, context) {
    if (context.subresource !== "") return [];
    const spec = recordAt(definition, "spec");
    const causes: Cause[] = [];
    const plural = textAt(spec, "names", "plural");
    const group = textAt(spec, "group");
    for (const field of ["plural", "kind"])
      if (textAt(spec, "names", field) === "") causes.push(required(`spec.names.${field}`));
    if (group === "") causes.push(required("spec.group"));
    else if (!group.includes("."))
      causes.push(invalidValue("spec.group", group, "should be a domain with at least one dot"));
    if (definition.metadata.name !== `${plural}.${group}`) {
      causes.push(invalidValue("metadata.name", definition.metadata.name, 'must be spec.names.plural+"."+spec.group'));
    }
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
