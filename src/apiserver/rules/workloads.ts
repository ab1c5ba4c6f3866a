import type { Rules } from "../kinds.ts";
import {
  defaultTo,
  ensureRecord,
  isRecord,
  numberAt,
  recordAt,
  sameJson,
  textAt,
  valueAt,
  type KubeObject,
} from "../object.ts";
import { invalidValue, required, type Cause } from "../status.ts";
import { defaultPodSpec, validatePodSpec } from "./pods.ts";

function defaultTemplate(spec: Record<string, unknown>): void {
  const template = ensureRecord(spec, "template");
  ensureRecord(template, "metadata");
  defaultPodSpec(ensureRecord(template, "spec"));
}

function validateWorkload(object: KubeObject, old: Readonly<KubeObject> | undefined): readonly Cause[] {
  const causes: Cause[] = [];
  const spec = recordAt(object, "spec");
  const replicas = numberAt(spec, "replicas") ?? 0;
  if (replicas < 0) causes.push(invalidValue("spec.replicas", replicas, "must be greater than or equal to 0"));
  const labels = recordAt(spec, "template", "metadata", "labels");
  const wanted = recordAt(spec, "selector", "matchLabels");
  if (!isRecord(spec["selector"])) causes.push(required("spec.selector"));
  else if (Object.keys(spec["selector"]).length === 0) {
    causes.push(invalidValue("spec.selector", {}, "empty selector is invalid for this kind"));
  } else if (Object.entries(wanted).some(([key, value]) => labels[key] !== value)) {
    causes.push(invalidValue("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"));
  }
  if (old !== undefined && !sameJson(spec["selector"], valueAt(old, "spec", "selector"))) {
    causes.push(invalidValue("spec.selector", spec["selector"], "field is immutable"));
  }
  const policy = textAt(spec, "template", "spec", "restartPolicy");
  if (policy !== "Always") {
    causes.push({
      reason: "FieldValueNotSupported",
      field: "spec.template.spec.restartPolicy",
      message: `Unsupported value: "${policy}": supported values: "Always"`,
    });
  }
  return [...causes, ...validatePodSpec(recordAt(spec, "template", "spec"), "spec.template.spec")];
}

function workload(defaults: (spec: Record<string, unknown>) => void): Rules {
  const fill = (object: KubeObject): void => {
    const spec = ensureRecord(object, "spec");
    defaults(spec);
    defaultTemplate(spec);
  };
  return {
    prepareCreate(object) {
      fill(object);
      object["status"] = {};
    },
    prepareUpdate: fill,
    validate: (object, old, context) => (context.subresource === "status" ? [] : validateWorkload(object, old)),
  };
}

function rollingUpdate(spec: Record<string, unknown>, strategyField: string, values: Record<string, unknown>): void {
  const strategy = ensureRecord(spec, strategyField);
  defaultTo(strategy, "type", "RollingUpdate");
  if (strategy["type"] !== "RollingUpdate") return;
  const rolling = ensureRecord(strategy, "rollingUpdate");
  for (const [name, value] of Object.entries(values)) defaultTo(rolling, name, value);
}

export const deploymentRules: Rules = workload((spec) => {
  defaultTo(spec, "replicas", 1);
  defaultTo(spec, "revisionHistoryLimit", 10);
  defaultTo(spec, "progressDeadlineSeconds", 600);
  rollingUpdate(spec, "strategy", { maxUnavailable: "25%", maxSurge: "25%" });
});

export const replicaSetRules: Rules = workload((spec) => defaultTo(spec, "replicas", 1));

export const daemonSetRules: Rules = workload((spec) => {
  defaultTo(spec, "revisionHistoryLimit", 10);
  rollingUpdate(spec, "updateStrategy", { maxUnavailable: 1, maxSurge: 0 });
});
