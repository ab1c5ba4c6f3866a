import { listAt, numberAt, recordAt, textAt, textsAt, valueAt, type KubeObject } from "./object.ts";

/** One column of `kubectl get`. */
export interface Column {
  readonly name: string;
  readonly type: "string" | "integer" | "date" | "number" | "boolean";
  readonly format?: string;
  readonly description: string;
  /** 0 is always shown, 1 only with `-o wide`. */
  readonly priority: number;
  readonly value: (object: Readonly<KubeObject>, nowMs: number) => unknown;
}

type Value = Column["value"];

function column(name: string, value: Value, more: Partial<Omit<Column, "value" | "name">> = {}): Column {
  return { name, type: "string", description: name, priority: 0, value, ...more };
}

function wide(name: string, value: Value): Column {
  return column(name, value, { priority: 1 });
}

/** `Name`, as every table begins. */
export const NAME_COLUMN = column("Name", (object) => object.metadata.name, {
  format: "name",
  description: "name of the object",
});
/** `Age`, as most tables end. */
export const AGE_COLUMN = column("Age", (object, nowMs) => ageSince(object.metadata.creationTimestamp, nowMs), {
  description: "time since the object was created",
});

/** The time since a timestamp as kubectl prints it. */
export function ageSince(timestamp: string | undefined, nowMs: number): string {
  const since = timestamp === undefined ? Number.NaN : Date.parse(timestamp);
  return Number.isNaN(since) ? "<unknown>" : formatDuration(nowMs - since);
}

/** A duration in the two largest units that matter: `42s`, `3m5s`, `5h`, `2d3h`, `400d`, `3y`. */
function formatDuration(durationMs: number): string {
  const seconds = Math.floor(durationMs / 1000);
  if (seconds < -1) return "<invalid>";
  const found = DURATIONS.find(([below]) => seconds < below);
  const [, unit, seconds1, rest, seconds2] = found ?? [0, "y", YEAR, "", 1];
  const whole = Math.floor(Math.max(0, seconds) / seconds1);
  const left = rest === "" ? 0 : Math.floor((seconds % seconds1) / seconds2);
  return left === 0 ? `${whole}${unit}` : `${whole}${unit}${left}${rest}`;
}

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86_400;
const YEAR = 365 * DAY;

/** Below how many seconds which units are shown, with their lengths: `[below, unit, seconds, lesser unit, seconds]`. */
const DURATIONS: readonly (readonly [number, string, number, string, number])[] = [
  [120, "s", 1, "", 1],
  [10 * MINUTE, "m", MINUTE, "s", 1],
  [3 * HOUR, "m", MINUTE, "", 1],
  [8 * HOUR, "h", HOUR, "m", MINUTE],
  [2 * DAY, "h", HOUR, "", 1],
  [8 * DAY, "d", DAY, "h", HOUR],
  [2 * YEAR, "d", DAY, "", 1],
  [8 * YEAR, "y", YEAR, "d", DAY],
];

function joined(values: readonly unknown[], empty = "<none>"): string {
  return values.length === 0 ? empty : values.map(String).join(",");
}

function labelsText(labels: Record<string, unknown>): string {
  return joined(Object.entries(labels).map(([key, value]) => `${key}=${String(value)}`));
}

function selectorText(selector: unknown): string {
  const parts = Object.entries(recordAt(selector, "matchLabels")).map(([key, value]) => `${key}=${String(value)}`);
  for (const expression of listAt(selector, "matchExpressions")) {
    const key = textAt(expression, "key");
    const operator = textAt(expression, "operator");
    if (operator === "Exists") parts.push(key);
    else if (operator === "DoesNotExist") parts.push(`!${key}`);
    else parts.push(`${key} ${operator.toLowerCase()} (${textsAt(expression, "values").join(",")})`);
  }
  return joined(parts);
}

function count(...path: string[]): Value {
  return (object) => numberAt(object, ...path) ?? 0;
}

function podReason(pod: Readonly<KubeObject>): string {
  if (pod.metadata.deletionTimestamp !== undefined) return "Terminating";
  const init = listAt(pod, "status", "initContainerStatuses")
    .map((status) => initReason(status))
    .find((one) => one !== "");
  if (init !== undefined) return init;
  const statuses = listAt(pod, "status", "containerStatuses");
  const phase = textAt(pod, "status", "reason") || textAt(pod, "status", "phase") || "Pending";
  const reason =
    statuses.map((status) => waitingReason(status) || terminatedReason(status)).find((one) => one !== "") ?? phase;
  const running = statuses.some((status) => isRunningReady(status));
  return reason === "Completed" && running ? (podReady(pod) ? "Running" : "NotReady") : reason;
}

function waitingReason(status: unknown): string {
  return textAt(status, "state", "waiting", "reason");
}

function terminatedReason(status: unknown): string {
  const terminated = valueAt(status, "state", "terminated");
  if (terminated === undefined) return "";
  return textAt(terminated, "reason") || `ExitCode:${numberAt(terminated, "exitCode") ?? 0}`;
}

function initReason(status: unknown): string {
  if (numberAt(status, "state", "terminated", "exitCode") === 0) return "";
  const waiting = waitingReason(status);
  const reason = terminatedReason(status) || (waiting === "PodInitializing" ? "" : waiting);
  return reason === "" ? "" : `Init:${reason}`;
}

function isRunningReady(status: unknown): boolean {
  return valueAt(status, "ready") === true && valueAt(status, "state", "running") !== undefined;
}

function podReady(pod: Readonly<KubeObject>): boolean {
  return listAt(pod, "status", "conditions").some(
    (condition) => textAt(condition, "type") === "Ready" && textAt(condition, "status") === "True",
  );
}

function podRestarts(pod: Readonly<KubeObject>, nowMs: number): string {
  let restarts = 0;
  let last = "";
  for (const status of listAt(pod, "status", "containerStatuses")) {
    restarts += numberAt(status, "restartCount") ?? 0;
    const finished = textAt(status, "lastState", "terminated", "finishedAt");
    if (finished > last) last = finished;
  }
  return restarts > 0 && last !== "" ? `${restarts} (${ageSince(last, nowMs)} ago)` : String(restarts);
}

function podReadyCount(pod: Readonly<KubeObject>): string {
  const ready = listAt(pod, "status", "containerStatuses").filter((status) => isRunningReady(status)).length;
  return `${ready}/${listAt(pod, "spec", "containers").length}`;
}

function orNone(...path: string[]): Value {
  return (object) => textAt(object, ...path) || "<none>";
}

const containers = (path: readonly string[]): Column[] => [
  wide("Containers", (object) => joined(listAt(object, ...path, "containers").map((one) => textAt(one, "name")))),
  wide("Images", (object) => joined(listAt(object, ...path, "containers").map((one) => textAt(one, "image")))),
];

function servicePorts(service: Readonly<KubeObject>): string {
  return joined(
    listAt(service, "spec", "ports").map((port) => {
      const nodePort = numberAt(port, "nodePort");
      const middle = nodePort === undefined || nodePort === 0 ? "" : `:${nodePort}`;
      return `${numberAt(port, "port") ?? 0}${middle}/${textAt(port, "protocol") || "TCP"}`;
    }),
  );
}

function nodeAddress(type: string): Value {
  return (node) =>
    textAt(
      listAt(node, "status", "addresses").find((address) => textAt(address, "type") === type),
      "address",
    ) || "<none>";
}

function nodeStatus(node: Readonly<KubeObject>): string {
  const ready = listAt(node, "status", "conditions").find((condition) => textAt(condition, "type") === "Ready");
  const status = ready === undefined ? "Unknown" : textAt(ready, "status") === "True" ? "Ready" : "NotReady";
  return valueAt(node, "spec", "unschedulable") === true ? `${status},SchedulingDisabled` : status;
}

function nodeRoles(node: Readonly<KubeObject>): string {
  const prefix = "node-role.kubernetes.io/";
  return joined(
    Object.keys(node.metadata.labels ?? {})
      .filter((label) => label.startsWith(prefix))
      .map((label) => label.slice(prefix.length)),
  );
}

function sliceEndpoints(slice: Readonly<KubeObject>): string {
  const addresses = listAt(slice, "endpoints").flatMap((endpoint) => textsAt(endpoint, "addresses"));
  return addresses.length > 3
    ? `${addresses.slice(0, 3).join(",")} + ${addresses.length - 3} more...`
    : joined(addresses, "<unset>");
}

function eventAge(event: Readonly<KubeObject>, nowMs: number): string {
  const first = textAt(event, "firstTimestamp") || textAt(event, "eventTime") || event.metadata.creationTimestamp;
  const last = textAt(event, "series", "lastObservedTime") || textAt(event, "lastTimestamp") || first;
  const times = numberAt(event, "series", "count") ?? numberAt(event, "count") ?? 1;
  return times > 1 ? `${ageSince(last, nowMs)} (x${times} over ${ageSince(first, nowMs)})` : ageSince(last, nowMs);
}

function subjects(kind: string): Value {
  return (binding) =>
    listAt(binding, "subjects")
      .filter((subject) => textAt(subject, "kind") === kind)
      .map((subject) => (kind === "ServiceAccount" ? `${textAt(subject, "namespace")}/` : "") + textAt(subject, "name"))
      .join(", ");
}

const ROLE = column("Role", (binding) => `${textAt(binding, "roleRef", "kind")}/${textAt(binding, "roleRef", "name")}`);
const BINDING = [
  NAME_COLUMN,
  ROLE,
  AGE_COLUMN,
  wide("Users", subjects("User")),
  wide("Groups", subjects("Group")),
  wide("ServiceAccounts", subjects("ServiceAccount")),
];

/** The columns of the built-in kinds, by resource, as a real server prints them. */
export const BUILTIN_COLUMNS: Readonly<Record<string, readonly Column[]>> = {
  pods: [
    NAME_COLUMN,
    column("Ready", podReadyCount),
    column("Status", podReason),
    column("Restarts", podRestarts),
    AGE_COLUMN,
    wide("IP", orNone("status", "podIP")),
    wide("Node", orNone("spec", "nodeName")),
    wide("Nominated Node", orNone("status", "nominatedNodeName")),
    wide("Readiness Gates", () => "<none>"),
  ],
  namespaces: [NAME_COLUMN, column("Status", (object) => textAt(object, "status", "phase")), AGE_COLUMN],
  nodes: [
    NAME_COLUMN,
    column("Status", nodeStatus),
    column("Roles", nodeRoles),
    AGE_COLUMN,
    column("Version", (node) => textAt(node, "status", "nodeInfo", "kubeletVersion")),
    wide("Internal-IP", nodeAddress("InternalIP")),
    wide("External-IP", nodeAddress("ExternalIP")),
    wide("OS-Image", (node) => textAt(node, "status", "nodeInfo", "osImage") || "<unknown>"),
    wide("Kernel-Version", (node) => textAt(node, "status", "nodeInfo", "kernelVersion") || "<unknown>"),
    wide("Container-Runtime", (node) => textAt(node, "status", "nodeInfo", "containerRuntimeVersion") || "<unknown>"),
  ],
  services: [
    NAME_COLUMN,
    column("Type", (service) => textAt(service, "spec", "type")),
    column("Cluster-IP", orNone("spec", "clusterIP")),
    column("External-IP", (service) => joined(listAt(service, "spec", "externalIPs"))),
    column("Port(s)", servicePorts),
    AGE_COLUMN,
    wide("Selector", (service) => labelsText(recordAt(service, "spec", "selector"))),
  ],
  configmaps: [
    NAME_COLUMN,
    column(
      "Data",
      (map) => Object.keys(recordAt(map, "data")).length + Object.keys(recordAt(map, "binaryData")).length,
    ),
    AGE_COLUMN,
  ],
  secrets: [
    NAME_COLUMN,
    column("Type", (secret) => textAt(secret, "type")),
    column("Data", (secret) => Object.keys(recordAt(secret, "data")).length),
    AGE_COLUMN,
  ],
  serviceaccounts: [NAME_COLUMN, column("Secrets", (account) => listAt(account, "secrets").length), AGE_COLUMN],
  events: [
    column("Last Seen", eventAge),
    column("Type", (event) => textAt(event, "type")),
    column("Reason", (event) => textAt(event, "reason")),
    column(
      "Object",
      (event) => `${textAt(event, "involvedObject", "kind").toLowerCase()}/${textAt(event, "involvedObject", "name")}`,
    ),
    wide("Source", (event) => textAt(event, "source", "component") || textAt(event, "reportingComponent")),
    column("Message", (event) => textAt(event, "message").trim()),
    wide("Name", (event) => event.metadata.name),
  ],
  "deployments.apps": [
    NAME_COLUMN,
    column(
      "Ready",
      (object) => `${numberAt(object, "status", "readyReplicas") ?? 0}/${numberAt(object, "spec", "replicas") ?? 0}`,
    ),
    column("Up-to-date", count("status", "updatedReplicas")),
    column("Available", count("status", "availableReplicas")),
    AGE_COLUMN,
    ...containers(["spec", "template", "spec"]),
    wide("Selector", (object) => selectorText(valueAt(object, "spec", "selector"))),
  ],
  "replicasets.apps": [
    NAME_COLUMN,
    column("Desired", count("spec", "replicas")),
    column("Current", count("status", "replicas")),
    column("Ready", count("status", "readyReplicas")),
    AGE_COLUMN,
    ...containers(["spec", "template", "spec"]),
    wide("Selector", (object) => selectorText(valueAt(object, "spec", "selector"))),
  ],
  "daemonsets.apps": [
    NAME_COLUMN,
    column("Desired", count("status", "desiredNumberScheduled")),
    column("Current", count("status", "currentNumberScheduled")),
    column("Ready", count("status", "numberReady")),
    column("Up-to-date", count("status", "updatedNumberScheduled")),
    column("Available", count("status", "numberAvailable")),
    column("Node Selector", (object) => labelsText(recordAt(object, "spec", "template", "spec", "nodeSelector"))),
    AGE_COLUMN,
    ...containers(["spec", "template", "spec"]),
    wide("Selector", (object) => selectorText(valueAt(object, "spec", "selector"))),
  ],
  "leases.coordination.k8s.io": [
    NAME_COLUMN,
    column("Holder", (lease) => textAt(lease, "spec", "holderIdentity")),
    AGE_COLUMN,
  ],
  "endpointslices.discovery.k8s.io": [
    NAME_COLUMN,
    column("AddressType", (slice) => textAt(slice, "addressType")),
    column("Ports", (slice) =>
      joined(
        listAt(slice, "ports").map((port) => numberAt(port, "port") ?? "*"),
        "<unset>",
      ),
    ),
    column("Endpoints", sliceEndpoints),
    AGE_COLUMN,
  ],
  "customresourcedefinitions.apiextensions.k8s.io": [
    NAME_COLUMN,
    column("Created At", (object) => object.metadata.creationTimestamp ?? "", { type: "date" }),
  ],
  "rolebindings.rbac.authorization.k8s.io": BINDING,
  "clusterrolebindings.rbac.authorization.k8s.io": BINDING,
};
