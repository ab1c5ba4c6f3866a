import type { Service } from "#base/service";
import type { Enrolment } from "#enrolment";
import type { Informer, Namespace, Pod } from "#kube";
import type { LabelWarnings } from "./label-warnings.ts";
import { podFacts } from "./pod-facts.ts";

interface FollowingParts {
  readonly pods: Informer<Pod>;
  readonly namespaces: Informer<Namespace>;
  readonly enrolment: Enrolment;
  readonly warnings: LabelWarnings;
}

/** Tells enrolment what the API knows of this node's pods, from the first complete picture on. */
export class Following implements Service {
  readonly name = "informers";
  readonly #parts: FollowingParts;
  #started = false;

  constructor(parts: FollowingParts) {
    this.#parts = parts;
  }

  /** True once the pods of the node are known and taken over. */
  get started(): boolean {
    return this.#started;
  }

  async start(signal: AbortSignal): Promise<void> {
    const { pods, namespaces, enrolment, warnings } = this.#parts;
    namespaces.on({
      upserted: ({ metadata }) => {
        warnings.look("Namespace", metadata);
        enrolment.setNamespace(metadata?.name ?? "", metadata?.labels ?? {});
      },
      deleted: ({ metadata }) => enrolment.setNamespace(metadata?.name ?? "", undefined),
    });
    pods.on({
      upserted: (pod) => {
        warnings.look("Pod", pod.metadata);
        enrolment.upsertPod(podFacts(pod));
      },
      deleted: (pod) => enrolment.removePod(podFacts(pod).uid),
    });
    await Promise.all([namespaces.start(signal), pods.start(signal)]);
    await enrolment.synced();
    this.#started = true;
  }

  async drain(deadlineMs: number): Promise<void> {
    const { pods, namespaces } = this.#parts;
    await Promise.all([pods.drain(deadlineMs), namespaces.drain(deadlineMs)]);
  }
}
