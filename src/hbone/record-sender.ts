import { RECORD_OVERHEAD_BYTES, type ByteStream, type RecordProtection, type WriteOutcome } from "#linux";
import { allocate } from "./buffers.ts";
import { keyUpdateMessage } from "./post-handshake.ts";
import { ALERT, MOST_CONTENT_BYTES, RECORD, RECORDS_PER_KEY } from "./record-rules.ts";

/** What is written at a time, at most: the end of each write is a small segment of its own. */
const CHUNK_BYTES = 64 * (MOST_CONTENT_BYTES + RECORD_OVERHEAD_BYTES);
const CHUNKS_KEPT = 4;

interface Chunk {
  readonly bytes: Uint8Array;
  used: number;
}

const freeChunks: Chunk[] = [];

function release(chunks: readonly Chunk[]): void {
  for (const chunk of chunks) {
    chunk.used = 0;
    if (freeChunks.length < CHUNKS_KEPT) freeChunks.push(chunk);
  }
}

function view({ bytes, used }: Chunk): Uint8Array {
  return new Uint8Array(bytes.buffer, 0, used);
}

/**
 * The sending half of a TLS session: seals what is written into records, in chunks. What the socket does not take at once
 * waits here, sealed: the plain bytes are free when a write returns.
 */
export class RecordSender {
  readonly #wire: ByteStream;
  readonly #protection: RecordProtection;
  readonly #recordsPerKey: number;
  #chunk: Chunk | undefined;
  #inFlight: readonly Chunk[] = [];
  #waiting: Chunk[] = [];
  #failed = false;
  /** The peer has asked for our next key: it has it before the next data. */
  #updateDue = false;
  #shutdownDue = false;
  /** close_notify has been sent: nothing of ours may follow it (RFC 8446 §6.1). */
  #endSaid = false;

  constructor(wire: ByteStream, protection: RecordProtection, recordsPerKey = RECORDS_PER_KEY) {
    this.#wire = wire;
    this.#protection = protection;
    this.#recordsPerKey = recordsPerKey;
  }

  /** Something that was written is not with the kernel yet. */
  get busy(): boolean {
    return this.#inFlight.length > 0;
  }

  /** Sends data. `pending`: `written` says true once it is out. */
  write(pieces: readonly Uint8Array[]): WriteOutcome {
    for (const piece of pieces) {
      for (let at = 0; at < piece.length; at += MOST_CONTENT_BYTES) {
        this.#seal(RECORD.DATA, piece, { at, count: Math.min(MOST_CONTENT_BYTES, piece.length - at) });
      }
    }
    return this.#push();
  }

  /** The peer has asked for our next key. */
  answerKeyUpdate(): void {
    if (this.#endSaid) return;
    this.#updateDue = true;
    if (this.busy) return; // once is enough for all that it asks until then
    this.#updateKey();
    this.#push();
  }

  /** Sends close_notify, once. */
  sayEnd(): void {
    this.alert(1, ALERT.CLOSE_NOTIFY);
    this.#endSaid = true;
  }

  /** Sends an alert. */
  alert(level: 1 | 2, description: number): void {
    if (this.#endSaid) return;
    this.#seal(RECORD.ALERT, Uint8Array.of(level, description), { at: 0, count: 2 });
    this.#push();
  }

  /** Ends our direction once what was written is out. */
  shutdown(): void {
    this.sayEnd();
    this.#shutdownDue = true;
    if (!this.busy) this.#wire.shutdown();
  }

  /** The wire's pending write is out. The result is what `write` would say now. */
  written(): WriteOutcome {
    release(this.#inFlight);
    this.#inFlight = [];
    const waiting = this.#waiting;
    this.#waiting = [];
    if (waiting.length > 0) this.#send(waiting);
    if (!this.busy && this.#updateDue && !this.#endSaid) {
      this.#updateKey();
      this.#push();
    }
    if (!this.busy && this.#shutdownDue && !this.#failed) this.#wire.shutdown();
    return this.#outcome();
  }

  /** Nothing is sent any more. The wire must be closed already: the kernel no longer reads from the chunks then. */
  dispose(): void {
    this.#failed = true;
    this.#protection.dispose();
    release(this.#inFlight);
    release(this.#waiting);
    this.#inFlight = [];
    this.#waiting = [];
  }

  #seal(type: number, bytes: Uint8Array, { at, count }: { at: number; count: number }): void {
    if (this.#failed) return;
    if (this.#updateDue || this.#protection.records >= this.#recordsPerKey) this.#updateKey();
    this.#sealOne(type, { bytes, at, count });
  }

  #updateKey(): void {
    this.#updateDue = false;
    const bytes = keyUpdateMessage(false);
    this.#sealOne(RECORD.HANDSHAKE, { bytes, at: 0, count: bytes.length });
    this.#protection.update();
  }

  #sealOne(type: number, content: { bytes: Uint8Array; at: number; count: number }): void {
    if (this.#chunk !== undefined && this.#chunk.used + content.count + RECORD_OVERHEAD_BYTES > CHUNK_BYTES)
      this.#push();
    const chunk = (this.#chunk ??= freeChunks.pop() ?? { bytes: allocate(CHUNK_BYTES), used: 0 });
    chunk.used += this.#protection.seal(content, type, { bytes: chunk.bytes, at: chunk.used });
  }

  /** Hands the chunk under way to the wire, or lets it wait for the one before. */
  #push(): WriteOutcome {
    const chunk = this.#chunk;
    this.#chunk = undefined;
    if (chunk === undefined) return this.#outcome();
    if (this.busy) this.#waiting.push(chunk);
    else this.#send([chunk]);
    return this.#outcome();
  }

  #send(chunks: readonly Chunk[]): void {
    const [first] = chunks;
    const outcome = this.#failed
      ? "failed"
      : chunks.length === 1 && first !== undefined
        ? this.#wire.write(view(first))
        : this.#wire.writeAll(chunks.map(view));
    if (outcome === "pending") {
      this.#inFlight = chunks;
      return;
    }
    release(chunks);
    if (outcome === "failed") this.#failed = true;
  }

  #outcome(): WriteOutcome {
    if (this.#failed) return "failed";
    return this.busy ? "pending" : "done";
  }
}
