import type { Container, Pod } from "#kube";

/** What a container does now. */
export type ContainerState =
  | { readonly kind: "waiting"; readonly reason: string; readonly message: string }
  | { readonly kind: "running"; readonly startedMs: number; readonly started: boolean; readonly ready: boolean }
  | ContainerEnd;

/** How a container's latest run ended. */
export interface ContainerEnd {
  readonly kind: "ended";
  readonly exitCode: number;
  readonly reason: string;
  readonly message: string;
  readonly startedMs: number;
  readonly endedMs: number;
}

/** One container as its pod's status tells it. */
export interface ContainerFacts {
  readonly container: Container;
  readonly attempt: number;
  readonly restarts: number;
  readonly state: ContainerState;
  readonly last: ContainerEnd | undefined;
}

/** All that the status of a pod is made of. */
export interface PodFacts {
  readonly uid: string;
  readonly startedMs: number;
  /** Undefined until the pod has an address. */
  readonly podIp: string | undefined;
  readonly hostIp: string;
  /** The node's end of the pod's link; undefined for pods in the node's own network. */
  readonly veth: string | undefined;
  readonly init: readonly ContainerFacts[];
  readonly containers: readonly ContainerFacts[];
  readonly restartPolicy: string;
  readonly stopping: boolean;
}

type PodStatus = NonNullable<Pod["status"]>;
type ContainerStatus = NonNullable<PodStatus["containerStatuses"]>[number];
type Condition = NonNullable<PodStatus["conditions"]>[number];

/**
 * The status of a pod, a pure function of what its containers do. `old` gives the transition times of conditions that
 * have not changed, and conditions of others, which are kept.
 */
export function podStatus(facts: PodFacts, old: PodStatus | undefined, nowMs: number): PodStatus {
  const phase = podPhase(facts);
  const status: PodStatus = {
    phase,
    conditions: dated(conditions(facts, phase), old, nowMs),
    hostIP: facts.hostIp,
    hostIPs: [{ ip: facts.hostIp }],
    startTime: formatTime(facts.startedMs),
    containerStatuses: facts.containers.map((container) => containerStatus(facts.uid, container)),
    qosClass: "BestEffort",
  };
  if (facts.podIp !== undefined) Object.assign(status, { podIP: facts.podIp, podIPs: [{ ip: facts.podIp }] });
  if (facts.init.length > 0) {
    status.initContainerStatuses = facts.init.map((container) => containerStatus(facts.uid, container));
  }
  return status;
}

/** True when every container has ended and none will be started again. */
export function podPhase(facts: PodFacts): "Pending" | "Running" | "Succeeded" | "Failed" {
  const failedInit = facts.init.some(
    (one) => isOver(one, facts) && one.state.kind === "ended" && one.state.exitCode !== 0,
  );
  if (failedInit) return "Failed";
  if (facts.containers.length > 0 && facts.containers.every((one) => isOver(one, facts))) {
    return facts.containers.every((one) => one.state.kind === "ended" && one.state.exitCode === 0)
      ? "Succeeded"
      : "Failed";
  }
  return facts.containers.every((one) => one.attempt === 0) ? "Pending" : "Running";
}

/** True when a container has ended and its pod's policy does not want it again. */
function isOver(one: ContainerFacts, pod: { restartPolicy: string; stopping: boolean }): boolean {
  if (one.state.kind !== "ended") return false;
  return pod.stopping || !wantsRestart(pod.restartPolicy, one.state.exitCode);
}

/** What a restart policy says about an exit code. */
export function wantsRestart(policy: string, exitCode: number): boolean {
  return policy === "Always" || (policy === "OnFailure" && exitCode !== 0);
}

function containerStatus(uid: string, one: ContainerFacts): ContainerStatus {
  const { state, last, container } = one;
  const running = state.kind === "running";
  return {
    name: container.name,
    image: container.image ?? "",
    imageID: "",
    containerID: one.attempt === 0 ? "" : containerId(uid, one),
    restartCount: one.restarts,
    ready: running && state.ready,
    started: running && state.started,
    state: wireState(uid, one, state),
    lastState: last === undefined ? {} : wireState(uid, one, last),
  };
}

function containerId(uid: string, one: ContainerFacts): string {
  return `veil://${uid}/${one.container.name}/${one.attempt}`;
}

function wireState(uid: string, one: ContainerFacts, state: ContainerState): NonNullable<ContainerStatus["state"]> {
  if (state.kind === "running") return { running: { startedAt: formatTime(state.startedMs) } };
  const message = state.message === "" ? {} : { message: state.message };
  if (state.kind === "waiting") return { waiting: { reason: state.reason, ...message } };
  return {
    terminated: {
      exitCode: state.exitCode,
      reason: state.reason,
      ...message,
      startedAt: formatTime(state.startedMs),
      finishedAt: formatTime(state.endedMs),
      containerID: containerId(uid, one),
    },
  };
}

function conditions(facts: PodFacts, phase: string): Condition[] {
  const initialized = facts.init.every((one) => one.state.kind === "ended" && one.state.exitCode === 0);
  const unready = facts.containers.filter((one) => one.state.kind !== "running" || !one.state.ready);
  const ready = initialized && unready.length === 0;
  const verdict = ready ? { status: "True" } : { status: "False", ...unreadyReason(phase, unready) };
  return [
    { type: "PodScheduled", status: "True" },
    { type: "Initialized", status: initialized ? "True" : "False" },
    { type: "ContainersReady", ...verdict },
    { type: "Ready", ...verdict },
  ];
}

function unreadyReason(phase: string, unready: readonly ContainerFacts[]): { reason: string; message?: string } {
  if (phase === "Succeeded") return { reason: "PodCompleted" };
  if (phase === "Failed") return { reason: "PodFailed" };
  const names = unready.map((one) => one.container.name).join(" ");
  return { reason: "ContainersNotReady", message: `containers with unready status: [${names}]` };
}

/** Gives conditions their times: those of `old` where nothing has changed. Conditions of others are kept. */
function dated(own: readonly Condition[], old: PodStatus | undefined, nowMs: number): Condition[] {
  const before = new Map((old?.conditions ?? []).map((condition) => [condition.type, condition]));
  const merged = own.map((condition) => {
    const same = before.get(condition.type);
    const kept = same?.status === condition.status ? same.lastTransitionTime : undefined;
    return { ...condition, lastTransitionTime: kept ?? formatTime(nowMs) };
  });
  const types = new Set(own.map((condition) => condition.type));
  return [...merged, ...(old?.conditions ?? []).filter((condition) => !types.has(condition.type))];
}

/** A time as Kubernetes writes it: whole seconds. */
export function formatTime(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}
