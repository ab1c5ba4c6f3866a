import type { Transport } from "@connectrpc/connect";
import { formatHostPort } from "#base/ip";
import { isLive } from "#discovery";
import type { Informer, Pod } from "#kube";
import { rpcTransport } from "#rpc";

/** Another replica of the controller. */
export interface Peer {
  /** Its pod's name. */
  readonly name: string;
  readonly transport: Transport;
}

/** Where replicas are, and how they prove themselves. */
export interface PeersOptions {
  readonly pods: Pick<Informer<Pod>, "on">;
  /** Namespace of Veil. */
  readonly namespace: string;
  /** What the label `app` of all replicas' pods says. */
  readonly app: string;
  /** Name of this replica's own pod. */
  readonly self: string;
  /** The port of gRPC, the same for all replicas. */
  readonly port: number;
  readonly serverName: string;
  readonly roots: () => string;
}

/**
 * The other replicas, from the pods that the API has: also those that are not ready or about to go, because nodes may
 * still be connected to them.
 */
export class Peers {
  readonly #options: PeersOptions;
  readonly #peers = new Map<string, Peer & { readonly ip: string }>();

  /** Follows `pods` for as long as that runs. */
  constructor(options: PeersOptions) {
    this.#options = options;
    options.pods.on({
      upserted: (pod) => this.#take(pod),
      deleted: (pod) => {
        if (this.#isReplica(pod)) this.#peers.delete(pod.metadata?.name ?? "");
      },
    });
  }

  /** All that have an address. */
  list(): readonly Peer[] {
    return [...this.#peers.values()];
  }

  #take(pod: Pod): void {
    const { name = "" } = pod.metadata ?? {};
    const ip = pod.status?.podIP;
    if (!this.#isReplica(pod)) return;
    if (!isLive(pod) || ip === undefined || ip === "") {
      this.#peers.delete(name);
      return;
    }
    if (this.#peers.get(name)?.ip === ip) return;
    const { port, serverName, roots } = this.#options;
    const transport = rpcTransport({ target: `https://${formatHostPort(ip, port)}`, serverName, roots });
    this.#peers.set(name, { name, ip, transport });
  }

  #isReplica({ metadata }: Pod): boolean {
    const { namespace, app, self } = this.#options;
    if (metadata?.namespace !== namespace || metadata.name === self) return false;
    return metadata.labels?.["app"] === app;
  }
}
