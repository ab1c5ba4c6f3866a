import type { Rules, WriteContext } from "../kinds.ts";
import {
  copyOf,
  defaultTo,
  ensureRecord,
  isRecord,
  listAt,
  numberAt,
  recordAt,
  sameJson,
  textAt,
  valueAt,
  type KubeObject,
} from "../object.ts";
import { forbidden, forbiddenValue, invalidValue, required, unsupportedValue, type Cause } from "../status.ts";
import { isDnsLabel, isPort, PORT_RANGE, validateLabels } from "../validation.ts";

const DEFAULT_GRACE_SECONDS = 30;
const TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_SECONDS = 3607;

/** Fills the defaults of a pod template's or pod's `spec`. */
export function defaultPodSpec(spec: Record<string, unknown>): void {
  defaultTo(spec, "restartPolicy", "Always");
  defaultTo(spec, "terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS);
  defaultTo(spec, "dnsPolicy", "ClusterFirst");
  defaultTo(spec, "securityContext", {});
  defaultTo(spec, "schedulerName", "default-scheduler");
  const account = textAt(spec, "serviceAccountName") || textAt(spec, "serviceAccount");
  if (account !== "") spec["serviceAccountName"] = spec["serviceAccount"] = account;
  for (const container of [...listAt(spec, "initContainers"), ...listAt(spec, "containers")]) {
    if (isRecord(container)) defaultContainer(container);
  }
  for (const volume of listAt(spec, "volumes")) if (isRecord(volume)) defaultVolume(volume);
}

function defaultContainer(container: Record<string, unknown>): void {
  const image = textAt(container, "image");
  const tagged = /:[^/]+$/.test(image) && !image.endsWith(":latest");
  defaultTo(container, "imagePullPolicy", tagged || image.includes("@") ? "IfNotPresent" : "Always");
  defaultTo(container, "terminationMessagePath", "/dev/termination-log");
  defaultTo(container, "terminationMessagePolicy", "File");
  defaultTo(container, "resources", {});
  for (const port of listAt(container, "ports")) if (isRecord(port)) defaultTo(port, "protocol", "TCP");
  for (const name of ["readinessProbe", "livenessProbe", "startupProbe"]) {
    const probe = container[name];
    if (isRecord(probe)) defaultProbe(probe);
  }
}

function defaultProbe(probe: Record<string, unknown>): void {
  defaultTo(probe, "timeoutSeconds", 1);
  defaultTo(probe, "periodSeconds", 10);
  defaultTo(probe, "successThreshold", 1);
  defaultTo(probe, "failureThreshold", 3);
  const http = probe["httpGet"];
  if (!isRecord(http)) return;
  defaultTo(http, "path", "/");
  defaultTo(http, "scheme", "HTTP");
}

function defaultVolume(volume: Record<string, unknown>): void {
  for (const source of ["secret", "configMap", "projected"]) {
    const found = volume[source];
    if (isRecord(found)) defaultTo(found, "defaultMode", 420);
  }
  for (const source of listAt(volume, "projected", "sources")) {
    const token = valueAt(source, "serviceAccountToken");
    if (isRecord(token)) defaultTo(token, "expirationSeconds", 3600);
  }
}

/** Checks the `spec` of a pod or of a template at `field`. */
export function validatePodSpec(spec: Record<string, unknown>, field: string): readonly Cause[] {
  const causes: Cause[] = [];
  const containers = listAt(spec, "containers");
  if (containers.length === 0) causes.push(required(`${field}.containers`));
  const names = new Set<string>();
  const volumes = new Set(listAt(spec, "volumes").map((volume) => textAt(volume, "name")));
  for (const list of ["initContainers", "containers"]) {
    for (const [index, container] of listAt(spec, list).entries()) {
      causes.push(...validateContainer(container, `${field}.${list}[${index}]`, { names, volumes }));
    }
  }
  for (const [index, volume] of listAt(spec, "volumes").entries()) {
    if (!isDnsLabel(textAt(volume, "name"))) {
      causes.push(invalidValue(`${field}.volumes[${index}].name`, textAt(volume, "name"), "must be a DNS label"));
    }
  }
  const policy = textAt(spec, "restartPolicy");
  if (!["Always", "OnFailure", "Never"].includes(policy)) {
    causes.push(unsupportedValue(`${field}.restartPolicy`, policy, ["Always", "OnFailure", "Never"]));
  }
  const grace = numberAt(spec, "terminationGracePeriodSeconds") ?? 0;
  if (grace < 0)
    causes.push(invalidValue(`${field}.terminationGracePeriodSeconds`, grace, "must be greater than or equal to 0"));
  return [...causes, ...validateLabels(spec["nodeSelector"], `${field}.nodeSelector`)];
}

function validateContainer(
  container: unknown,
  field: string,
  known: { names: Set<string>; volumes: ReadonlySet<string> },
): readonly Cause[] {
  const causes: Cause[] = [];
  const name = textAt(container, "name");
  if (name === "") causes.push(required(`${field}.name`));
  else if (!isDnsLabel(name)) causes.push(invalidValue(`${field}.name`, name, "must be a DNS label"));
  else if (known.names.has(name))
    causes.push({ reason: "FieldValueDuplicate", field: `${field}.name`, message: `Duplicate value: "${name}"` });
  known.names.add(name);
  if (textAt(container, "image") === "") causes.push(required(`${field}.image`));
  for (const [index, port] of listAt(container, "ports").entries()) {
    const number = numberAt(port, "containerPort");
    if (!isPort(number))
      causes.push(invalidValue(`${field}.ports[${index}].containerPort`, number ?? null, PORT_RANGE));
  }
  for (const [index, env] of listAt(container, "env").entries()) {
    if (textAt(env, "name") === "") causes.push(required(`${field}.env[${index}].name`));
  }
  return [...causes, ...validateMounts(container, field, known.volumes)];
}

function validateMounts(container: unknown, field: string, volumes: ReadonlySet<string>): readonly Cause[] {
  const causes: Cause[] = [];
  for (const [index, mount] of listAt(container, "volumeMounts").entries()) {
    const volume = textAt(mount, "name");
    if (!volumes.has(volume)) {
      causes.push({
        reason: "FieldValueInvalid",
        field: `${field}.volumeMounts[${index}].name`,
        message: `Not found: "${volume}"`,
      });
    }
    if (textAt(mount, "mountPath") === "") causes.push(required(`${field}.volumeMounts[${index}].mountPath`));
  }
  return causes;
}

/** Gives the pod its service account and the volume with its token, as the admission of a real cluster does. */
function admitServiceAccount(pod: KubeObject, context: WriteContext): void {
  const spec = ensureRecord(pod, "spec");
  defaultTo(spec, "serviceAccountName", "default");
  spec["serviceAccount"] = spec["serviceAccountName"];
  const name = textAt(spec, "serviceAccountName");
  const namespace = pod.metadata.namespace ?? "";
  const account = context.transaction.get({ resource: "serviceaccounts", namespace, name });
  if (account === undefined) {
    const why = `error looking up service account ${namespace}/${name}: serviceaccount "${name}" not found`;
    throw forbidden({ resource: "pods", name: pod.metadata.name }, why);
  }
  const wanted =
    valueAt(spec, "automountServiceAccountToken") ?? valueAt(account.object, "automountServiceAccountToken") ?? true;
  if (wanted === true) mountToken(spec, pod.metadata.uid);
}

function mountToken(spec: Record<string, unknown>, uid: string): void {
  const containers = [...listAt(spec, "initContainers"), ...listAt(spec, "containers")].filter((one) => isRecord(one));
  const volumeName = `kube-api-access-${uid.slice(0, 5)}`;
  let mounted = false;
  for (const container of containers) {
    const mounts = listAt(container, "volumeMounts");
    if (mounts.some((mount) => textAt(mount, "mountPath") === TOKEN_MOUNT)) continue;
    container["volumeMounts"] = [...mounts, { name: volumeName, readOnly: true, mountPath: TOKEN_MOUNT }];
    mounted = true;
  }
  if (!mounted) return;
  const sources = [
    { serviceAccountToken: { expirationSeconds: TOKEN_SECONDS, path: "token" } },
    { configMap: { name: "kube-root-ca.crt", items: [{ key: "ca.crt", path: "ca.crt" }] } },
    {
      downwardAPI: { items: [{ path: "namespace", fieldRef: { apiVersion: "v1", fieldPath: "metadata.namespace" } }] },
    },
  ];
  spec["volumes"] = [...listAt(spec, "volumes"), { name: volumeName, projected: { defaultMode: 420, sources } }];
}

function qosClass(spec: unknown): string {
  let any = false;
  let guaranteed = true;
  for (const container of listAt(spec, "containers")) {
    const requests = recordAt(container, "resources", "requests");
    const limits = recordAt(container, "resources", "limits");
    if (Object.keys(requests).length + Object.keys(limits).length > 0) any = true;
    for (const name of ["cpu", "memory"]) {
      if (limits[name] === undefined || (requests[name] ?? limits[name]) !== limits[name]) guaranteed = false;
    }
  }
  return any ? (guaranteed ? "Guaranteed" : "Burstable") : "BestEffort";
}

/** Fields of a running pod's spec that may be changed; everything else is fixed at creation. */
function withoutMutable(spec: unknown): unknown {
  const copy = copyOf(spec);
  if (!isRecord(copy)) return copy;
  for (const field of ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName"])
    delete copy[field];
  for (const container of [...listAt(copy, "initContainers"), ...listAt(copy, "containers")]) {
    if (isRecord(container)) delete container["image"];
  }
  return copy;
}

export const podRules: Rules = {
  prepareCreate(pod, context) {
    const spec = ensureRecord(pod, "spec");
    defaultPodSpec(spec);
    defaultTo(spec, "enableServiceLinks", true);
    defaultTo(spec, "preemptionPolicy", "PreemptLowerPriority");
    defaultTo(spec, "priority", 0);
    admitServiceAccount(pod, context);
    pod["status"] = { phase: "Pending", qosClass: qosClass(spec) };
  },
  prepareUpdate(pod, old, context) {
    const spec = ensureRecord(pod, "spec");
    if (context.subresource === "") defaultPodSpec(spec);
    if (context.subresource === "status")
      defaultTo(ensureRecord(pod, "status"), "qosClass", valueAt(old, "status", "qosClass"));
  },
  validate(pod, old, context) {
    const spec = recordAt(pod, "spec");
    if (old === undefined) return validatePodSpec(spec, "spec");
    if (context.subresource !== "") return [];
    const causes: Cause[] = [];
    if (!sameJson(withoutMutable(spec), withoutMutable(old["spec"]))) {
      causes.push(
        forbiddenValue(
          "spec",
          "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds`",
        ),
      );
    }
    if (textAt(spec, "nodeName") !== textAt(old, "spec", "nodeName")) {
      causes.push(forbiddenValue("spec.nodeName", "may only be set by the binding subresource"));
    }
    return [...causes, ...validatePodSpec(spec, "spec")];
  },
  graceSeconds(pod) {
    if (textAt(pod, "spec", "nodeName") === "") return 0;
    const phase = textAt(pod, "status", "phase");
    if (phase === "Succeeded" || phase === "Failed") return 0;
    return numberAt(pod, "spec", "terminationGracePeriodSeconds") ?? DEFAULT_GRACE_SECONDS;
  },
};
