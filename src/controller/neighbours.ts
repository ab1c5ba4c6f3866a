import type { CellSet } from "#base/metrics";
import { isLive } from "#discovery";
import { objectKey, type Informer, type Pod } from "#kube";
import { warnOnOwnPod, type OwnEventTools } from "./own-event.ts";

/** Another that encrypts, enrols or routes on the same cluster. */
interface Neighbour {
  readonly name: string;
  readonly isPod: (pod: Pod, ownNamespace: string) => boolean;
  /** What it means for both, and what to do. */
  readonly advice: string;
}

const hasLabel =
  (label: string, value: string) =>
  ({ metadata }: Pod): boolean =>
    metadata?.labels?.[label] === value;

/** By the labels that their charts give to their pods, whatever the namespace. */
const NEIGHBOURS: readonly Neighbour[] = [
  {
    name: "Istio",
    isPod: hasLabel("app", "istiod"),
    advice:
      "pods with its sidecar are left to it; AuthorizationPolicies and PeerAuthentications count for both; ConfigMap istio-ca-root-cert is left to it: Veil's own parts use veil-ca-root-cert; pods that mount Veil's roots need another name (chart value trustBundle)",
  },
  {
    name: "Istio's ambient mode",
    isPod: hasLabel("k8s-app", "istio-cni-node"),
    advice:
      "it enrols what carries istio.io/dataplane-mode=ambient, too: let Veil enrol by io.cilium/mtls-enabled alone (chart value enrolLabels)",
  },
  {
    name: "Cilium",
    isPod: hasLabel("k8s-app", "cilium"),
    advice: "its network policies are enforced by it alone; they must let in TCP 15008 between enrolled pods",
  },
  {
    name: "Cilium's mutual TLS",
    isPod: ({ metadata }) =>
      metadata?.namespace === "kube-system" && metadata.name?.startsWith("ztunnel-cilium-") === true,
    advice:
      "it enrols what carries io.cilium/mtls-enabled=true, too: let Veil enrol by istio.io/dataplane-mode alone (chart value enrolLabels)",
  },
  {
    name: "another Veil",
    isPod: (pod, own) => pod.metadata?.namespace !== own && hasLabel("app", "veil-agent")(pod),
    advice: "both enrol the same pods: uninstall one of the two",
  },
];

/** A neighbour that was found. */
export interface FoundNeighbour {
  readonly name: string;
  /** `namespace/name` of the pods by which it was found. */
  readonly pods: readonly string[];
  readonly advice: string;
}

interface NeighboursOptions extends OwnEventTools {
  readonly pods: Pick<Informer<Pod>, "on" | "get">;
  readonly metrics: CellSet;
}

/**
 * Finds others on the cluster that do what Veil does, or a part of it: named in the log, in a metric, on the page `/neighbours`, and
 * by an event on the controller's own pod, each with what to do. Changes nothing of theirs. Holds one entry per pod of theirs.
 */
export class Neighbours {
  readonly #options: NeighboursOptions;
  readonly #found = new Map<Neighbour, Set<string>>();

  /** Follows `pods` for as long as that runs. */
  constructor(options: NeighboursOptions) {
    this.#options = options;
    options.pods.on({
      upserted: (pod, old) => {
        for (const one of NEIGHBOURS) this.#look(one, pod, isLive(pod) && one.isPod(pod, options.namespace));
        if (pod.metadata?.name === options.podName && old === undefined) this.#tellAll();
      },
      deleted: (pod) => NEIGHBOURS.forEach((one) => this.#look(one, pod, false)),
    });
  }

  list(): readonly FoundNeighbour[] {
    return [...this.#found].map(([{ name, advice }, pods]) => ({ name, advice, pods: [...pods].toSorted() }));
  }

  #look(neighbour: Neighbour, pod: Pod, isTheirs: boolean): void {
    const key = objectKey(pod);
    const pods = this.#found.get(neighbour);
    if (isTheirs && pods !== undefined) pods.add(key);
    else if (isTheirs) this.#find(neighbour, key);
    else if (pods?.delete(key) === true && pods.size === 0) {
      this.#found.delete(neighbour);
      this.#count(neighbour, 0);
    }
  }

  #find(neighbour: Neighbour, pod: string): void {
    const { name, advice } = neighbour;
    this.#found.set(neighbour, new Set([pod]));
    this.#count(neighbour, 1);
    this.#options.log.warn({ neighbour: name, pod, advice }, "not alone on the cluster");
    this.#tell(neighbour);
  }

  #count({ name }: Neighbour, value: number): void {
    this.#options.metrics.bind("veil_controller_neighbours", { name }).value = value;
  }

  #tellAll(): void {
    for (const neighbour of this.#found.keys()) this.#tell(neighbour);
  }

  #tell({ name, advice }: Neighbour): void {
    const message = `${name} is on this cluster: ${advice}`;
    warnOnOwnPod(this.#options, { key: name, reason: "VeilNotAlone", message });
  }
}
