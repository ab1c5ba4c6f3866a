const MOST_STREAMS = 256;

/** The last few streams that something happened to. */
export class RecentStreams {
  readonly #ids = new Set<number>();

  has(streamId: number): boolean {
    return this.#ids.has(streamId);
  }

  /** Remembers a stream, and forgets the oldest when they are too many. */
  add(streamId: number): void {
    this.#ids.add(streamId);
    if (this.#ids.size <= MOST_STREAMS) return;
    const [oldest] = this.#ids;
    if (oldest !== undefined) this.#ids.delete(oldest);
  }
}
