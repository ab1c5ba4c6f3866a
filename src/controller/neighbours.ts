import type { CellSet } from "#base/metrics";
import { isLive, NEIGHBOURS, type Neighbour } from "#discovery";
import { objectKey, type Informer, type Pod } from "#kube";
import { warnOnOwnPod, type OwnEventTools } from "./own-event.ts";

const ALL: readonly Neighbour[] = Object.values(NEIGHBOURS);

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
        for (const one of ALL) this.#look(one, pod, isLive(pod) && one.isPod(pod, options.namespace));
        if (pod.metadata?.name === options.podName && old === undefined) this.#tellAll();
      },
      deleted: (pod) => ALL.forEach((one) => this.#look(one, pod, false)),
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
