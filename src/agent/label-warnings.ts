import { createHash } from "node:crypto";
import { misreadLabels } from "#enrolment";
import type { ObjectMeta } from "#kube";
import { writeWarning, type EventTools } from "./warning-event.ts";

/** Objects that were warned about are remembered up to this many; a repetition costs one refused write. */
const MAX_REMEMBERED = 10_000;

/**
 * Says it on the object, as a Kubernetes event, when a label that was meant to enrol has a value that means nothing. All agents that
 * see the object write the same event under the same name, so it is there once.
 */
export class LabelWarnings {
  readonly #options: EventTools;
  readonly #told = new Set<string>();

  constructor(options: EventTools) {
    this.#options = options;
  }

  /** Looks at a namespace's or a pod's labels. */
  look(kind: "Namespace" | "Pod", metadata: ObjectMeta | undefined): void {
    const misread = misreadLabels(metadata?.labels ?? {});
    if (metadata === undefined || misread.length === 0) return;
    const text = `label ${misread.join(" and label ")} does not enrol anything`;
    const key = createHash("sha256").update(`${metadata.uid}\0${text}`).digest("hex").slice(0, 16);
    if (this.#told.has(key) || this.#told.size >= MAX_REMEMBERED) return;
    this.#told.add(key);
    this.#options.log.warn(
      { kind, name: metadata.name, namespace: metadata.namespace, misread },
      "label not understood",
    );
    const name = `veil-label.${key}`;
    void writeWarning(this.#options, { name, kind, object: metadata, reason: "VeilLabelNotUnderstood", text });
  }
}
