import { CodedError } from "#base/errors";
import type { ByteStream, RecordProtection, StreamOwner, TcpSocket, WriteOutcome } from "#linux";
import { hboneError } from "./errors.ts";
import { recordBuffer, RecordReceiver, type RecordSink } from "./record-receiver.ts";
import { RecordSender } from "./record-sender.ts";

/** What a finished handshake leaves. */
export interface EstablishedTls {
  readonly socket: Pick<TcpSocket, "stream" | "close" | "reset">;
  readonly isServer: boolean;
  readonly sending: RecordProtection;
  readonly receiving: RecordProtection;
  /** Records (and the beginning of one) that came behind the handshake. */
  readonly left: Uint8Array;
  /** The peer has ended the connection already. */
  readonly ended: boolean;
  /** Lowered by tests. */
  readonly recordsPerKey?: number;
}

const NOWHERE = new Uint8Array(0);

/**
 * {@link ByteStream} of an established TLS 1.3 session, over the socket's own (which somebody has started with
 * `recordBuffer`, paused, and whose calls come here from now on). Owns the socket.
 */
export class RecordStream implements ByteStream, StreamOwner, RecordSink {
  readonly #socket: EstablishedTls["socket"];
  readonly #sender: RecordSender;
  readonly #receiver: RecordReceiver;
  #owner: StreamOwner | undefined;
  #left: Uint8Array;
  #ended: boolean;
  #endSaid = false;
  #peerSaidEnd = false;
  #ownerWaits = false;
  #error: CodedError | undefined;
  #closed = false;
  buffer: Uint8Array = NOWHERE;

  constructor({ socket, isServer, sending, receiving, left, ended, recordsPerKey }: EstablishedTls) {
    this.#socket = socket;
    this.#left = left;
    this.#ended = ended;
    this.#sender = new RecordSender(socket.stream, sending, recordsPerKey);
    this.#receiver = new RecordReceiver(receiving, this, isServer);
  }

  // What the session's owner calls.

  get error(): CodedError | undefined {
    return this.#error ?? this.#socket.stream.error;
  }

  start(owner: StreamOwner, buffer: Uint8Array): void {
    this.#owner = owner;
    this.buffer = buffer;
    if (this.#left.length === 0 && !this.#ended) {
      this.#socket.stream.resume();
      return;
    }
    setImmediate(() => {
      const left = this.#left;
      this.#left = NOWHERE;
      for (let at = 0; at < left.length; at += recordBuffer.length) {
        const part = left.subarray(at, at + recordBuffer.length);
        recordBuffer.set(part);
        this.onRead(part.length);
      }
      if (this.#ended) this.onEnd();
      else if (!this.#closed) this.#socket.stream.resume();
    });
  }

  pause(): void {
    this.#socket.stream.pause();
  }

  resume(): void {
    if (this.#left.length === 0) this.#socket.stream.resume();
  }

  replaceBuffer(buffer: Uint8Array): void {
    this.buffer = buffer;
  }

  write(bytes: Uint8Array): WriteOutcome {
    return this.writeAll([bytes]);
  }

  writeAll(pieces: readonly Uint8Array[]): WriteOutcome {
    const outcome = this.#closed ? "failed" : this.#sender.write(pieces);
    this.#ownerWaits = outcome === "pending";
    return outcome;
  }

  shutdown(): void {
    if (!this.#closed) this.#sender.shutdown();
  }

  close(): void {
    if (this.#closed) return;
    if (this.#peerSaidEnd) this.#sender.sayEnd(); // whoever was told so is answered (RFC 8446 §6.1)
    this.#socket.close();
    this.#dispose();
  }

  reset(): void {
    if (this.#closed) return;
    this.#socket.reset();
    this.#dispose();
  }

  #dispose(): void {
    this.#closed = true;
    this.#owner = undefined;
    this.buffer = NOWHERE;
    this.#left = NOWHERE;
    this.#receiver.dispose();
    this.#sender.dispose();
  }

  // From the socket.

  onRead(count: number): Uint8Array | undefined {
    if (this.#owner === undefined || this.#endSaid) return undefined;
    try {
      this.#receiver.take(count);
    } catch (error) {
      if (!(error instanceof CodedError)) throw error;
      const { alert } = error.details;
      if (typeof alert === "number" && !this.#closed) this.#sender.alert(2, alert);
      this.#broken(error);
    }
    return undefined;
  }

  onEnd(): void {
    if (this.#endSaid) return;
    this.#endSaid = true;
    this.#owner?.onEnd();
  }

  onWritten(): void {
    const outcome = this.#sender.written();
    if (outcome === "failed") this.#broken(this.error ?? hboneError("HBONE_SESSION_LOST", "the socket takes no more"));
    if (outcome !== "done" || !this.#ownerWaits) return;
    this.#ownerWaits = false;
    this.#owner?.onWritten();
  }

  onBroken(error: CodedError): void {
    this.#broken(error);
  }

  #broken(error: CodedError): void {
    const owner = this.#owner;
    if (owner === undefined) return;
    this.#owner = undefined;
    this.#error = error;
    this.#socket.stream.pause();
    owner.onBroken(error);
  }

  // From the receiver.

  onData(count: number): void {
    const next = this.#owner?.onRead(count);
    if (next !== undefined && !this.#closed) this.buffer = next;
  }

  onKeyUpdateAsked(): void {
    this.#sender.answerKeyUpdate();
  }

  onCloseNotify(): void {
    this.#peerSaidEnd = true;
    this.onEnd();
  }
}
