import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import type { CniInstaller } from "#cni";
import type { Enrolment } from "#enrolment";
import { resources, type DaemonSet, type Informer, type KubeClient } from "#kube";
import { LEAVE_ANNOTATION, LEFT_ANNOTATION } from "#model/leaving";

/** How often the end of leaving is looked for, and tried again what failed. */
const LOOK_MS = 500;

export interface LeavingParts {
  readonly client: Pick<KubeClient, "patch">;
  /** The agents' DaemonSet, and nothing else. */
  readonly agents: Pick<Informer<DaemonSet>, "on" | "start" | "drain">;
  /** This agent's own pod. */
  readonly own: { readonly name: string; readonly namespace: string };
  readonly enrolment: Pick<Enrolment, "leave" | "list">;
  /** Whether enrolment knows the pods of the node. */
  readonly knowsPods: () => boolean;
  /** Undefined where somebody else keeps the CNI plugin in place. */
  readonly installer: Pick<CniInstaller, "keep" | "removed"> | undefined;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Leaves the node when the agents' DaemonSet says so: first the CNI plugin goes, then every pod is un-enrolled as if its label had
 * gone. The agent's own pod says when that is done. A DaemonSet that is deleted says nothing: pods stay as they are.
 */
export class Leaving implements Service {
  readonly name = "leaving";
  readonly #parts: LeavingParts;
  readonly #stop = new AbortController();
  #asked = false;
  #said = false;
  #running: Promise<void> = Promise.resolve();

  constructor(parts: LeavingParts) {
    this.#parts = parts;
  }

  /** Veil is to leave this node, or has left it. */
  get asked(): boolean {
    return this.#asked;
  }

  /** Resolves when it is known whether Veil is to be here at all. */
  async start(signal: AbortSignal): Promise<void> {
    const { agents } = this.#parts;
    agents.on({ upserted: ({ metadata }) => this.#decide(metadata?.annotations?.[LEAVE_ANNOTATION] === "true") });
    await agents.start(signal);
    this.#running = this.#follow();
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("the agent stops"));
    await this.#parts.agents.drain(deadlineMs);
    await this.#running;
  }

  #decide(asked: boolean): void {
    if (asked === this.#asked) return;
    const { enrolment, installer, log } = this.#parts;
    this.#asked = asked;
    log.info(asked ? "veil leaves this node" : "veil stays on this node");
    installer?.keep(!asked);
    enrolment.leave(asked);
  }

  /** Says on the agent's own pod what is true, as often as that changes. */
  async #follow(): Promise<void> {
    const { clock, log } = this.#parts;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const left = this.#asked && this.#hasLeft();
      if (left !== this.#said) {
        await this.#say(left).catch((error: unknown) => log.warn({ reason: messageOf(error) }, "cannot say it yet"));
      }
      await sleep(clock, LOOK_MS, signal).catch(() => undefined);
    }
  }

  #hasLeft(): boolean {
    const { enrolment, knowsPods, installer } = this.#parts;
    if (!knowsPods() || installer?.removed === false) return false;
    return enrolment.list().every(({ state }) => state === "plain" || state === "closed");
  }

  async #say(left: boolean): Promise<void> {
    const { client, own, log } = this.#parts;
    const annotations = { [LEFT_ANNOTATION]: left ? "true" : null };
    await client.patch(resources.pods, own, { type: "merge", body: { metadata: { annotations } } });
    this.#said = left;
    if (left) log.info("veil has left this node");
  }
}
