import type { Clock } from "#base/clock";

/** Lines that wait for the main thread; beyond that the newest are dropped and counted, and a line says how many. */
const MAX_WAITING_RECORDS = 10_000;

/** Lines are handed over after this time, or when so many wait: to wake the main thread costs as much as a connection. */
const GATHER_MS = 10;
const GATHER_LINES = 500;

/** Lines of the access log. */
export interface RecordBatch {
  readonly count: number;
  /** UTF-8, each line with its end. Whoever gets it owns its memory. */
  readonly text: Uint8Array<ArrayBuffer>;
}

/** The lines of a batch, without their ends. */
export function linesOf({ text, count }: RecordBatch): string[] {
  return Buffer.from(text.buffer, text.byteOffset, text.length).toString().split("\n", count);
}

/** Memory for lines that wait, in pieces of so much. */
const CHUNK_BYTES = 64 * 1024;
/** UTF-8 of one UTF-16 unit, at most. */
const BYTES_PER_UNIT = 3;

/** Lines as bytes: text that waits would be copied by each collection of garbage, in all its parts. */
class Lines {
  count = 0;
  #full: Uint8Array[] = [];
  #chunk = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  #used = 0;

  add(line: string): void {
    const most = line.length * BYTES_PER_UNIT + 1;
    if (most > this.#chunk.length - this.#used) this.#grow(most);
    this.#used += this.#chunk.write(line, this.#used);
    this.#chunk[this.#used++] = 0x0a;
    this.count++;
  }

  #grow(most: number): void {
    this.#full.push(this.#chunk.subarray(0, this.#used));
    this.#chunk = Buffer.allocUnsafeSlow(Math.max(most, CHUNK_BYTES));
    this.#used = 0;
  }

  take(): RecordBatch {
    const parts = [...this.#full, this.#chunk.subarray(0, this.#used)];
    const text = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
    let offset = 0;
    for (const part of parts) {
      text.set(part, offset);
      offset += part.length;
    }
    const { count } = this;
    [this.count, this.#full, this.#used] = [0, [], 0];
    return { count, text };
  }
}

/** What a {@link RecordQueue} needs. */
interface RecordQueueParts {
  /** Makes the line that stands for dropped ones. */
  readonly formatLost: (count: number) => string;
  readonly clock: Clock;
  /** How many batches the reader has taken, as a 32-bit number. Nobody tells when it changes: while lines wait it is looked at. */
  readonly taken: () => number;
}

/**
 * Hands lines over in batches, one batch at a time: a reader that stalls makes lines wait, then drop, and never makes
 * memory grow. A line that is owed is never dropped: whoever owes lines takes on nothing new while {@link isFull}.
 */
export class RecordQueue {
  readonly #send: (batch: RecordBatch) => void;
  readonly #parts: RecordQueueParts;
  readonly #waiting = new Lines();
  /** How many batches were sent, as a 32-bit number. */
  #sent = 0;
  #cancel: (() => void) | undefined;
  #lastMs = -Infinity;
  #dropped = 0;
  /** How many of those no line tells of yet. */
  #untold = 0;

  /** `send` gets a batch. */
  constructor(send: (batch: RecordBatch) => void, parts: RecordQueueParts) {
    this.#send = send;
    this.#parts = parts;
  }

  /** How many lines were dropped. */
  get dropped(): number {
    return this.#dropped;
  }

  /** As many wait as may. */
  get isFull(): boolean {
    return this.#waiting.count >= MAX_WAITING_RECORDS;
  }

  /** Adds a line. */
  push(line: string, isOwed = false): void {
    if (this.isFull && !isOwed) {
      this.#dropped++;
      this.#untold++;
      return;
    }
    this.#waiting.add(line);
    this.#schedule();
  }

  /** Hands over what waits, whether the last batch has been read or not: the thread ends. */
  flush(): void {
    if (this.#untold > 0) this.#waiting.add(this.#parts.formatLost(this.#untold));
    this.#untold = 0;
    if (this.#waiting.count === 0) return;
    this.#sent = (this.#sent + 1) | 0;
    this.#send(this.#waiting.take());
  }

  get #isSending(): boolean {
    return this.#parts.taken() !== this.#sent;
  }

  /** At once after a pause, else once per {@link GATHER_MS}: a single connection is told of without delay. */
  #schedule(): void {
    if (this.#waiting.count >= GATHER_LINES && !this.#isSending) this.#sendBatch();
    else this.#cancel ??= this.#later(this.#lastMs + GATHER_MS - this.#parts.clock.monotonic());
  }

  #later(restMs: number): () => void {
    const send = (): void => {
      if (this.#isSending) this.#cancel = this.#later(GATHER_MS);
      else this.#sendBatch();
    };
    if (restMs > 0) return this.#parts.clock.after(restMs, send);
    const immediate = setImmediate(send);
    return () => {
      clearImmediate(immediate);
    };
  }

  #sendBatch(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    this.#lastMs = this.#parts.clock.monotonic();
    this.flush();
  }
}
