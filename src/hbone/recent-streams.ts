const MOST_STREAMS = 1024;

/**
 * The streams that we reset last. What the peer sent before it heard of that is no error, as far as the windows that it
 * had then allow it.
 */
export class RecentStreams {
  /** By stream, oldest first: how many bytes may still come. */
  readonly #windows = new Map<number, number>();

  has(streamId: number): boolean {
    return this.#windows.has(streamId);
  }

  /** Remembers a stream, and forgets the oldest when they are too many. */
  add(streamId: number, window: number): void {
    this.#windows.set(streamId, window);
    if (this.#windows.size <= MOST_STREAMS) return;
    const [oldest] = this.#windows.keys();
    if (oldest !== undefined) this.#windows.delete(oldest);
  }

  /** Late bytes; the result is what may still come, negative when these were too many. Undefined: not remembered. */
  take(streamId: number, byteCount: number): number | undefined {
    const window = this.#windows.get(streamId);
    if (window === undefined) return undefined;
    this.#windows.set(streamId, window - byteCount);
    return window - byteCount;
  }

  /** The peer has reset it as well: nothing may come any more. False: it was not remembered. */
  forget(streamId: number): boolean {
    return this.#windows.delete(streamId);
  }
}
