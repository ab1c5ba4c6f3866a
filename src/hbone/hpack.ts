import { hboneError } from "./errors.ts";
import { decodeHuffman } from "./huffman.ts";

/** Names and values in order: name, value, name, value. One character per byte. */
export type HeaderList = readonly string[];

/** RFC 7541 Appendix A: index 1 to 61, `name` or `name=value`. */
const STATIC_TEXT =
  ":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|:status=204|" +
  ":status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|accept-encoding=gzip, deflate|" +
  "accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control|" +
  "content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type|" +
  "cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|" +
  "last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|" +
  "server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate";

interface Entry {
  readonly name: string;
  readonly value: string;
}

const STATIC: readonly Entry[] = STATIC_TEXT.split("|").map((text) => {
  const equals = text.indexOf("=", 1);
  return equals < 0 ? { name: text, value: "" } : { name: text.slice(0, equals), value: text.slice(equals + 1) };
});

/** What an entry costs besides its text (RFC 7541 §4.1). */
const ENTRY_OVERHEAD = 32;
/** The size of the dynamic table that a peer may use: the protocol's default, which we do not change. */
export const TABLE_BYTES = 4096;

/**
 * The decoder of one session's header blocks, with its dynamic table. Complete: indexed fields, literals of all kinds,
 * size updates, Huffman. Throws `HBONE_COMPRESSION` or `HBONE_HEADERS_TOO_LARGE`; the session must end then, as the
 * table is no longer the peer's.
 */
export class HpackDecoder {
  readonly #listLimit: number;
  readonly #table: Entry[] = []; // newest last
  #tableBytes = 0;
  #capacity = TABLE_BYTES;
  #bytes = new Uint8Array(0) as Uint8Array;
  #at = 0;
  #end = 0;

  /** `listLimit`: the largest header list, counted as SETTINGS_MAX_HEADER_LIST_SIZE does. */
  constructor(listLimit: number) {
    this.#listLimit = listLimit;
  }

  /** Decodes one complete block. */
  decode(bytes: Uint8Array, start: number, end: number): HeaderList {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
    const list: string[] = [];
    let size = 0;
    while (this.#at < end) {
      const first = bytes[this.#at] ?? 0;
      if ((first & 0xe0) === 0x20) {
        this.#resize(this.#integer(5), list.length > 0);
        continue;
      }
      const { name, value } = this.#field(first);
      size += name.length + value.length + ENTRY_OVERHEAD;
      if (size > this.#listLimit) {
        throw hboneError("HBONE_HEADERS_TOO_LARGE", `a header list is larger than ${this.#listLimit} bytes`);
      }
      list.push(name, value);
    }
    return list;
  }

  #field(first: number): Entry {
    if ((first & 0x80) !== 0) return this.#entry(this.#integer(7));
    const indexed = (first & 0x40) !== 0;
    const index = this.#integer(indexed ? 6 : 4);
    const name = index === 0 ? this.#string() : this.#entry(index).name;
    const entry = { name, value: this.#string() };
    if (indexed) this.#add(entry);
    return entry;
  }

  #entry(index: number): Entry {
    const entry =
      index <= STATIC.length ? STATIC[index - 1] : this.#table[this.#table.length - (index - STATIC.length)];
    if (entry === undefined) throw hboneError("HBONE_COMPRESSION", `the header index ${index} does not exist`);
    return entry;
  }

  #add(entry: Entry): void {
    this.#table.push(entry);
    this.#tableBytes += entry.name.length + entry.value.length + ENTRY_OVERHEAD;
    this.#evict();
  }

  #resize(capacity: number, late: boolean): void {
    if (late) throw hboneError("HBONE_COMPRESSION", "a table size update follows a header field");
    if (capacity > TABLE_BYTES) {
      throw hboneError(
        "HBONE_COMPRESSION",
        `a table size update asks for ${capacity} bytes, ${TABLE_BYTES} are allowed`,
      );
    }
    this.#capacity = capacity;
    this.#evict();
  }

  #evict(): void {
    while (this.#tableBytes > this.#capacity) {
      const oldest = this.#table.shift();
      if (oldest === undefined) break;
      this.#tableBytes -= oldest.name.length + oldest.value.length + ENTRY_OVERHEAD;
    }
  }

  /** RFC 7541 §5.1, at most four continuation bytes: nothing legitimate is larger. */
  #integer(prefixBits: number): number {
    const most = (1 << prefixBits) - 1;
    let value = this.#byte() & most;
    if (value < most) return value;
    for (let shift = 0; shift <= 21; shift += 7) {
      const byte = this.#byte();
      value += (byte & 127) << shift;
      if ((byte & 128) === 0) return value;
    }
    throw hboneError("HBONE_COMPRESSION", "an integer of a header block is too long");
  }

  #byte(): number {
    if (this.#at >= this.#end) throw hboneError("HBONE_COMPRESSION", "a header block ends within a field");
    return this.#bytes[this.#at++] ?? 0;
  }

  #string(): string {
    const huffman = ((this.#bytes[this.#at] ?? 0) & 128) !== 0;
    const length = this.#integer(7);
    const start = this.#at;
    const end = start + length;
    if (end > this.#end) throw hboneError("HBONE_COMPRESSION", "a header string is longer than its block");
    this.#at = end;
    if (huffman) return decodeHuffman(this.#bytes, start, end);
    const { buffer, byteOffset } = this.#bytes;
    return Buffer.from(buffer, byteOffset + start, length).toString("latin1");
  }
}

/** Text of a field that is worth a place in the peer's table. */
const MOST_SHARED_BYTES = 1024;

/**
 * The encoder of one session's header blocks: fields that many blocks share stand in the peer's table, as long as there is room;
 * none is ever evicted. Each block has to be sent, in the order in which its fields were encoded.
 */
export class HpackEncoder {
  readonly #places = new Map<string, number>();
  #tableBytes = 0;
  #updateDue = false;
  #closed = false;

  /** The peer keeps a smaller table than the protocol's default: from now on nothing stands there. */
  close(): void {
    this.#closed = true;
    this.#updateDue = true;
    this.#places.clear();
  }

  /** A block of encoded fields, as it is to be sent. */
  block(fields: readonly Uint8Array[]): readonly Uint8Array[] {
    if (!this.#updateDue) return fields;
    this.#updateDue = false;
    return [EMPTY_TABLE, ...fields];
  }

  /** A field that other blocks will have, too. */
  shared(name: string, value: string): Uint8Array {
    const key = `${name} ${value}`;
    const place = this.#places.get(key);
    if (place !== undefined) return Uint8Array.from(encodeInteger(STATIC.length + this.#places.size - place, 7, 0x80));
    const literal = encodeField(name, value);
    const byteCount = name.length + value.length + ENTRY_OVERHEAD;
    const fits = byteCount <= MOST_SHARED_BYTES && this.#tableBytes + byteCount <= TABLE_BYTES;
    if (this.#closed || !fits || (literal[0] ?? 0) >= 0x80) return literal;
    this.#tableBytes += byteCount;
    this.#places.set(key, this.#places.size);
    return indexing(literal, name);
  }
}

/** RFC 7541 §6.3: a table of 0 bytes. */
const EMPTY_TABLE = Uint8Array.of(0x20);

/** The literal `field` again, as one that the table keeps. */
function indexing(field: Uint8Array, name: string): Uint8Array {
  const start = startOf(name);
  const index = STATIC.findIndex((entry) => entry.name === name) + 1;
  const withName = index === 0 ? start.subarray(1) : new Uint8Array(0);
  return Buffer.concat([Uint8Array.from(encodeInteger(index, 6, 0x40)), withName, field.subarray(start.length)]);
}

/** Encodes a field as a literal that no table keeps, names by the static table where it has them, without Huffman. */
export function encodeField(name: string, value: string): Uint8Array {
  const exact = value === "" ? -1 : STATIC.findIndex((entry) => entry.name === name && entry.value === value);
  if (exact >= 0) return Uint8Array.of(0x80 | (exact + 1));
  const start = startOf(name);
  const length = encodeInteger(value.length, 7, 0);
  const out = Buffer.allocUnsafe(start.length + length.length + value.length);
  out.set(start, 0);
  out.set(length, start.length);
  out.write(value, start.length + length.length, "latin1");
  return out;
}

/** By name: what a literal field begins with. Few names are ever encoded. */
const starts = new Map<string, Uint8Array>();

function startOf(name: string): Uint8Array {
  let start = starts.get(name);
  if (start === undefined) {
    const index = STATIC.findIndex((entry) => entry.name === name);
    const literal = [...encodeInteger(name.length, 7, 0), ...Buffer.from(name, "latin1")];
    start = Uint8Array.from([...encodeInteger(index + 1, 4, 0), ...(index < 0 ? literal : [])]);
    if (starts.size < MOST_NAMES) starts.set(name, start);
  }
  return start;
}

const MOST_NAMES = 64;

/** RFC 7541 §5.1. */
function encodeInteger(value: number, prefixBits: number, flags: number): number[] {
  const most = (1 << prefixBits) - 1;
  if (value < most) return [flags | value];
  const out = [flags | most];
  let rest = value - most;
  for (; rest > 127; rest >>>= 7) out.push((rest & 127) | 128);
  out.push(rest);
  return out;
}
