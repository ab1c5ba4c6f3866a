import { RECORD_HEADER_BYTES, type RecordProtection } from "#linux";
import { allocate } from "./buffers.ts";
import { hboneError } from "./errors.ts";
import { PostHandshake } from "./post-handshake.ts";
import {
  ALERT,
  MOST_CONTENT_BYTES,
  MOST_EMPTY_RECORDS,
  MOST_EXPANSION_BYTES,
  RECORD,
  recordFault,
} from "./record-rules.ts";

const TAG_BYTES = 16;
const MOST_RECORD_BYTES = RECORD_HEADER_BYTES + MOST_CONTENT_BYTES + MOST_EXPANSION_BYTES;
const READ_BYTES = 128 * 1024;

/**
 * What all sessions of the thread read their records into: all that came is dealt with inside the read callback. In front
 * there is room for the beginning of a record that came before.
 */
const records = allocate(MOST_RECORD_BYTES + READ_BYTES);
/** Where a socket reads records to. */
export const recordBuffer = records.subarray(MOST_RECORD_BYTES);

/** Plaintext whose owner's buffer has no room for it as a whole. */
const spare = allocate(MOST_CONTENT_BYTES + MOST_EXPANSION_BYTES);

/** Blocks for the beginnings of records. */
const freeRests: Uint8Array[] = [];
const RESTS_KEPT = 16;

/** What a receiver tells. */
export interface RecordSink {
  /** Where data goes: its length may change with each `onData`. Empty: nobody wants it any more. */
  readonly buffer: Uint8Array;
  /** So many bytes of data lie at the start of `buffer`. */
  onData(count: number): void;
  /** The peer wants our next key. */
  onKeyUpdateAsked(): void;
  /** The peer has ended its direction. */
  onCloseNotify(): void;
}

/** The receiving half of a TLS session: finds records, opens them, and does what they say. */
export class RecordReceiver {
  readonly #protection: RecordProtection;
  readonly #sink: RecordSink;
  readonly #postHandshake: PostHandshake;
  /** The beginning of a record: so many bytes of a block. */
  #rest: Uint8Array | undefined;
  #restCount = 0;
  #filled = 0;
  #emptyInARow = 0;
  #over = false;

  constructor(protection: RecordProtection, sink: RecordSink, isServer: boolean) {
    this.#protection = protection;
    this.#sink = sink;
    this.#postHandshake = new PostHandshake(isServer, (asksBack) => {
      protection.update();
      if (asksBack) sink.onKeyUpdateAsked();
    });
  }

  /** `count` bytes came into `recordBuffer`. Throws `HBONE_TLS_RECORD`, `HBONE_TLS_ALERT`: nothing may follow. */
  take(count: number): void {
    const end = MOST_RECORD_BYTES + count;
    const start = MOST_RECORD_BYTES - this.#restCount;
    if (this.#rest !== undefined) records.set(new Uint8Array(this.#rest.buffer, 0, this.#restCount), start);
    this.#releaseRest();
    const next = this.#takeAll(start, end);
    if (next === end || this.#over) return;
    this.#rest = freeRests.pop() ?? allocate(MOST_RECORD_BYTES);
    this.#restCount = end - next;
    this.#rest.set(new Uint8Array(records.buffer, next, this.#restCount));
  }

  #releaseRest(): void {
    if (this.#rest !== undefined && freeRests.length < RESTS_KEPT) freeRests.push(this.#rest);
    this.#rest = undefined;
    this.#restCount = 0;
  }

  /** Nothing is received any more. */
  dispose(): void {
    this.#over = true;
    this.#releaseRest();
    this.#protection.dispose();
  }

  /** The result is where the first record begins that is not whole. */
  #takeAll(start: number, end: number): number {
    let at = start;
    try {
      while (!this.#over && end - at >= RECORD_HEADER_BYTES) {
        const count = lengthAt(at);
        if (end - at < count) break;
        this.#open(at, count);
        at += count;
      }
    } finally {
      this.#deliver(); // what came before a broken record is authentic
    }
    return at;
  }

  #open(at: number, count: number): void {
    const inner = count - RECORD_HEADER_BYTES - TAG_BYTES;
    if (this.#sink.buffer.length - this.#filled < inner) this.#deliver();
    if (this.#over) return;
    const { buffer } = this.#sink;
    const target = buffer.length < inner ? spare : buffer;
    const record = { bytes: records, at, count };
    if (!this.#protection.open(record, { bytes: target, at: this.#filled })) {
      throw recordFault(ALERT.BAD_RECORD_MAC, "it is not authentic");
    }
    let last = this.#filled + inner - 1;
    while (last > this.#filled && target[last] === 0) last--; // padding
    this.#dispatch(target, last);
  }

  /** The record's content lies from `#filled` on, and its type at `last`. */
  #dispatch(bytes: Uint8Array, last: number): void {
    const type = bytes[last] ?? 0;
    const count = last - this.#filled;
    if (count > MOST_CONTENT_BYTES) throw recordFault(ALERT.RECORD_OVERFLOW, `it holds ${count} bytes`);
    if (type !== RECORD.HANDSHAKE && this.#postHandshake.unfinished) {
      throw recordFault(ALERT.UNEXPECTED_MESSAGE, `one of type ${type} inside a handshake message`);
    }
    if (type === RECORD.DATA && count > 0) {
      this.#emptyInARow = 0;
      if (bytes === spare) this.#deliverSpare(count);
      else this.#filled += count;
      return;
    }
    if (++this.#emptyInARow > MOST_EMPTY_RECORDS) {
      throw recordFault(ALERT.UNEXPECTED_MESSAGE, "too many in a row carry no data");
    }
    if (type !== RECORD.DATA) this.#control(type, bytes.slice(this.#filled, last));
  }

  #control(type: number, content: Uint8Array): void {
    if (type === RECORD.HANDSHAKE && content.length > 0) this.#postHandshake.take(content);
    else if (type === RECORD.ALERT && content.length === 2) this.#alert(content[1] ?? 0);
    else throw recordFault(ALERT.UNEXPECTED_MESSAGE, `type ${type} with ${content.length} bytes`);
  }

  #alert(description: number): void {
    if (description === ALERT.USER_CANCELED) return; // close_notify follows
    this.#deliver();
    if (this.#over) return;
    this.#over = true;
    if (description === ALERT.CLOSE_NOTIFY) this.#sink.onCloseNotify();
    else
      throw hboneError("HBONE_TLS_ALERT", `the peer ended TLS with alert ${description}`, { details: { description } });
  }

  #deliver(): void {
    const count = this.#filled;
    this.#filled = 0;
    if (count > 0 && !this.#over) this.#sink.onData(count);
  }

  #deliverSpare(count: number): void {
    for (let from = 0; from < count && !this.#over && this.#sink.buffer.length > 0;) {
      const { buffer } = this.#sink;
      const part = spare.subarray(from, Math.min(count, from + buffer.length));
      buffer.set(part);
      from += part.length;
      this.#sink.onData(part.length);
    }
  }
}

/** The length of the record whose header is at `at`, as a whole. */
function lengthAt(at: number): number {
  const type = records[at] ?? 0;
  if (type !== RECORD.DATA) throw recordFault(ALERT.UNEXPECTED_MESSAGE, `type ${type} is not protected`);
  const count = ((records[at + 3] ?? 0) << 8) | (records[at + 4] ?? 0);
  if (count > MOST_CONTENT_BYTES + MOST_EXPANSION_BYTES)
    throw recordFault(ALERT.RECORD_OVERFLOW, `it has ${count} bytes`);
  if (count <= TAG_BYTES) throw recordFault(ALERT.BAD_RECORD_MAC, `it has ${count} bytes`);
  return RECORD_HEADER_BYTES + count;
}
