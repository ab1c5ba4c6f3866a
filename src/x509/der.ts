import { x509Error } from "./errors.ts";

/** Tags of the DER types that certificates and requests are made of (X.690 §8). */
export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  oid: 0x06,
  sequence: 0x30,
  set: 0x31,
} as const;

/** One element: its tag and where its content lies in the input. */
export interface DerElement {
  readonly tag: number;
  /** Where the header begins. */
  readonly headerStart: number;
  /** Where the content begins. */
  readonly start: number;
  /** One past the content's last byte. */
  readonly end: number;
}

/**
 * Walks the elements of one DER value, strictly: definite lengths in their shortest form, nothing beyond the parent's end.
 * Made for the handshake path: no copies, no recursion, and its work is bounded by the input's length.
 * Every failure is `X509_DER` and names the place.
 */
export class DerCursor {
  readonly #bytes: Uint8Array;
  readonly #end: number;
  #at: number;

  constructor(bytes: Uint8Array, range: { start: number; end: number } = { start: 0, end: bytes.length }) {
    this.#bytes = bytes;
    this.#at = range.start;
    this.#end = range.end;
  }

  get done(): boolean {
    return this.#at >= this.#end;
  }

  /** The tag of the next element; -1 at the end. */
  get peekTag(): number {
    return this.#at < this.#end ? (this.#bytes[this.#at] ?? -1) : -1;
  }

  /** Takes the next element, which must have `tag`; `what` names it in the error. */
  take(tag: number, what: string): DerElement {
    const element = this.takeAny(what);
    if (element.tag !== tag)
      throw malformed(what, `tag 0x${element.tag.toString(16)} where 0x${tag.toString(16)} belongs`);
    return element;
  }

  /** Takes the next element when it has `tag`. */
  takeIf(tag: number, what: string): DerElement | undefined {
    return this.peekTag === tag ? this.takeAny(what) : undefined;
  }

  /** Takes the next element, whatever it is. */
  takeAny(what: string): DerElement {
    const headerStart = this.#at;
    if (headerStart + 2 > this.#end) throw malformed(what, "it is missing or cut short");
    const tag = this.#bytes[headerStart] ?? 0;
    if ((tag & 0x1f) === 0x1f) throw malformed(what, "its tag has more than one byte");
    const { start, length } = this.#readLength(headerStart + 1, what);
    if (length > this.#end - start) throw malformed(what, "it is longer than what holds it");
    this.#at = start + length;
    return { tag, headerStart, start, end: this.#at };
  }

  /** Walks into an element that {@link take} gave. */
  enter(element: DerElement): DerCursor {
    return new DerCursor(this.#bytes, element);
  }

  /** Refuses anything after the last element. */
  finish(what: string): void {
    if (!this.done) throw malformed(what, `${this.#end - this.#at} bytes follow its end`);
  }

  #readLength(at: number, what: string): { start: number; length: number } {
    const first = this.#bytes[at] ?? 0;
    if (first < 0x80) return { start: at + 1, length: first };
    const count = first & 0x7f;
    if (count === 0 || count > 3) throw malformed(what, "its length is indefinite or larger than 16 MiB");
    if (at + 1 + count > this.#end) throw malformed(what, "its length is cut short");
    let length = 0;
    for (let i = 1; i <= count; i++) length = length * 256 + (this.#bytes[at + i] ?? 0);
    if (length < 0x80 || length < 256 ** (count - 1)) throw malformed(what, "its length is not in the shortest form");
    return { start: at + 1 + count, length };
  }
}

/** The content of an element as it lies in the input. Shares memory with it. */
export function contentOf(bytes: Uint8Array, element: DerElement): Uint8Array {
  return bytes.subarray(element.start, element.end);
}

/** An element with its header. Shares memory with the input. */
export function wholeOf(bytes: Uint8Array, element: DerElement): Uint8Array {
  return bytes.subarray(element.headerStart, element.end);
}

/** True when the element's content equals `expected`, byte by byte. */
export function contentEquals(bytes: Uint8Array, element: DerElement, expected: readonly number[]): boolean {
  if (element.end - element.start !== expected.length) return false;
  return expected.every((byte, i) => bytes[element.start + i] === byte);
}

/** The content as one character per byte; for IA5String and OID comparison. */
export function latin1Of(bytes: Uint8Array, element: DerElement): string {
  let text = "";
  for (let at = element.start; at < element.end; at++) text += String.fromCharCode(bytes[at] ?? 0);
  return text;
}

/** The error for DER that breaks a rule. */
export function malformed(what: string, why: string): Error {
  return x509Error("X509_DER", `cannot read ${what}: ${why}`, { details: { field: what } });
}
