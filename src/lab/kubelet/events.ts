import { messageOf } from "#base/errors";
import type { Clock } from "#base/clock";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import { resources, type KubeClient, type Pod } from "#kube";
import { formatTime } from "./container-state.ts";
import type { EventSink } from "./pod-parts.ts";

/** Events that are remembered, so that a repetition is counted instead of written anew. */
const MAX_REMEMBERED = 256;
/** Events on their way to the API; further ones are dropped. */
const MAX_PENDING = 64;
/** A repetition within this time is not told at all. */
const QUIET_MS = 5_000;

interface Remembered {
  readonly name: string;
  count: number;
  toldMs: number;
}

/** Writes events about pods. Losing one is no failure: the log has what matters. */
export class EventRecorder implements EventSink {
  readonly #client: KubeClient;
  readonly #node: string;
  readonly #parts: { clock: Clock; random: Random; log: Log };
  readonly #remembered = new Map<string, Remembered>();
  #pending = 0;

  constructor(client: KubeClient, node: string, parts: { clock: Clock; random: Random; log: Log }) {
    this.#client = client;
    this.#node = node;
    this.#parts = parts;
  }

  emit(pod: Pod, type: "Normal" | "Warning", what: { reason: string; message: string }): void {
    if (this.#pending >= MAX_PENDING) return;
    this.#pending++;
    void this.#write(pod, type, what)
      .catch((error: unknown) => this.#parts.log.debug({ ...what, error: messageOf(error) }, "event cannot be written"))
      .finally(() => {
        this.#pending--;
      });
  }

  async #write(pod: Pod, type: string, what: { reason: string; message: string }): Promise<void> {
    const { clock, random } = this.#parts;
    const { name = "", namespace = "", uid = "" } = pod.metadata ?? {};
    const nowMs = clock.now();
    const time = formatTime(nowMs);
    const key = [uid, type, what.reason, what.message].join("\0");
    const known = this.#remembered.get(key);
    if (known !== undefined) {
      known.count++;
      if (nowMs - known.toldMs < QUIET_MS) return;
      known.toldMs = nowMs;
      const body = { count: known.count, lastTimestamp: time };
      await this.#client.patch(resources.events, { name: known.name, namespace }, { type: "merge", body });
      return;
    }
    const event = `${name}.${random.hex(8)}`;
    this.#remember(key, { name: event, count: 1, toldMs: nowMs });
    await this.#client.create(resources.events, {
      metadata: { name: event, namespace },
      involvedObject: { apiVersion: "v1", kind: "Pod", name, namespace, uid },
      type,
      ...what,
      message: what.message.slice(0, 1024),
      count: 1,
      firstTimestamp: time,
      lastTimestamp: time,
      source: { component: "kubelet", host: this.#node },
      reportingComponent: "kubelet",
      reportingInstance: this.#node,
    });
  }

  #remember(key: string, event: Remembered): void {
    this.#remembered.set(key, event);
    const oldest = this.#remembered.keys().next().value;
    if (this.#remembered.size > MAX_REMEMBERED && oldest !== undefined) this.#remembered.delete(oldest);
  }
}
