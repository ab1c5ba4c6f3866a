import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { isKubeError } from "#kube";
import type { LeaderClient } from "./leader-client.ts";

/** Between two tries to write while the API is away. */
const RETRY_MS = 1_000;

/** What statuses are written with. */
export interface StatusWritesOptions<T> {
  readonly leader: Pick<LeaderClient, "leading" | "onLeading">;
  readonly clock: Clock;
  readonly log: Log;
  readonly write: (status: T) => Promise<unknown>;
}

/**
 * Writes statuses, one at a time; of those that wait for an object the newest counts. A write that comes too late (the object was
 * changed or deleted meanwhile) is dropped: the object's next state brings its next status. A replica of the controller that does
 * not lead keeps the newest of each object and writes them when it leads: what is right by then costs no request, or a refused one.
 */
export class StatusWrites<T> {
  readonly #options: StatusWritesOptions<T>;
  readonly #waiting = new Map<string, T>();
  #isWriting = false;
  #isStopped = false;
  readonly #unlisten: () => void;
  #cancel = (): void => {};

  constructor(options: StatusWritesOptions<T>) {
    this.#options = options;
    this.#unlisten = options.leader.onLeading(() => void this.#write());
  }

  /** Takes the status of an object, for example of `AuthorizationPolicy shop/cart`; it is written soon. */
  take(object: string, status: T): void {
    this.#waiting.set(object, status);
    void this.#write();
  }

  /** An object is gone: it needs no status. */
  forget(object: string): void {
    this.#waiting.delete(object);
  }

  /** Writes nothing more. */
  stop(): void {
    this.#isStopped = true;
    this.#unlisten();
    this.#cancel();
  }

  async #write(): Promise<void> {
    if (this.#isWriting) return;
    this.#isWriting = true;
    const { clock, log, leader, write } = this.#options;
    for (const [object, status] of this.#waiting) {
      if (this.#isStopped || !leader.leading) break;
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
