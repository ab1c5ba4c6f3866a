import { isKubeError, isReadyPod, objectKey, resources, type DaemonSet, type Node, type Pod } from "#kube";
import { isActive, isUsableNode, ownerKey, sameJson, splitKey, type Cluster, type Controller } from "./cluster.ts";
import { PodControl, templateHash } from "./pod-control.ts";
import { WorkQueue } from "./work-queue.ts";

const HASH_LABEL = "controller-revision-hash";

/** What a DaemonSet needs next. */
export interface DaemonPlan {
  /** Nodes that shall get a pod. */
  readonly create: readonly string[];
  readonly delete: readonly Pod[];
}

/**
 * One pod on each wanted node; pods of an older template are replaced one node at a time, when the others are ready.
 */
export function planDaemons(nodes: readonly string[], pods: readonly Pod[], hash: string): DaemonPlan {
  const byNode = new Map<string, Pod[]>();
  for (const pod of pods) {
    const node = pod.spec?.nodeName ?? "";
    byNode.set(node, [...(byNode.get(node) ?? []), pod]);
  }
  const isNew = (pod: Pod): boolean => pod.metadata?.labels?.[HASH_LABEL] === hash;
  const create = nodes.filter((node) => !byNode.has(node));
  const misplaced = [...byNode].flatMap(([node, own]) => {
    if (!nodes.includes(node)) return own;
    return own.toSorted((a, b) => Number(isNew(b)) - Number(isNew(a))).slice(1);
  });
  const kept = pods.filter((pod) => !misplaced.includes(pod));
  const outdated = kept.filter((pod) => !isNew(pod));
  const broken = outdated.filter((pod) => !isReadyPod(pod));
  const allReady = create.length === 0 && kept.every(isReadyPod);
  const replaced = broken.length > 0 ? broken : allReady ? outdated.slice(0, 1) : [];
  return { create, delete: [...misplaced, ...replaced] };
}

/** Keeps one pod of each DaemonSet on every node. */
export class DaemonSets implements Controller {
  readonly #cluster: Cluster;
  readonly #pods: PodControl;
  readonly #queue: WorkQueue;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#pods = new PodControl(cluster);
    this.#queue = new WorkQueue((key) => this.#reconcile(key), { name: "daemonsets", ...cluster });
    const addOwner = (pod: Pod): void => {
      const key = ownerKey(pod, "DaemonSet");
      if (key !== undefined) this.#queue.add(key);
    };
    const addAll = (): void => {
      for (const set of cluster.daemonSets.list()) this.#queue.add(objectKey(set));
    };
    cluster.daemonSets.on({ upserted: (set) => this.#queue.add(objectKey(set)) });
    cluster.pods.on({ upserted: addOwner, deleted: addOwner });
    cluster.nodes.on({ upserted: addAll, deleted: addAll });
  }

  stop(): void {
    this.#queue.stop();
  }

  async #reconcile(key: string): Promise<void> {
    const { name, namespace } = splitKey(key);
    const set = this.#cluster.daemonSets.get(name, namespace);
    if (set?.spec === undefined || set.metadata?.deletionTimestamp !== undefined) return;
    const { template } = set.spec;
    const hash = templateHash(template);
    const nodes = this.#nodesFor(set);
    const all = this.#pods.podsOf(set);
    const plan = planDaemons(nodes, all.filter(isActive), hash);
    const labels = { [HASH_LABEL]: hash };
    // The next one would find the ports of the one that is leaving in use.
    const leaving = new Set(
      all.filter((pod) => pod.metadata?.deletionTimestamp !== undefined).map((pod) => pod.spec?.nodeName),
    );
    const create = plan.create.filter((node) => !leaving.has(node));
    await Promise.all(create.map((node) => this.#pods.create(set, template, { labels, node })));
    await Promise.all(plan.delete.map((pod) => this.#pods.delete(pod)));
    await this.#writeStatus(set, nodes, hash);
  }

  /** Nodes that are usable, or were: a pod does not leave a node because the node is not ready for a while. */
  #nodesFor(set: DaemonSet): string[] {
    const selector = Object.entries(set.spec?.template.spec?.nodeSelector ?? {});
    const here = new Set(this.#pods.podsOf(set).map((pod) => pod.spec?.nodeName));
    const fits = (node: Node): boolean =>
      (isUsableNode(node) || here.has(node.metadata?.name)) &&
      selector.every(([label, value]) => node.metadata?.labels?.[label] === value);
    return this.#cluster.nodes
      .list()
      .filter(fits)
      .flatMap((node) => node.metadata?.name ?? []);
  }

  async #writeStatus(set: DaemonSet, nodes: readonly string[], hash: string): Promise<void> {
    const pods = this.#pods.podsOf(set).filter(isActive);
    const ready = pods.filter(isReadyPod).length;
    const status = {
      desiredNumberScheduled: nodes.length,
      currentNumberScheduled: pods.length,
      numberMisscheduled: 0,
      numberReady: ready,
      numberAvailable: ready,
      numberUnavailable: Math.max(0, nodes.length - ready),
      updatedNumberScheduled: pods.filter((pod) => pod.metadata?.labels?.[HASH_LABEL] === hash).length,
      observedGeneration: set.metadata?.generation ?? 0,
    };
    if (sameJson({ ...set.status, ...status }, set.status)) return;
    const { name = "", namespace } = set.metadata ?? {};
    const body = { status };
    try {
      await this.#cluster.client.patch(
        resources.daemonSets,
        { name, namespace },
        { type: "merge", body, subresource: "status" },
      );
    } catch (error) {
      if (!isKubeError(error, "KUBE_NOT_FOUND")) throw error;
    }
  }
}
