import type { Clock } from "#base/clock";
import { sleep } from "#base/clock";
import { messageOf } from "#base/errors";
import { Backoff } from "#base/backoff";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import { isKubeError, resources, type KubeClient, type Node } from "#kube";
import { LatestWrite } from "./latest.ts";
import { wireguardResources, type CiliumNode, type WireGuardNode } from "./objects.ts";
import { formatRecord, KEY_ANNOTATION, parseRecord, RECORD_ANNOTATION, type NodeRecord } from "./record.ts";

/** Marks the CiliumNodes that Veil made, whose addresses it keeps up to date; others are somebody else's, and get annotations only. */
const MANAGED_LABEL = "app.kubernetes.io/managed-by";
const MANAGER = "veil";

/** What {@link NodeObjects} is made of. */
export interface NodeObjectsOptions {
  readonly client: Pick<KubeClient, "get" | "find" | "create" | "patch">;
  readonly node: string;
  /** Whether the key is also published where other software looks for it. */
  readonly foreignKeys: boolean;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** What was published of the node before. */
export interface Published {
  readonly record: NodeRecord | undefined;
  readonly done: number;
}

/** The two objects that are this node's own: its CiliumNode, where others read its keys, and its WireGuardNode, where it reports. */
export class NodeObjects {
  readonly #options: NodeObjectsOptions;
  readonly #records: LatestWrite<NodeRecord>;
  readonly #statuses: LatestWrite<NonNullable<WireGuardNode["status"]>>;
  #record: NodeRecord | undefined;

  constructor(options: NodeObjectsOptions) {
    this.#options = options;
    this.#records = new LatestWrite({
      ...options,
      what: "the node's keys",
      write: (record, signal) => this.#writeRecord(record, signal),
    });
    this.#statuses = new LatestWrite({
      ...options,
      what: "the node's report",
      write: (status, signal) => this.#writeStatus(status, signal),
    });
  }

  /** Makes what is missing of both, and reads what was published before. Waits for the API as long as it takes. */
  async open(signal: AbortSignal): Promise<Published> {
    const { clock, random, log } = this.#options;
    const backoff = new Backoff({ initialMs: 100, maxMs: 5_000 }, random);
    for (;;) {
      try {
        return await this.#openOnce(signal);
      } catch (error) {
        signal.throwIfAborted();
        log.warn({ error: messageOf(error) }, "the node's wireguard objects cannot be read yet, trying again");
        await sleep(clock, backoff.next(), signal);
      }
    }
  }

  /** Publishes keys; soon, and until it has succeeded. */
  publish(record: NodeRecord): void {
    this.#record = record;
    this.#records.take(record);
  }

  /** Publishes them again when the object says something else: nobody but this node knows its keys. */
  observe(object: CiliumNode): void {
    const record = this.#record;
    if (record !== undefined && object.metadata?.annotations?.[RECORD_ANNOTATION] !== formatRecord(record)) {
      this.#records.take(record);
    }
  }

  /** Reports; soon, and until it has succeeded. */
  report(status: NonNullable<WireGuardNode["status"]>): void {
    this.#statuses.take(status);
  }

  /** Reports, and waits until that is written. */
  async reportNow(status: NonNullable<WireGuardNode["status"]>, signal: AbortSignal): Promise<void> {
    await this.#writeStatus(status, signal);
  }

  /** Follows the node's addresses and ranges, where the CiliumNode is Veil's own. */
  async follow(node: Node, object: CiliumNode, signal?: AbortSignal): Promise<void> {
    if (object.metadata?.labels?.[MANAGED_LABEL] !== MANAGER) return;
    const spec = specOf(node);
    if (JSON.stringify(spec) === JSON.stringify(object.spec)) return;
    const at = { name: this.#options.node, signal };
    await this.#options.client.patch(wireguardResources.ciliumNodes, at, { type: "merge", body: { spec } });
  }

  async stop(): Promise<void> {
    await Promise.all([this.#records.stop(), this.#statuses.stop()]);
  }

  async #openOnce(signal: AbortSignal): Promise<Published> {
    const { client, node: name } = this.#options;
    const node = await client.get(resources.nodes, name, { signal });
    const metadata = { name, labels: { [MANAGED_LABEL]: MANAGER }, ownerReferences: ownedBy(node) };
    const ciliumNode =
      (await client.find(wireguardResources.ciliumNodes, { name, signal })) ??
      (await client.create(wireguardResources.ciliumNodes, { metadata, spec: specOf(node) }, { signal }));
    await this.follow(node, ciliumNode, signal);
    const found =
      (await client.find(wireguardResources.wireguardNodes, { name, signal })) ??
      (await client.create(wireguardResources.wireguardNodes, { metadata }, { signal }));
    const record = parseRecord(ciliumNode.metadata?.annotations?.[RECORD_ANNOTATION] ?? "");
    return { record: typeof record === "string" ? undefined : record, done: found.status?.done ?? -1 };
  }

  async #writeRecord(record: NodeRecord, signal: AbortSignal): Promise<void> {
    const { client, node: name, foreignKeys } = this.#options;
    const key = foreignKeys && record.keys[0] !== undefined ? { [KEY_ANNOTATION]: record.keys[0].publicKey } : {};
    const annotations = { ...key, [RECORD_ANNOTATION]: formatRecord(record) };
    const body = { metadata: { annotations } };
    await client.patch(wireguardResources.ciliumNodes, { name, signal }, { type: "merge", body });
  }

  async #writeStatus(status: NonNullable<WireGuardNode["status"]>, signal: AbortSignal): Promise<void> {
    const { client, node: name } = this.#options;
    const at = { name, signal };
    try {
      await client.patch(wireguardResources.wireguardNodes, at, {
        type: "merge",
        subresource: "status",
        body: { status },
      });
    } catch (error) {
      if (isKubeError(error, "KUBE_NOT_FOUND")) await this.#openOnce(signal); // deleted by hand: made again, then written again
      throw error;
    }
  }
}

/** A node's objects go with it. */
function ownedBy(node: Node): { apiVersion: string; kind: string; name: string; uid: string }[] {
  const { name = "", uid = "" } = node.metadata ?? {};
  return [{ apiVersion: "v1", kind: "Node", name, uid }];
}

function specOf(node: Node): NonNullable<CiliumNode["spec"]> {
  const addresses = (node.status?.addresses ?? [])
    .filter(({ type }) => type === "InternalIP")
    .map(({ type, address }) => ({ type, ip: address }));
  const podCIDRs = node.spec?.podCIDRs ?? (node.spec?.podCIDR === undefined ? [] : [node.spec.podCIDR]);
  return { addresses, ipam: { podCIDRs } };
}
