import wireTable from "./schema/wire.json" with { type: "json" };
import { isRecord } from "./object.ts";
import { badRequest, unsupportedMediaType } from "./status.ts";

/**
 * Reads objects in Kubernetes' protobuf encoding, which typed Go clients (kubectl create, helm) send. Answers are
 * always JSON, which those clients accept.
 *
 *     "k8s\0"  runtime.Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: raw bytes of the message, 3..4: encodings }
 */

/** The content type of this encoding. */
export const PROTOBUF_TYPE = "application/vnd.kubernetes.protobuf";

const MAGIC = Buffer.from("k8s\0", "latin1");
const MAX_DEPTH = 64;

interface Field {
  readonly json: string;
  readonly notation: string;
}

const wire: Readonly<Record<string, string>> = wireTable;
const known = new Map<string, ReadonlyMap<number, Field>>();

/** Decodes a body. Throws 400 that names the field where it is damaged, 415 for kinds without a known encoding. */
export function decodeProtobuf(body: Buffer): unknown {
  if (!body.subarray(0, 4).equals(MAGIC))
    throw badRequest("the body is no Kubernetes protobuf: it does not begin with k8s\\0");
  let apiVersion = "";
  let kind = "";
  let raw: Buffer = Buffer.alloc(0);
  const envelope = new Reader(body.subarray(4), "envelope");
  for (let field = envelope.next(); field !== undefined; field = envelope.next()) {
    if (field.number === 2) raw = envelope.bytes(field);
    else if (field.number === 1) {
      const meta = new Reader(envelope.bytes(field), "typeMeta");
      for (let inner = meta.next(); inner !== undefined; inner = meta.next()) {
        const text = meta.bytes(inner).toString("utf8");
        if (inner.number === 1) apiVersion = text;
        if (inner.number === 2) kind = text;
      }
    } else envelope.skip(field);
  }
  if (wire[kind] === undefined || apiVersion === "events.k8s.io/v1") {
    throw unsupportedMediaType(
      `the body of the request was in an unknown format - ${kind.slice(0, 100) || "an object without a kind"} is only accepted as application/json`,
    );
  }
  return { apiVersion, kind, ...readMessage(kind, raw, { path: "", depth: 0 }) };
}

interface Place {
  readonly path: string;
  readonly depth: number;
}

function fieldsOf(message: string): ReadonlyMap<number, Field> {
  let fields = known.get(message);
  if (fields !== undefined) return fields;
  const parts = (wire[message] ?? "").split(" ").filter((part) => part !== "");
  fields = new Map(
    parts.map((part) => {
      const [, number = "", json = "", notation = ""] = /^(\d+)=([^:]*):(.+)$/.exec(part) ?? [];
      return [Number(number), { json, notation }];
    }),
  );
  known.set(message, fields);
  return fields;
}

function readMessage(message: string, bytes: Buffer, place: Place): Record<string, unknown> {
  if (place.depth > MAX_DEPTH) throw badRequest(`${place.path}: nested deeper than ${MAX_DEPTH}`);
  const out: Record<string, unknown> = {};
  const reader = new Reader(bytes, place.path || message);
  const fields = fieldsOf(message);
  for (let at = reader.next(); at !== undefined; at = reader.next()) {
    const field = fields.get(at.number);
    if (field === undefined) {
      reader.skip(at);
      continue;
    }
    const inner = { path: place.path === "" ? field.json : `${place.path}.${field.json}`, depth: place.depth + 1 };
    if (field.json === "")
      Object.assign(
        out,
        readMessage(field.notation.replace(/^\*/, ""), reader.bytes(at), { ...inner, path: place.path }),
      );
    else readField(out, field, { reader, at, place: inner });
  }
  return out;
}

interface Source {
  readonly reader: Reader;
  readonly at: Tag;
  readonly place: Place;
}

function readField(out: Record<string, unknown>, field: Field, source: Source): void {
  const { json, notation } = field;
  if (notation.startsWith("[]")) {
    const list = out[json];
    const value = readValue(notation.slice(2), source);
    if (Array.isArray(list)) list.push(value);
    else out[json] = [value];
  } else if (notation.startsWith("{}")) {
    const map = isRecord(out[json]) ? out[json] : {};
    out[json] = map;
    const [key, value] = readEntry(notation.slice(2), source);
    Object.defineProperty(map, key, { value, enumerable: true, configurable: true, writable: true });
  } else {
    const value = readValue(notation.replace(/^\*/, ""), source);
    // What is no pointer in Go is sent even when it is not set: its zero value means nothing.
    if (notation.startsWith("*") || !isZero(value)) out[json] = value;
  }
}

function isZero(value: unknown): boolean {
  if (value === undefined || value === "" || value === 0 || value === false) return true;
  return isRecord(value) && Object.keys(value).length === 0;
}

function readEntry(notation: string, { reader, at, place }: Source): [string, unknown] {
  const entry = new Reader(reader.bytes(at), place.path);
  let key = "";
  let value: unknown = notation === "s" || notation === "y" ? "" : undefined;
  for (let inner = entry.next(); inner !== undefined; inner = entry.next()) {
    if (inner.number === 1) key = entry.bytes(inner).toString("utf8");
    else if (inner.number === 2) value = readValue(notation, { reader: entry, at: inner, place });
    else entry.skip(inner);
  }
  return [key, value];
}

function readValue(notation: string, { reader, at, place }: Source): unknown {
  switch (notation) {
    case "s":
      return reader.bytes(at).toString("utf8");
    case "i":
      return reader.integer(at);
    case "b":
      return reader.integer(at) !== 0;
    case "y":
      return reader.bytes(at).toString("base64");
    case "t":
    case "u":
      return readTime(reader.bytes(at), notation === "u");
    case "q":
      return firstText(reader.bytes(at), 1);
    case "j":
      return undefined; // managed fields are never taken from a client
    case "o":
      return readIntOrString(reader.bytes(at));
    default:
      if (notation.startsWith("$")) return readItems(notation.slice(3), { reader, at, place });
      return readMessage(notation, reader.bytes(at), place);
  }
}

function readItems(notation: string, { reader, at, place }: Source): unknown[] {
  const list = new Reader(reader.bytes(at), place.path);
  const items: unknown[] = [];
  for (let inner = list.next(); inner !== undefined; inner = list.next()) {
    if (inner.number === 1) items.push(readValue(notation, { reader: list, at: inner, place }));
    else list.skip(inner);
  }
  return items;
}

function readTime(bytes: Buffer, micros: boolean): string | undefined {
  const reader = new Reader(bytes, "time");
  let seconds = 0;
  let nanos = 0;
  for (let at = reader.next(); at !== undefined; at = reader.next()) {
    if (at.number === 1) seconds = reader.integer(at);
    else if (at.number === 2) nanos = reader.integer(at);
    else reader.skip(at);
  }
  const date = new Date(seconds * 1000);
  if (seconds === 0 || Number.isNaN(date.getTime())) return undefined;
  const text = date.toISOString().replace(/\.\d+Z$/, "");
  return micros ? `${text}.${String(Math.floor(nanos / 1000)).padStart(6, "0")}Z` : `${text}Z`;
}

function firstText(bytes: Buffer, number: number): string {
  const reader = new Reader(bytes, "quantity");
  for (let at = reader.next(); at !== undefined; at = reader.next()) {
    if (at.number === number) return reader.bytes(at).toString("utf8");
    reader.skip(at);
  }
  return "0";
}

function readIntOrString(bytes: Buffer): number | string {
  const reader = new Reader(bytes, "intOrString");
  let type = 0;
  let number = 0;
  let text = "";
  for (let at = reader.next(); at !== undefined; at = reader.next()) {
    if (at.number === 1) type = reader.integer(at);
    else if (at.number === 2) number = reader.integer(at);
    else if (at.number === 3) text = reader.bytes(at).toString("utf8");
    else reader.skip(at);
  }
  return type === 1 ? text : number;
}

interface Tag {
  readonly number: number;
  readonly type: number;
}

/** Walks over one message; never reads past its end. */
class Reader {
  readonly #bytes: Buffer;
  readonly #place: string;
  #at = 0;

  constructor(bytes: Buffer, place: string) {
    this.#bytes = bytes;
    this.#place = place;
  }

  /** The next field's tag; undefined at the end. */
  next(): Tag | undefined {
    if (this.#at >= this.#bytes.length) return undefined;
    const tag = Number(this.#varint());
    return { number: Math.floor(tag / 8), type: tag % 8 };
  }

  /** A whole number; signed, as int32 and int64 are sent. */
  integer(tag: Tag): number {
    if (tag.type !== 0) throw this.#damaged();
    return Number(BigInt.asIntN(64, this.#varint()));
  }

  bytes(tag: Tag): Buffer {
    if (tag.type !== 2) throw this.#damaged();
    const length = Number(this.#varint());
    const end = this.#at + length;
    if (end > this.#bytes.length) throw this.#damaged();
    const part = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return part;
  }

  skip(tag: Tag): void {
    if (tag.type === 0) this.#varint();
    else if (tag.type === 2) this.bytes(tag);
    else if (tag.type === 1 || tag.type === 5) this.#at += tag.type === 1 ? 8 : 4;
    else throw this.#damaged();
    if (this.#at > this.#bytes.length) throw this.#damaged();
  }

  #varint(): bigint {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = this.#bytes[this.#at++];
      if (byte === undefined) throw this.#damaged();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw this.#damaged();
  }

  #damaged(): Error {
    return badRequest(`the protobuf body is damaged at ${this.#place}, byte ${Math.min(this.#at, this.#bytes.length)}`);
  }
}
