import type { Service } from "#base/service";
import { heededLabels, type Enrolment } from "#enrolment";
import type { Informer, Namespace, Pod } from "#kube";
import type { LabelWarnings } from "./label-warnings.ts";
import { podFacts } from "./pod-facts.ts";

/** What {@link Following} works with. */
export interface FollowingParts {
  readonly pods: Pick<Informer<Pod>, "on" | "start" | "drain">;
  readonly namespaces: Pick<Informer<Namespace>, "on" | "start" | "drain">;
  readonly enrolment: Pick<Enrolment, "setNamespace" | "upsertPod" | "removePod" | "synced">;
  readonly warnings: Pick<LabelWarnings, "look">;
  /** Labels by which pods are enrolled; others of them are not seen. */
  readonly enrolLabels: readonly string[];
  /** Called once pods that were enrolled before are taken over. */
  readonly onSynced?: (() => Promise<void>) | undefined;
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
    const { pods, namespaces, enrolment, warnings, enrolLabels } = this.#parts;
    namespaces.on({
      upserted: ({ metadata }) => {
        const labels = heededLabels(metadata?.labels ?? {}, enrolLabels);
        warnings.look("Namespace", { ...metadata, labels });
        enrolment.setNamespace(metadata?.name ?? "", labels);
      },
      deleted: ({ metadata }) => enrolment.setNamespace(metadata?.name ?? "", undefined),
    });
    pods.on({
      upserted: (pod) => {
        const labels = heededLabels(pod.metadata?.labels ?? {}, enrolLabels);
        warnings.look("Pod", { ...pod.metadata, labels });
        enrolment.upsertPod({ ...podFacts(pod), labels });
      },
      deleted: (pod) => enrolment.removePod(podFacts(pod).uid),
    });
    await Promise.all([namespaces.start(signal), pods.start(signal)]);
    await enrolment.synced();
    await this.#parts.onSynced?.();
    this.#started = true;
  }

  async drain(deadlineMs: number): Promise<void> {
    const { pods, namespaces } = this.#parts;
    await Promise.all([pods.drain(deadlineMs), namespaces.drain(deadlineMs)]);
  }
}
