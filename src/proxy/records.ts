import type { Log } from "#base/log";
import type { RecordOutput } from "./line-output.ts";
import { linesOf, type RecordBatch } from "./record-queue.ts";

/** So many lines at least are kept for explanations. */
const KEPT_RECORDS = 1_000;
/** Bytes that may wait for a slow reader of standard output; beyond that the data threads keep their lines. */
const MAX_OUTPUT_BYTES = 8 * 1024 * 1024;

/** The access log of the node: written as it comes, and the last lines kept. */
export class Records {
  readonly #output: RecordOutput;
  readonly #log: Log;
  /** Oldest first. */
  readonly #kept: RecordBatch[] = [];
  #keptLines = 0;
  /** Whoever reads standard output has stalled; data threads keep their lines until this is false again. */
  isStalled = false;

  constructor(output: RecordOutput, log: Log) {
    this.#output = output;
    this.#log = log;
  }

  /** Takes lines. Resolves when further ones may come; what comes all the same is written, too. */
  async take(batch: RecordBatch): Promise<void> {
    this.#kept.push(batch);
    this.#keptLines += batch.count;
    for (let [oldest] = this.#kept; oldest !== undefined; [oldest] = this.#kept) {
      if (this.#keptLines - oldest.count < KEPT_RECORDS) break;
      this.#keptLines -= oldest.count;
      this.#kept.shift();
    }
    this.#output.write(batch.text);
    if (this.#output.waitingBytes > MAX_OUTPUT_BYTES) await this.#whenRead();
  }

  async #whenRead(): Promise<void> {
    if (!this.isStalled) this.#log.warn({ waitingBytes: this.#output.waitingBytes }, "nobody reads the access log");
    this.isStalled = true;
    await this.#output.whenEmpty();
    if (this.isStalled) this.#log.info({}, "the access log is read again");
    this.isStalled = false;
  }

  /** The newest lines that contain all of these words, newest first. */
  newest(words: readonly string[], most: number): readonly string[] {
    const found: string[] = [];
    for (const batch of this.#kept.toReversed()) {
      for (const line of linesOf(batch).toReversed()) {
        if (found.length === most) return found;
        if (words.every((word) => line.includes(word))) found.push(line);
      }
    }
    return found;
  }
}
