import type { Clock } from "#base/clock";

/** Lines that wait for the main thread; beyond that the newest are dropped and counted, and a line says how many. */
const MAX_WAITING_RECORDS = 10_000;

/** Lines are handed over after this time, or when so many wait: to wake the main thread costs as much as a connection. */
const GATHER_MS = 10;
const GATHER_LINES = 500;

/**
 * Hands lines over in batches, one batch at a time: a reader that stalls makes lines wait, then drop, and never makes
 * memory grow. A line that is owed is never dropped: whoever owes lines takes on nothing new while {@link isFull}.
 */
export class RecordQueue {
  readonly #send: (lines: readonly string[]) => void;
  readonly #formatLost: (count: number) => string;
  readonly #clock: Clock;
  #waiting: string[] = [];
  #isSending = false;
  #cancel: (() => void) | undefined;
  #lastMs = -Infinity;
  #dropped = 0;
  /** How many of those no line tells of yet. */
  #untold = 0;

  /** `send` gets a batch; the reader answers with {@link taken}. `formatLost` makes the line that stands for dropped ones. */
  constructor(
    send: (lines: readonly string[]) => void,
    { formatLost, clock }: { formatLost: (count: number) => string; clock: Clock },
  ) {
    this.#send = send;
    this.#clock = clock;
    this.#formatLost = formatLost;
  }

  /** How many lines were dropped. */
  get dropped(): number {
    return this.#dropped;
  }

  /** As many wait as may. */
  get isFull(): boolean {
    return this.#waiting.length >= MAX_WAITING_RECORDS;
  }

  /** Adds a line. */
  push(line: string, isOwed = false): void {
    if (this.isFull && !isOwed) {
      this.#dropped++;
      this.#untold++;
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
    const lines = this.#take();
    if (lines.length > 0) this.#send(lines);
  }

  #take(): string[] {
    const lines = this.#waiting;
    this.#waiting = [];
    if (this.#untold > 0) lines.push(this.#formatLost(this.#untold));
    this.#untold = 0;
    return lines;
  }

  /** At once after a pause, else once per {@link GATHER_MS}: a single connection is told of without delay. */
  #schedule(): void {
    if (this.#isSending || this.#waiting.length === 0) return;
    if (this.#waiting.length >= GATHER_LINES) this.#sendBatch();
    else this.#cancel ??= this.#later();
  }

  #later(): () => void {
    const restMs = this.#lastMs + GATHER_MS - this.#clock.monotonic();
    const send = (): void => {
      this.#sendBatch();
    };
    if (restMs > 0) return this.#clock.after(restMs, send);
    const immediate = setImmediate(send);
    return () => {
      clearImmediate(immediate);
    };
  }

  #sendBatch(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    this.#lastMs = this.#clock.monotonic();
    const lines = this.#take();
    this.#isSending = lines.length > 0; // none: flushed meanwhile
    if (this.#isSending) this.#send(lines);
  }
}
