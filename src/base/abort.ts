/** What is asked of an `AbortSignal` by whoever may be told to give up. */
export interface AbortView {
  readonly aborted: boolean;
  /** Why; undefined before. */
  readonly reason: unknown;
  addEventListener(type: "abort", listener: () => void): void;
  removeEventListener(type: "abort", listener: () => void): void;
}

/**
 * An abort with at most one listener at a time. An `AbortController` costs 5 to 10 µs in all, which is too much for each
 * connection; this is a plain object.
 */
export class LightAbort implements AbortView {
  aborted = false;
  reason: unknown;
  #listener: (() => void) | undefined;

  /** Replaces the listener before; after the abort nobody is called any more. */
  addEventListener(_type: "abort", listener: () => void): void {
    this.#listener = listener;
  }

  removeEventListener(_type: "abort", listener: () => void): void {
    if (this.#listener === listener) this.#listener = undefined;
  }

  /** Calls the listener. Twice is harmless. */
  abort(reason: unknown): void {
    if (this.aborted) return;
    this.aborted = true;
    this.reason = reason;
    this.#listener?.();
    this.#listener = undefined;
  }
}
