import { hash } from "node:crypto";
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Problem } from "#discovery";
import { resources, warningEvent, type KubeClient } from "#kube";

/** Problems that were told are remembered up to this many; a repetition costs one refused write. */
const MAX_REMEMBERED = 10_000;

/**
 * Says it on the object, as a Kubernetes event, when a part of it is not carried: whoever wrote it looks there, not into the controller's
 * log. All replicas write the same event under the same name, so it is there once.
 */
export class ProblemEvents {
  readonly #client: Pick<KubeClient, "create">;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #told = new Set<string>();

  constructor(parts: { readonly client: Pick<KubeClient, "create">; readonly clock: Clock; readonly log: Log }) {
    this.#client = parts.client;
    this.#clock = parts.clock;
    this.#log = parts.log;
  }

  /** Takes problems; those whose object is known are told once each. Never throws. */
  take(problems: readonly Problem[]): void {
    for (const { about, field, message } of problems) {
      if (about === undefined) continue;
      const { uid = "" } = about.metadata;
      const key = hash("sha256", `${uid}\0${field}\0${message}`, "hex").slice(0, 16);
      if (this.#told.has(key) || this.#told.size >= MAX_REMEMBERED) continue;
      this.#told.add(key);
      void this.#write(about, { key, message: `${field}: ${message}` });
    }
  }

  async #write(
    about: NonNullable<Problem["about"]>,
    { key, message }: { key: string; message: string },
  ): Promise<void> {
    const { apiVersion, kind, metadata } = about;
    const { name = "", namespace = "default", uid = "" } = metadata;
    const event = warningEvent({
      name: `veil-problem.${key}`,
      namespace,
      about: { apiVersion, kind, name, namespace, uid },
      reason: "VeilNotCarried",
      message,
      source: { component: "veil-controller" },
      timeMs: this.#clock.now(),
    });
    try {
      await this.#client.create(resources.events, event);
    } catch (error) {
      this.#log.debug({ error: messageOf(error) }, "event not written: another replica has, or the api is away");
    }
  }
}
