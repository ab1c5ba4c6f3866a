import { every } from "#base/clock";
import { messageOf } from "#base/errors";
import { resources, type Lease, type Node } from "#kube";
import type { Cluster, Controller } from "./cluster.ts";

const LEASE_NAMESPACE = "kube-node-lease";
/** As Kubernetes: a node that has not renewed its lease for this long is no longer known to be ready. */
const GRACE_MS = 40_000;
const PERIOD_MS = 5_000;

/** True when a node that calls itself ready has not been heard of within the grace period. */
export function isSilent(node: Node, lease: Lease | undefined, nowMs: number): boolean {
  const ready = node.status?.conditions?.find(({ type }) => type === "Ready");
  if (ready?.status !== "True") return false;
  const renewed = Date.parse(lease?.spec?.renewTime ?? "") || 0;
  const reported = Date.parse(ready.lastHeartbeatTime ?? "") || 0;
  return nowMs - Math.max(renewed, reported) > GRACE_MS;
}

/** Marks nodes whose kubelet is silent; the kubelet itself marks them as ready again. */
export class NodeHealth implements Controller {
  readonly #cluster: Cluster;
  readonly #stop: () => void;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#stop = every(cluster.clock, PERIOD_MS, () => void this.#look());
  }

  stop(): void {
    this.#stop();
  }

  async #look(): Promise<void> {
    const { nodes, leases, clock, log } = this.#cluster;
    if (!leases.connected) return; // then it is us who hear nothing
    for (const node of nodes.list()) {
      const lease = leases.get(node.metadata?.name ?? "", LEASE_NAMESPACE);
      if (!isSilent(node, lease, clock.now())) continue;
      await this.#mark(node).catch((error: unknown) =>
        log.warn({ node: node.metadata?.name, error: messageOf(error) }, "node cannot be marked"),
      );
    }
  }

  async #mark(node: Node): Promise<void> {
    const { client, clock } = this.#cluster;
    const time = `${new Date(clock.now()).toISOString().slice(0, 19)}Z`;
    const conditions = (node.status?.conditions ?? []).map((condition) =>
      condition.type === "Ready"
        ? {
            ...condition,
            status: "Unknown",
            reason: "NodeStatusUnknown",
            message: "Kubelet stopped posting node status.",
            lastTransitionTime: time,
          }
        : condition,
    );
    const body = { status: { conditions } };
    await client.patch(
      resources.nodes,
      { name: node.metadata?.name ?? "" },
      { type: "merge", body, subresource: "status" },
    );
  }
}
