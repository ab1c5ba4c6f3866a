/** Access records that are kept for explanations. */
const KEPT_RECORDS = 1_000;
/** Bytes of records that may wait for a slow reader of standard output; beyond that records are dropped and counted. */
const MAX_OUTPUT_BYTES = 8 * 1024 * 1024;

/** Where records are written to. */
export interface RecordOutput {
  write(text: string): unknown;
  readonly writableLength: number;
}

/** The access records of the node: written to standard output, one JSON object a line, and the last ones kept. */
export class Records {
  readonly #output: RecordOutput;
  readonly #kept: string[] = [];
  #next = 0;
  #dropped = 0;

  constructor(output: RecordOutput) {
    this.#output = output;
  }

  /** How many were not written because nobody read. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Takes lines without their ends. */
  take(lines: readonly string[]): void {
    for (const line of lines) {
      this.#kept[this.#next] = line;
      this.#next = (this.#next + 1) % KEPT_RECORDS;
    }
    if (this.#output.writableLength > MAX_OUTPUT_BYTES) this.#dropped += lines.length;
    else if (lines.length > 0) this.#output.write(`${lines.join("\n")}\n`);
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
