import { isKubeError, objectKey, resourcePath, resources, type Node, type Pod } from "#kube";
import { isActive, isUsableNode, splitKey, type Cluster, type Controller } from "./cluster.ts";
import { WorkQueue } from "./work-queue.ts";

/**
 * Chooses a node for a pod: among those that are ready and carry the labels that the pod asks for, the one with the
 * fewest pods of the same owner, then with the fewest pods, then the first by name. Undefined: none fits.
 */
export function chooseNode(pod: Pod, nodes: readonly Node[], pods: readonly Pod[]): string | undefined {
  const selector = Object.entries(pod.spec?.nodeSelector ?? {});
  const fitting = nodes.filter(
    (node) => isUsableNode(node) && selector.every(([key, value]) => node.metadata?.labels?.[key] === value),
  );
  const owner = ownerUid(pod);
  const load = (name: string | undefined): [number, number] => {
    const here = pods.filter((other) => other.spec?.nodeName === name && isActive(other));
    const same = owner === undefined ? 0 : here.filter((other) => ownerUid(other) === owner).length;
    return [same, here.length];
  };
  const ranked = fitting
    .map((node) => ({ name: node.metadata?.name ?? "", load: load(node.metadata?.name) }))
    .toSorted((a, b) => a.load[0] - b.load[0] || a.load[1] - b.load[1] || (a.name < b.name ? -1 : 1));
  return ranked[0]?.name;
}

function ownerUid(pod: Pod): string | undefined {
  return pod.metadata?.ownerReferences?.find((owner) => owner.controller === true)?.uid;
}

function isUnbound(pod: Pod): boolean {
  return isActive(pod) && (pod.spec?.nodeName ?? "") === "";
}

/** Binds pods to nodes, one at a time, so that each choice sees the one before. */
export class Scheduler implements Controller {
  readonly #cluster: Cluster;
  readonly #queue: WorkQueue;
  /** Pods that were bound and that the informer does not show as bound yet. */
  readonly #bound = new Map<string, Pod>();
  #turn: Promise<void> = Promise.resolve();

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#queue = new WorkQueue((key) => this.#inTurn(key), { name: "scheduler", ...cluster });
    cluster.pods.on({
      upserted: (pod) => {
        if (isUnbound(pod)) this.#queue.add(objectKey(pod));
        else this.#bound.delete(pod.metadata?.uid ?? "");
      },
      deleted: (pod) => void this.#bound.delete(pod.metadata?.uid ?? ""),
    });
    cluster.nodes.on({
      upserted: (node, old) => {
        if (isUsableNode(node) && (old === undefined || !isUsableNode(old))) this.#retryAll();
      },
    });
  }

  stop(): void {
    this.#queue.stop();
  }

  #retryAll(): void {
    for (const pod of this.#cluster.pods.list()) {
      if (isUnbound(pod)) this.#queue.add(objectKey(pod));
    }
  }

  #inTurn(key: string): Promise<void> {
    const work = this.#turn.then(() => this.#schedule(key));
    this.#turn = work.catch(() => undefined);
    return work;
  }

  async #schedule(key: string): Promise<void> {
    const { client, nodes, pods } = this.#cluster;
    const { namespace, name } = splitKey(key);
    const pod = pods.get(name, namespace);
    const uid = pod?.metadata?.uid ?? "";
    if (pod === undefined || !isUnbound(pod) || this.#bound.has(uid)) return;
    const node = chooseNode(pod, nodes.list(), [...pods.list(), ...this.#bound.values()]);
    if (node === undefined) return this.#tellUnschedulable(pod, nodes.list().length);
    const body = {
      apiVersion: "v1",
      kind: "Binding",
      metadata: { name, namespace, uid },
      target: { apiVersion: "v1", kind: "Node", name: node },
    };
    const path = resourcePath(resources.pods, { namespace, name, subresource: "binding" });
    try {
      await client.request({ method: "POST", path, body });
      this.#remember(pod, node);
    } catch (error) {
      // Somebody has deleted or bound it meanwhile.
      if (!isKubeError(error, "KUBE_NOT_FOUND") && !isKubeError(error, "KUBE_CONFLICT")) throw error;
    }
  }

  #remember(pod: Pod, nodeName: string): void {
    const { name = "", namespace, uid = "" } = pod.metadata ?? {};
    const seen = this.#cluster.pods.get(name, namespace);
    if (seen === undefined || !isUnbound(seen)) return;
    this.#bound.set(uid, { ...pod, spec: { containers: [], ...pod.spec, nodeName } });
  }

  async #tellUnschedulable(pod: Pod, nodeCount: number): Promise<void> {
    const message = `0/${nodeCount} nodes are available: none is ready and has the labels of the pod's nodeSelector`;
    const told = pod.status?.conditions?.some((one) => one.type === "PodScheduled" && one.message === message);
    if (told === true) return;
    const condition = { type: "PodScheduled", status: "False", reason: "Unschedulable", message };
    const { name = "", namespace } = pod.metadata ?? {};
    const body = { status: { phase: "Pending", conditions: [condition] } };
    await this.#cluster.client.patch(
      resources.pods,
      { name, namespace },
      { type: "merge", body, subresource: "status" },
    );
  }
}
