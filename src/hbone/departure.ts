import type { Clock } from "#base/clock";
import type { ByteStream } from "#linux";
import { allocate, SHARED_BYTES } from "./buffers.ts";

/** How long a session that has ended waits for the peer's close, and how much it reads meanwhile. */
const LINGER_MS = 1000;
const LINGER_BYTES = 4 << 20;

/** What comes after the end is read into this, and not looked at. */
export const discarded = allocate(SHARED_BYTES);

/**
 * How a session leaves its stream: our direction ends, and what the peer sends until it hears of that is read and
 * dropped. A close with unread bytes would be a reset, which overtakes our last words. Bounded in time and bytes.
 */
export class Departure {
  readonly #stream: ByteStream;
  readonly #clock: Clock;
  readonly #onGone: () => void;
  #cancel: (() => void) | undefined;
  #bytes = 0;
  #gone = false;

  /** `onGone` is called exactly once, when the stream is closed. */
  constructor(stream: ByteStream, clock: Clock, onGone: () => void) {
    this.#stream = stream;
    this.#clock = clock;
    this.#onGone = onGone;
  }

  /** Ends our direction and waits for the peer's end. Twice is harmless. */
  begin(): void {
    if (this.#gone || this.#cancel !== undefined) return;
    this.#cancel = this.#clock.after(LINGER_MS, () => {
      this.leave();
    });
    this.#stream.shutdown();
  }

  /** So many bytes came after the end. */
  discard(count: number): void {
    this.#bytes += count;
    if (this.#bytes > LINGER_BYTES) this.leave();
  }

  /** Closes the stream now. Twice is harmless. */
  leave(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#cancel?.();
    this.#stream.close();
    this.#onGone();
  }
}
