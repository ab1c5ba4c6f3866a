import { Backoff } from "#base/backoff";
import { sleep } from "#base/clock";
import { messageOf } from "#base/errors";
import { isKubeError, resources, type Pod } from "#kube";
import { podStatus, type PodFacts } from "./container-state.ts";
import type { NodeParts } from "./pod-parts.ts";

const RETRY = { initialMs: 100, maxMs: 5_000 };

/** Names the node's end of a pod's link. */
const VETH_ANNOTATION = "veil.dev/veth";

/** Writes a pod's status, the newest only, one write at a time, again until the API has it or the pod is gone. */
export class StatusWriter {
  readonly #parts: NodeParts;
  readonly #pod: () => Pod;
  readonly #stop = new AbortController();
  #wanted: PodFacts | undefined;
  #written = "";
  #last: Pod["status"];
  #writing: Promise<void> | undefined;

  constructor(parts: NodeParts, pod: () => Pod) {
    this.#parts = parts;
    this.#pod = pod;
    this.#last = pod().status;
  }

  set(facts: PodFacts): void {
    if (this.#stop.signal.aborted) return;
    this.#wanted = facts;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  /** Resolves when the newest status is written, or cannot be any more. */
  async flush(): Promise<void> {
    await this.#writing;
  }

  /** Nothing is written any more. */
  stop(): void {
    this.#stop.abort();
  }

  async #write(): Promise<void> {
    const { clock, random } = this.#parts;
    const backoff = new Backoff(RETRY, random);
    await Promise.resolve(); // several changes of one turn become one write
    for (let facts = this.#take(); facts !== undefined; facts = this.#take()) {
      const written = await this.#writeOnce(facts);
      if (this.#stop.signal.aborted) return;
      if (written) continue;
      this.#wanted ??= facts;
      await sleep(clock, backoff.next(), this.#stop.signal).catch(() => undefined);
    }
  }

  /** False: to be tried again. */
  async #writeOnce(facts: PodFacts): Promise<boolean> {
    const { clock, client, log } = this.#parts;
    const { uid, name = "", namespace } = this.#pod().metadata ?? {};
    const status = podStatus(facts, this.#last, clock.now());
    const text = JSON.stringify(status);
    if (text === this.#written) return true;
    const annotations = facts.veth === undefined ? {} : { annotations: { [VETH_ANNOTATION]: facts.veth } };
    const body = { metadata: { uid, ...annotations }, status };
    const { signal } = this.#stop;
    try {
      await client.patch(resources.pods, { name, namespace }, { type: "merge", body, subresource: "status", signal });
      this.#written = text;
      this.#last = status;
      return true;
    } catch (error) {
      // The object is gone, or is another one by now.
      if (isKubeError(error, "KUBE_NOT_FOUND") || isKubeError(error, "KUBE_CONFLICT")) return true;
      if (!signal.aborted) log.warn({ pod: name, namespace, error: messageOf(error) }, "pod status cannot be written");
      return false;
    }
  }

  #take(): PodFacts | undefined {
    const facts = this.#wanted;
    this.#wanted = undefined;
    return facts;
  }
}
