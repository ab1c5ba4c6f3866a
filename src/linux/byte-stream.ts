import type { CodedError } from "#base/errors";

/** What {@link ByteStream.write} did: the bytes are out, or on their way, or the stream is broken. */
export type WriteOutcome = "done" | "pending" | "failed";

/**
 * Who gets the bytes of a {@link ByteStream}. Calls come one at a time, never from inside `write`, `pause` or `resume`.
 * After `onEnd` no more bytes come; after `onBroken` nothing comes at all; after `close` or `reset` likewise.
 */
export interface StreamOwner {
  /**
   * `count` bytes (1 or more) lie at the start of the buffer in force. The result is the buffer for the next read;
   * `undefined` keeps the one in force, from its start.
   */
  onRead(count: number): Uint8Array | undefined;
  /** The peer has ended its direction (FIN). */
  onEnd(): void;
  /** A write that was `pending` is out: its bytes may be reused. */
  onWritten(): void;
  /** The stream is broken, for example reset by the peer. The owner still has to close it. */
  onBroken(error: CodedError): void;
}

/**
 * Bytes in both directions, without queues of its own: one read buffer that the owner chooses, one write at a time.
 * Two implementations obey this contract: Node's socket handles (fast) and Node's public streams (the fallback).
 */
export interface ByteStream {
  /** Begins to read into `buffer` for `owner`. Called once. The owner keeps the buffer alive. */
  start(owner: StreamOwner, buffer: Uint8Array): void;
  /**
   * No reads until `resume`. Bytes wait in the kernel (or, on the fallback, in one chunk). May be called from `onRead`.
   * A TLS session still hands out what it has decrypted: only plain sockets are paused.
   */
  pause(): void;
  /** Reads again, into the buffer in force. Never calls the owner before it returns. */
  resume(): void;
  /** Replaces the buffer in force, outside of `onRead`. Costs a little memory each time: not for every read. */
  replaceBuffer(buffer: Uint8Array): void;
  /**
   * Sends bytes. While a write is pending the owner neither writes again nor touches the bytes (a TLS session takes them
   * at once: there they are free when the call returns). `failed` is final:
   * `onBroken` does not follow, {@link ByteStream.error} says why. `last`: `shutdown` follows at once, and the two may share a packet.
   */
  write(bytes: Uint8Array, last?: boolean): WriteOutcome;
  /** As `write`, for several pieces at once. */
  writeAll(pieces: readonly Uint8Array[]): WriteOutcome;
  /** Why a write failed. */
  readonly error: CodedError | undefined;
  /** Ends our direction (FIN) once what was written is out. Called once. */
  shutdown(): void;
  /** Ends both directions. Twice is harmless. Nothing is called afterwards. */
  close(): void;
  /** Ends both directions with a reset, as a crashed application would. */
  reset(): void;
}
