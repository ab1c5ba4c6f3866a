import { isKubeError, isReadyPod, objectKey, resources, type Pod, type ReplicaSet } from "#kube";
import { isActive, ownerKey, sameJson, splitKey, type Cluster, type Controller } from "./cluster.ts";
import { PodControl } from "./pod-control.ts";
import { WorkQueue } from "./work-queue.ts";

/** The pods of a set that have to go so that `wanted` are left: those that are not ready first, then the newest. */
export function surplusPods(pods: readonly Pod[], wanted: number): Pod[] {
  const rank = (pod: Pod): number => (pod.spec?.nodeName === undefined ? 0 : isReadyPod(pod) ? 2 : 1);
  const created = (pod: Pod): string => pod.metadata?.creationTimestamp ?? "";
  const order = pods.toSorted((a, b) => rank(a) - rank(b) || (created(a) < created(b) ? 1 : -1));
  return order.slice(0, Math.max(0, pods.length - wanted));
}

/** Keeps as many pods as each ReplicaSet wants. */
export class ReplicaSets implements Controller {
  readonly #cluster: Cluster;
  readonly #pods: PodControl;
  readonly #queue: WorkQueue;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#pods = new PodControl(cluster);
    this.#queue = new WorkQueue((key) => this.#reconcile(key), { name: "replicasets", ...cluster });
    const add = (set: ReplicaSet): void => this.#queue.add(objectKey(set));
    const addOwner = (pod: Pod): void => {
      const key = ownerKey(pod, "ReplicaSet");
      if (key !== undefined) this.#queue.add(key);
    };
    cluster.replicaSets.on({ upserted: add });
    cluster.pods.on({ upserted: addOwner, deleted: addOwner });
  }

  stop(): void {
    this.#queue.stop();
  }

  async #reconcile(key: string): Promise<void> {
    const { name, namespace } = splitKey(key);
    const set = this.#cluster.replicaSets.get(name, namespace);
    if (set?.spec === undefined || set.metadata?.deletionTimestamp !== undefined) return;
    const pods = this.#pods.podsOf(set).filter(isActive);
    const wanted = set.spec.replicas ?? 1;
    const template = set.spec.template;
    if (template !== undefined) {
      await Promise.all(Array.from({ length: wanted - pods.length }, () => this.#pods.create(set, template, {})));
    }
    await Promise.all(surplusPods(pods, wanted).map((pod) => this.#pods.delete(pod)));
    await this.#writeStatus(set);
  }

  async #writeStatus(set: ReplicaSet): Promise<void> {
    const pods = this.#pods.podsOf(set).filter(isActive);
    const ready = pods.filter(isReadyPod).length;
    const status = {
      replicas: pods.length,
      fullyLabeledReplicas: pods.length,
      readyReplicas: ready,
      availableReplicas: ready,
      observedGeneration: set.metadata?.generation ?? 0,
    };
    if (sameJson({ ...set.status, ...status }, set.status)) return;
    const { name = "", namespace } = set.metadata ?? {};
    try {
      await this.#cluster.client.patch(
        resources.replicaSets,
        { name, namespace },
        { type: "merge", body: { status }, subresource: "status" },
      );
    } catch (error) {
      if (!isKubeError(error, "KUBE_NOT_FOUND")) throw error;
    }
  }
}
