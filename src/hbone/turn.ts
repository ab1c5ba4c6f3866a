/** Something that gathers work and does it once per turn of the event loop. */
export interface Flushable {
  /** Set while it waits in the queue. */
  queued: boolean;
  flush(): void;
}

/** A session's sending half. */
export interface FlushableSession extends Flushable {
  /**
   * Set by whoever knows that more is likely to come with the next turn: what has gathered waits for it, one turn and no longer.
   * A write costs many times what a turn does.
   */
  expectsMore: boolean;
  /** It has waited, and leaves with this turn. */
  hasWaited: boolean;
}

/**
 * What is to be flushed at the end of this thread's turn: first what goes to plain sockets (it may produce credit for
 * peers), then what goes into sessions.
 */
class Turn {
  #armed = false;
  #plain: Flushable[] = [];
  #sessions: FlushableSession[] = [];

  /** Queues a plain socket's bytes. */
  addPlain(item: Flushable): void {
    if (item.queued) return;
    item.queued = true;
    this.#plain.push(item);
    this.#arm();
  }

  /** Queues a session. */
  addSession(item: FlushableSession): void {
    if (item.queued) return;
    item.queued = true;
    this.#sessions.push(item);
    this.#arm();
  }

  /** Flushes plain sockets now, to free the memory that their bytes lie in. */
  flushPlain(): void {
    const items = this.#plain;
    this.#plain = [];
    for (const item of items) {
      item.queued = false;
      item.flush();
    }
  }

  #arm(): void {
    if (this.#armed) return;
    this.#armed = true;
    setImmediate(this.#run);
  }

  readonly #run = (): void => {
    this.flushPlain(); // what this queues for sessions leaves below
    const items = this.#sessions;
    this.#sessions = [];
    for (const item of items) {
      if (item.expectsMore && !item.hasWaited) {
        item.hasWaited = true;
        this.#sessions.push(item);
        continue;
      }
      item.expectsMore = false;
      item.hasWaited = false;
      item.queued = false;
      item.flush();
    }
    this.#armed = false;
    if (this.#plain.length > 0 || this.#sessions.length > 0) this.#arm();
  };
}

/** One per thread. */
export const turn = new Turn();
