import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import { isKubeError, resources, type KubeClient, type Node } from "#kube";
import { formatTime } from "./container-state.ts";

/** How this node shows itself. */
export interface NodeIdentity {
  readonly name: string;
  readonly address: string;
  readonly podCidr: string;
  /** Port of the kubelet's own API. */
  readonly port: number;
  readonly version: string;
}

const LEASE_NAMESPACE = "kube-node-lease";
const LEASE_SECONDS = 40;
const RENEW_MS = 10_000;
const RETRY = { initialMs: 100, maxMs: 5_000 };

/** Keeps the Node object there and its lease renewed. */
export class NodeReporter {
  readonly #client: KubeClient;
  readonly #node: NodeIdentity;
  readonly #parts: { clock: Clock; random: Random; log: Log };
  readonly #stop = new AbortController();

  constructor(client: KubeClient, node: NodeIdentity, parts: { clock: Clock; random: Random; log: Log }) {
    this.#client = client;
    this.#node = node;
    this.#parts = parts;
  }

  /** Resolves when the node is registered as ready; goes on renewing its lease. */
  async start(signal: AbortSignal): Promise<void> {
    await this.#insist(() => this.#register(), AbortSignal.any([signal, this.#stop.signal]));
    void this.#renewForEver();
  }

  stop(): void {
    this.#stop.abort();
  }

  async #renewForEver(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await this.#insist(() => this.#renew(), signal).catch(() => undefined);
      await sleep(this.#parts.clock, RENEW_MS, signal).catch(() => undefined);
    }
  }

  async #insist(work: () => Promise<void>, signal: AbortSignal): Promise<void> {
    const { clock, random, log } = this.#parts;
    const backoff = new Backoff(RETRY, random);
    for (;;) {
      signal.throwIfAborted();
      try {
        return await work();
      } catch (error) {
        log.warn({ node: this.#node.name, error: messageOf(error) }, "node cannot be reported, trying again");
        await sleep(clock, backoff.next(), signal);
      }
    }
  }

  async #register(): Promise<void> {
    const { name, podCidr } = this.#node;
    const wanted = nodeObject(this.#node);
    try {
      await this.#client.create(resources.nodes, wanted);
    } catch (error) {
      if (!isKubeError(error, "KUBE_ALREADY_EXISTS")) throw error;
      const known = await this.#client.get(resources.nodes, name);
      if (known.spec?.podCIDR !== podCidr) {
        await this.#client.patch(resources.nodes, { name }, { type: "merge", body: { spec: wanted.spec } });
      }
    }
    await this.#writeStatus();
  }

  async #writeStatus(): Promise<void> {
    const { name } = this.#node;
    const known = await this.#client.get(resources.nodes, name);
    const body = { status: nodeStatus(this.#node, known, this.#parts.clock.now()) };
    await this.#client.patch(resources.nodes, { name }, { type: "merge", body, subresource: "status" });
  }

  async #renew(): Promise<void> {
    const { name } = this.#node;
    const at = { name, namespace: LEASE_NAMESPACE };
    const renewTime = new Date(this.#parts.clock.now()).toISOString().replace("Z", "000Z");
    const spec = { holderIdentity: name, leaseDurationSeconds: LEASE_SECONDS, renewTime };
    try {
      await this.#client.patch(resources.leases, at, { type: "merge", body: { spec } });
    } catch (error) {
      if (!isKubeError(error, "KUBE_NOT_FOUND")) throw error;
      await this.#client.create(resources.leases, { metadata: at, spec });
    }
    const node = await this.#client.get(resources.nodes, name).catch((error: unknown) => {
      if (isKubeError(error, "KUBE_NOT_FOUND")) return undefined;
      throw error;
    });
    if (node === undefined) await this.#register();
    else if (!isReady(node)) await this.#writeStatus();
  }
}

/** True when the API shows the node as ready. */
function isReady(node: Node): boolean {
  return node.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
}

function nodeObject(node: NodeIdentity): Node {
  const labels = {
    "kubernetes.io/hostname": node.name,
    "kubernetes.io/os": "linux",
    "kubernetes.io/arch": process.arch === "x64" ? "amd64" : process.arch,
  };
  return { metadata: { name: node.name, labels }, spec: { podCIDR: node.podCidr, podCIDRs: [node.podCidr] } };
}

function nodeStatus(node: NodeIdentity, known: Node, nowMs: number): NonNullable<Node["status"]> {
  const time = formatTime(nowMs);
  const since = isReady(known)
    ? known.status?.conditions?.find(({ type }) => type === "Ready")?.lastTransitionTime
    : undefined;
  const capacity = { cpu: "2", memory: "4Gi", pods: "250" };
  return {
    addresses: [
      { type: "InternalIP", address: node.address },
      { type: "Hostname", address: node.name },
    ],
    daemonEndpoints: { kubeletEndpoint: { Port: node.port } },
    conditions: [
      {
        type: "Ready",
        status: "True",
        reason: "KubeletReady",
        message: "kubelet is posting ready status",
        lastHeartbeatTime: time,
        lastTransitionTime: since ?? time,
      },
    ],
    capacity,
    allocatable: capacity,
    nodeInfo: {
      kubeletVersion: node.version,
      kubeProxyVersion: node.version,
      containerRuntimeVersion: "veil://1",
      osImage: "Veil lab",
      operatingSystem: "linux",
      architecture: process.arch === "x64" ? "amd64" : process.arch,
      kernelVersion: "",
      machineID: "",
      systemUUID: "",
      bootID: "",
    },
  };
}
