import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { isKubeError } from "#kube";

/** Between two tries to write while the API is away. */
const RETRY_MS = 1_000;

/**
 * Writes statuses, one at a time; of those that wait for an object the newest counts. A write that comes too late (the object was
 * changed or deleted meanwhile) is dropped: the object's next state brings its next status. All replicas of the controller write,
 * and write the same.
 */
export class StatusWrites<T> {
  readonly #options: {
    readonly clock: Clock;
    readonly log: Log;
    readonly write: (status: T) => Promise<unknown>;
  };
  readonly #waiting = new Map<string, T>();
  #isWriting = false;
  #isStopped = false;
  #cancel = (): void => {};

  constructor(options: { clock: Clock; log: Log; write: (status: T) => Promise<unknown> }) {
    this.#options = options;
  }

  /** Takes the status of an object, for example of `AuthorizationPolicy shop/cart`; it is written soon. */
  take(object: string, status: T): void {
    this.#waiting.set(object, status);
    void this.#write();
  }

  /** Writes nothing more. */
  stop(): void {
    this.#isStopped = true;
    this.#cancel();
  }

  async #write(): Promise<void> {
    if (this.#isWriting) return;
    this.#isWriting = true;
    const { clock, log, write } = this.#options;
    for (const [object, status] of this.#waiting) {
      if (this.#isStopped) return;
      this.#waiting.delete(object);
      try {
        await write(status);
      } catch (error) {
        if (isKubeError(error, "KUBE_CONFLICT") || isKubeError(error, "KUBE_NOT_FOUND")) continue;
        log.warn({ object, error: messageOf(error) }, "status of an object cannot be written, trying again");
        if (!this.#waiting.has(object)) this.#waiting.set(object, status);
        await new Promise<void>((resolve) => {
          this.#cancel = clock.after(RETRY_MS, resolve);
        });
      }
    }
    this.#isWriting = false;
  }
}
