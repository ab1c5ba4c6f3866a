import type { Log } from "#base/log";
import type { RecordOutput } from "./line-output.ts";

/** Lines that are kept for explanations. */
const KEPT_RECORDS = 1_000;
/** Bytes that may wait for a slow reader of standard output; beyond that the data threads keep their lines. */
const MAX_OUTPUT_BYTES = 8 * 1024 * 1024;

/** The access log of the node: written line by line, and the last lines kept. */
export class Records {
  readonly #output: RecordOutput;
  readonly #log: Log;
  readonly #kept: string[] = [];
  #next = 0;
  /** Whoever reads standard output has stalled; data threads keep their lines until this is false again. */
  isStalled = false;

  constructor(output: RecordOutput, log: Log) {
    this.#output = output;
    this.#log = log;
  }

  /** Takes lines without their ends. Resolves when further ones may come; what comes all the same is written, too. */
  async take(lines: readonly string[]): Promise<void> {
    for (const line of lines) {
      this.#kept[this.#next] = line;
      this.#next = (this.#next + 1) % KEPT_RECORDS;
    }
    if (lines.length > 0) this.#output.write(`${lines.join("\n")}\n`);
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
    for (let back = 1; back <= this.#kept.length && found.length < most; back++) {
      const line = this.#kept[(this.#next - back + KEPT_RECORDS) % KEPT_RECORDS];
      if (line !== undefined && words.every((word) => line.includes(word))) found.push(line);
    }
    return found;
  }
}
