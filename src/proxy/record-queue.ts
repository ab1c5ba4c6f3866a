/** Records that wait for the main thread; beyond that the newest are dropped and counted. */
const MAX_WAITING_RECORDS = 10_000;

/**
 * Hands lines over in batches, one batch at a time: a reader that stalls makes lines wait, then drop, and never makes
 * memory grow.
 */
export class RecordQueue {
  readonly #send: (lines: readonly string[]) => void;
  #waiting: string[] = [];
  #isSending = false;
  #isScheduled = false;
  #dropped = 0;

  /** `send` gets a batch; the reader answers with {@link taken}. */
  constructor(send: (lines: readonly string[]) => void) {
    this.#send = send;
  }

  /** How many lines were dropped. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Adds a line. */
  push(line: string): void {
    if (this.#waiting.length >= MAX_WAITING_RECORDS) {
      this.#dropped++;
      return;
    }
    this.#waiting.push(line);
    this.#schedule();
  }

  /** The last batch has been read. */
  taken(): void {
    this.#isSending = false;
    this.#schedule();
  }

  /** Hands over what waits, whether the last batch has been read or not: the thread ends. */
  flush(): void {
    const lines = this.#waiting;
    this.#waiting = [];
    if (lines.length > 0) this.#send(lines);
  }

  /** Once per turn of the event loop: connections that end together share a batch. */
  #schedule(): void {
    if (this.#isScheduled || this.#isSending || this.#waiting.length === 0) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      if (this.#waiting.length === 0) return; // flushed meanwhile
      this.#isSending = true;
      const lines = this.#waiting;
      this.#waiting = [];
      this.#send(lines);
    });
  }
}
