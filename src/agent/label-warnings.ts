import { createHash } from "node:crypto";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { misreadLabels } from "#enrolment";
import { resources, type KubeClient, type ObjectMeta } from "#kube";

/** Objects that were warned about are remembered up to this many; a repetition costs one refused write. */
const MAX_REMEMBERED = 10_000;

/** What warnings are written with. */
export interface LabelWarningsOptions {
  readonly client: Pick<KubeClient, "create">;
  readonly node: string;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Says it on the object, as a Kubernetes event, when a label that was meant to enrol has a value that means nothing. All agents that
 * see the object write the same event under the same name, so it is there once.
 */
export class LabelWarnings {
  readonly #options: LabelWarningsOptions;
  readonly #told = new Set<string>();

  constructor(options: LabelWarningsOptions) {
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
    void this.#write({ kind, metadata, text, key });
  }

  async #write(about: { kind: string; metadata: ObjectMeta; text: string; key: string }): Promise<void> {
    const { client, node, clock, log } = this.#options;
    const { kind, metadata, text, key } = about;
    const { name = "", uid = "" } = metadata;
    const namespace = metadata.namespace ?? "default"; // where Kubernetes keeps the events of objects without one
    const time = new Date(clock.now()).toISOString().replace(/\.\d+Z$/, "Z");
    try {
      await client.create(resources.events, {
        metadata: { name: `veil-label.${key}`, namespace },
        involvedObject: { apiVersion: "v1", kind, name, uid, ...(kind === "Pod" && { namespace }) },
        type: "Warning",
        reason: "VeilLabelNotUnderstood",
        message: text,
        count: 1,
        firstTimestamp: time,
        lastTimestamp: time,
        source: { component: "veil-agent", host: node },
      });
    } catch (error) {
      log.debug({ error: messageOf(error) }, "event not written: another agent has, or the api is away");
    }
  }
}
