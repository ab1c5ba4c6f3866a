import { isKubeError, objectKey, resources, type Deployment, type ReplicaSet } from "#kube";
import {
  controllerReference,
  isOwnedBy,
  ownerKey,
  sameJson,
  splitKey,
  type Cluster,
  type Controller,
} from "./cluster.ts";
import { templateHash } from "./pod-control.ts";
import { WorkQueue } from "./work-queue.ts";

const HASH_LABEL = "pod-template-hash";
const REVISION = "deployment.kubernetes.io/revision";
const DEFAULT_SHARE = "25%";
const KEPT_SETS = 10;

/** How many pods each set of a deployment shall have, by name. Sets that are not named stay as they are. */
export type ScalePlan = ReadonlyMap<string, number>;

/** What a plan is made of. */
export interface RolloutFacts {
  readonly replicas: number;
  readonly recreate: boolean;
  readonly maxSurge: number;
  readonly maxUnavailable: number;
  readonly current: SetFacts;
  readonly old: readonly SetFacts[];
}

/** One ReplicaSet. */
export interface SetFacts {
  readonly name: string;
  readonly wanted: number;
  /** Pods that exist. */
  readonly pods: number;
  readonly available: number;
}

/**
 * One step of a rollout: the new set grows as far as `maxSurge` allows, the old ones shrink as far as `maxUnavailable`
 * allows, pods that are not available first.
 */
export function planRollout(facts: RolloutFacts): ScalePlan {
  const { replicas, current, old } = facts;
  const plan = new Map<string, number>();
  const oldWanted = old.reduce((sum, set) => sum + set.wanted, 0);
  if (facts.recreate) {
    for (const set of old) plan.set(set.name, 0);
    const left = old.reduce((sum, set) => sum + set.pods, 0);
    if (left === 0) plan.set(current.name, replicas);
    return plan;
  }
  const room = Math.max(0, replicas + facts.maxSurge - oldWanted);
  plan.set(current.name, current.wanted > replicas ? replicas : Math.max(current.wanted, Math.min(replicas, room)));
  const available = [current, ...old].reduce((sum, set) => sum + set.available, 0);
  let mayGo = Math.max(0, available - (replicas - facts.maxUnavailable));
  for (const set of old) {
    const idle = Math.max(0, set.wanted - set.available);
    const go = Math.min(set.wanted, idle + mayGo);
    mayGo -= Math.max(0, go - idle);
    plan.set(set.name, set.wanted - go);
  }
  return plan;
}

/** A number of pods given as such or as a share of `replicas`; shares are rounded up for `surge`, else down. */
export function podCount(value: number | string | undefined, replicas: number, up: boolean): number {
  const text = String(value ?? DEFAULT_SHARE);
  const share = /^(\d+)%$/.exec(text);
  if (share === null) return Number.isInteger(Number(text)) ? Number(text) : 0;
  const exact = (replicas * Number(share[1])) / 100;
  return up ? Math.ceil(exact) : Math.floor(exact);
}

/** Rolls deployments out over ReplicaSets. */
export class Deployments implements Controller {
  readonly #cluster: Cluster;
  readonly #queue: WorkQueue;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#queue = new WorkQueue((key) => this.#reconcile(key), { name: "deployments", ...cluster });
    const addOwner = (set: ReplicaSet): void => {
      const key = ownerKey(set, "Deployment");
      if (key !== undefined) this.#queue.add(key);
    };
    cluster.deployments.on({ upserted: (deployment) => this.#queue.add(objectKey(deployment)) });
    cluster.replicaSets.on({ upserted: addOwner, deleted: addOwner });
  }

  stop(): void {
    this.#queue.stop();
  }

  async #reconcile(key: string): Promise<void> {
    const { name, namespace } = splitKey(key);
    const deployment = this.#cluster.deployments.get(name, namespace);
    if (deployment?.spec === undefined || deployment.metadata?.deletionTimestamp !== undefined) return;
    const hash = templateHash(deployment.spec.template);
    const sets = this.#cluster.replicaSets.list().filter((set) => isOwnedBy(set, deployment.metadata?.uid));
    const current = sets.find((set) => set.metadata?.labels?.[HASH_LABEL] === hash);
    if (current === undefined) {
      await this.#createSet(deployment, hash, sets);
      return; // the informer brings it, and with it the next turn
    }
    const old = sets.filter((set) => set !== current);
    if (deployment.spec.paused !== true) await this.#scale(rolloutFacts(deployment, current, old));
    await this.#removeOldest(deployment, old);
    await this.#writeStatus(deployment, current, old);
  }

  async #createSet(deployment: Deployment, hash: string, sets: readonly ReplicaSet[]): Promise<void> {
    const { name = "", namespace } = deployment.metadata ?? {};
    const { template, selector } = deployment.spec ?? {};
    const labels = { ...template?.metadata?.labels, [HASH_LABEL]: hash };
    const revision = 1 + Math.max(0, ...sets.map((set) => Number(set.metadata?.annotations?.[REVISION] ?? 0)));
    try {
      await this.#cluster.client.create(resources.replicaSets, {
        metadata: {
          name: `${name}-${hash}`,
          namespace: namespace ?? "",
          labels,
          annotations: { [REVISION]: String(revision) },
          ownerReferences: controllerReference(deployment),
        },
        spec: {
          replicas: 0,
          selector: { ...selector, matchLabels: { ...selector?.matchLabels, [HASH_LABEL]: hash } },
          template: { ...template, metadata: { ...template?.metadata, labels } },
        },
      });
    } catch (error) {
      if (!isKubeError(error, "KUBE_ALREADY_EXISTS")) throw error;
    }
  }

  async #scale(facts: RolloutFacts & { namespace: string | undefined }): Promise<void> {
    const plan = planRollout(facts);
    for (const set of [facts.current, ...facts.old]) {
      const replicas = plan.get(set.name) ?? set.wanted;
      if (replicas === set.wanted) continue;
      const at = { name: set.name, namespace: facts.namespace };
      await this.#cluster.client.patch(resources.replicaSets, at, { type: "merge", body: { spec: { replicas } } });
    }
  }

  /** Keeps the newest empty sets, for a look back, and removes the others. */
  async #removeOldest(deployment: Deployment, old: readonly ReplicaSet[]): Promise<void> {
    const kept = deployment.spec?.revisionHistoryLimit ?? KEPT_SETS;
    const revision = (set: ReplicaSet): number => Number(set.metadata?.annotations?.[REVISION] ?? 0);
    const empty = old.filter((set) => set.spec?.replicas === 0 && (set.status?.replicas ?? 0) === 0);
    for (const set of empty.toSorted((a, b) => revision(b) - revision(a)).slice(kept)) {
      const { name = "", namespace, uid = "" } = set.metadata ?? {};
      await this.#cluster.client.delete(resources.replicaSets, { name, namespace, uid });
    }
  }

  async #writeStatus(deployment: Deployment, current: ReplicaSet, old: readonly ReplicaSet[]): Promise<void> {
    const status = deploymentStatus(deployment, current, old);
    if (sameJson({ ...deployment.status, ...status }, deployment.status)) return;
    const { name = "", namespace } = deployment.metadata ?? {};
    const body = { status };
    try {
      await this.#cluster.client.patch(
        resources.deployments,
        { name, namespace },
        { type: "merge", body, subresource: "status" },
      );
    } catch (error) {
      if (!isKubeError(error, "KUBE_NOT_FOUND")) throw error;
    }
  }
}

function setFacts(set: ReplicaSet): SetFacts {
  return {
    name: set.metadata?.name ?? "",
    wanted: set.spec?.replicas ?? 0,
    pods: set.status?.replicas ?? 0,
    available: set.status?.availableReplicas ?? 0,
  };
}

function rolloutFacts(
  deployment: Deployment,
  current: ReplicaSet,
  old: readonly ReplicaSet[],
): RolloutFacts & { namespace: string | undefined } {
  const { replicas = 1, strategy } = deployment.spec ?? {};
  const surge = podCount(strategy?.rollingUpdate?.maxSurge, replicas, true);
  const unavailable = podCount(strategy?.rollingUpdate?.maxUnavailable, replicas, false);
  return {
    namespace: deployment.metadata?.namespace,
    replicas,
    recreate: strategy?.type === "Recreate",
    maxSurge: surge === 0 && unavailable === 0 ? 1 : surge, // otherwise nothing could ever move
    maxUnavailable: unavailable,
    current: setFacts(current),
    old: old.map(setFacts),
  };
}

function deploymentStatus(deployment: Deployment, current: ReplicaSet, old: readonly ReplicaSet[]): object {
  const wanted = deployment.spec?.replicas ?? 1;
  const all = [current, ...old];
  const sum = (field: "replicas" | "readyReplicas" | "availableReplicas"): number =>
    all.reduce((total, set) => total + (set.status?.[field] ?? 0), 0);
  const available = sum("availableReplicas");
  const complete = (current.status?.availableReplicas ?? 0) >= wanted && sum("replicas") === wanted;
  const conditions = [
    available >= wanted
      ? { type: "Available", status: "True", reason: "MinimumReplicasAvailable" }
      : { type: "Available", status: "False", reason: "MinimumReplicasUnavailable" },
    { type: "Progressing", status: "True", reason: complete ? "NewReplicaSetAvailable" : "ReplicaSetUpdated" },
  ];
  return {
    observedGeneration: deployment.metadata?.generation ?? 0,
    replicas: sum("replicas"),
    updatedReplicas: current.status?.replicas ?? 0,
    readyReplicas: sum("readyReplicas"),
    availableReplicas: available,
    unavailableReplicas: Math.max(0, wanted - available),
    conditions,
  };
}
