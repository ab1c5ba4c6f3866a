import { hash } from "node:crypto";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { CellSet } from "#base/metrics";
import { isLive } from "#discovery";
import { objectKey, resources, warningEvent, type Informer, type KubeClient, type Pod } from "#kube";

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
      "pods with its sidecar are left to it; AuthorizationPolicies and PeerAuthentications count for both; ConfigMap istio-ca-root-cert is its own: give Veil's another name (chart value trustBundle)",
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

interface NeighboursOptions {
  readonly pods: Pick<Informer<Pod>, "on" | "get">;
  /** Veil's namespace, and the controller's own pod in it: there the event is written. */
  readonly namespace: string;
  readonly podName: string;
  readonly client: Pick<KubeClient, "create">;
  readonly metrics: CellSet;
  readonly clock: Clock;
  readonly log: Log;
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

  /** Where the controller runs outside of a pod there is no object to tell it on. */
  #tell({ name, advice }: Neighbour): void {
    const { pods, namespace, podName, client, clock, log } = this.#options;
    const own = pods.get(podName, namespace);
    if (own === undefined) return;
    const { uid = "" } = own.metadata ?? {};
    const event = warningEvent({
      name: `veil-neighbour.${hash("sha256", `${uid}\0${name}`, "hex").slice(0, 16)}`,
      namespace,
      about: { apiVersion: "v1", kind: "Pod", name: podName, namespace, uid },
      reason: "VeilNotAlone",
      message: `${name} is on this cluster: ${advice}`,
      source: { component: "veil-controller" },
      timeMs: clock.now(),
    });
    client
      .create(resources.events, event)
      .catch((error: unknown) =>
        log.debug({ error: messageOf(error) }, "event not written: it is there, or the api is away"),
      );
  }
}
