import { createInflate, type Inflate } from "node:zlib";
import { kubeletError } from "./errors.ts";

/**
 * The part of SPDY/3.1 that Kubernetes still forwards ports with: streams that a client opens, their data and their ends.
 * Windows are not kept: neither side of Kubernetes does, a slow reader holds up the whole connection.
 * Source: draft-mbelshe-httpbis-spdy-00, with SPDY/3.1's stream and header layout.
 *
 *     control  1 | version 15 | type 16 | flags 8 | length 24 | …
 *     data     0 | stream 31            | flags 8 | length 24 | bytes
 */
export type SpdyFrame =
  | { readonly kind: "open"; readonly stream: number; readonly headers: ReadonlyMap<string, string> }
  /** A part of a data frame, as it came; `ended`: the client says nothing more on this stream. */
  | { readonly kind: "data"; readonly stream: number; readonly bytes: Buffer; readonly ended: boolean }
  | { readonly kind: "reset"; readonly stream: number }
  | { readonly kind: "ping"; readonly bytes: Buffer }
  | { readonly kind: "away" };

const VERSION = 3;
const SYN_STREAM = 1;
const SYN_REPLY = 2;
const RST_STREAM = 3;
const PING = 6;
const GOAWAY = 7;
const FIN = 1;
const HEAD_BYTES = 8;
/** Bytes of a SYN_STREAM before its headers. */
const OPEN_BYTES = 10;
const STREAM_MASK = 0x7fff_ffff;
/** Most bytes of a control frame, and of the headers in it when they are unpacked. */
const MAX_CONTROL_BYTES = 16_384;
const MAX_HEADER_BYTES = 65_536;

/** Reads the frames of one connection. Throws `KUBELET_PORT_FORWARD` at the first that is none. */
export async function* readFrames(source: AsyncIterable<Buffer>): AsyncGenerator<SpdyFrame, void> {
  const headers = new HeaderReader();
  const input = new Input(source);
  try {
    for (;;) {
      const head = await input.take(HEAD_BYTES);
      if (head === undefined) return;
      const first = head.readUInt32BE(0);
      const ended = (head.readUInt8(4) & FIN) !== 0;
      const length = head.readUIntBE(5, 3);
      if (first > STREAM_MASK) {
        const frame = await readControl(first, length, { input, headers });
        if (frame !== undefined) yield frame;
        // A stream may end with its opening: then it is as if an empty frame said so.
        if (frame?.kind === "open" && ended) yield { kind: "data", stream: frame.stream, bytes: EMPTY, ended };
      } else yield* readData(input, { stream: first, length, ended });
    }
  } finally {
    headers.close();
  }
}

const EMPTY = Buffer.alloc(0);

async function* readData(
  input: Input,
  frame: { readonly stream: number; readonly length: number; readonly ended: boolean },
): AsyncGenerator<SpdyFrame, void> {
  const { stream, ended } = frame;
  let left = frame.length;
  do {
    const bytes = left === 0 ? EMPTY : await input.some(left);
    if (bytes === undefined) return;
    left -= bytes.length;
    yield { kind: "data", stream, bytes, ended: ended && left === 0 };
  } while (left > 0);
}

async function readControl(
  first: number,
  length: number,
  from: { readonly input: Input; readonly headers: HeaderReader },
): Promise<SpdyFrame | undefined> {
  const type = first & 0xffff;
  const version = (first >>> 16) & 0x7fff;
  if (version !== VERSION) throw broken(`a frame is of version ${version}, not ${VERSION}`);
  if (length > MAX_CONTROL_BYTES) throw broken(`a control frame has ${length} bytes`);
  const body = await from.input.take(length);
  if (body === undefined) return undefined;
  if (type === GOAWAY) return { kind: "away" };
  if (type === PING) return { kind: "ping", bytes: body };
  if (type === RST_STREAM && length >= 4) return { kind: "reset", stream: body.readUInt32BE(0) & STREAM_MASK };
  if (type !== SYN_STREAM) return undefined;
  if (length < OPEN_BYTES) throw broken("the opening of a stream is cut");
  const stream = body.readUInt32BE(0) & STREAM_MASK;
  return { kind: "open", stream, headers: await from.headers.read(body.subarray(OPEN_BYTES)) };
}

/** Bytes as they come, in the pieces that are asked for. */
class Input {
  readonly #source: AsyncIterator<Buffer>;
  #rest: Buffer = EMPTY;

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Exactly so many bytes; undefined at the end. */
  async take(count: number): Promise<Buffer | undefined> {
    while (this.#rest.length < count) {
      const next = await this.#source.next();
      if (next.done === true) return undefined;
      this.#rest = this.#rest.length === 0 ? next.value : Buffer.concat([this.#rest, next.value]);
    }
    return this.#cut(count);
  }

  /** What is there, at least one byte and at most so many; undefined at the end. */
  async some(most: number): Promise<Buffer | undefined> {
    while (this.#rest.length === 0) {
      const next = await this.#source.next();
      if (next.done === true) return undefined;
      this.#rest = next.value;
    }
    return this.#cut(Math.min(most, this.#rest.length));
  }

  #cut(count: number): Buffer {
    const taken = this.#rest.subarray(0, count);
    this.#rest = this.#rest.subarray(count);
    return taken;
  }
}

/** Unpacks headers: all of a connection are one zlib stream, flushed after each. */
class HeaderReader {
  readonly #inflate: Inflate = createInflate({ dictionary: headerDictionary() });
  #pieces: Buffer[] = [];
  #fail: (error: Error) => void = () => {};

  constructor() {
    this.#inflate.on("data", (piece: Buffer) => {
      this.#pieces.push(piece);
      const total = this.#pieces.reduce((sum, { length }) => sum + length, 0);
      if (total > MAX_HEADER_BYTES)
        this.#inflate.destroy(new Error(`headers have more than ${MAX_HEADER_BYTES} bytes`));
    });
    this.#inflate.on("error", (error) => this.#fail(error));
  }

  async read(packed: Buffer): Promise<ReadonlyMap<string, string>> {
    this.#pieces = [];
    await new Promise<void>((resolve, reject) => {
      this.#fail = (cause) => reject(broken(`headers cannot be unpacked: ${cause.message}`));
      this.#inflate.write(packed, (error) => {
        if (error === null || error === undefined) resolve();
        else this.#fail(error);
      });
    });
    this.#inflate.read(); // what waits in the stream comes as data now
    return decodeHeaders(Buffer.concat(this.#pieces));
  }

  close(): void {
    this.#inflate.destroy();
  }
}

/** `count`, then each name and value with its length before it, 32 bits each. Names are lower-case. */
function decodeHeaders(bytes: Buffer): ReadonlyMap<string, string> {
  const headers = new Map<string, string>();
  let at = 0;
  const number = (): number => {
    if (at + 4 > bytes.length) throw broken("headers are cut");
    at += 4;
    return bytes.readUInt32BE(at - 4);
  };
  const text = (): string => {
    const length = number();
    if (at + length > bytes.length) throw broken("headers are cut");
    at += length;
    return bytes.toString("utf8", at - length, at);
  };
  for (let left = number(); left > 0; left--) {
    const name = text().toLowerCase();
    headers.set(name, text());
  }
  return headers;
}

function broken(message: string): Error {
  return kubeletError("KUBELET_PORT_FORWARD", `a client does not speak SPDY/3.1: ${message}`);
}

/** Tells the client that its stream is open. `first`: nothing was answered on this connection yet. */
export function replyFrame(stream: number, first: boolean): Buffer {
  // No headers, as stored blocks of zlib: its head once, then the count of none, then the empty block that flushes it.
  const none = Buffer.from("000400fbff00000000000000ffff", "hex");
  const packed = first ? Buffer.concat([Buffer.of(0x78, 0x01), none]) : none;
  return Buffer.concat([controlHead(SYN_REPLY, 4 + packed.length), uint32(stream), packed]);
}

/** Data of a stream; `ended`: nothing more comes on it. */
export function dataFrame(stream: number, bytes: Uint8Array, ended: boolean): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt32BE(stream, 0);
  head.writeUInt8(ended ? FIN : 0, 4);
  head.writeUIntBE(bytes.length, 5, 3);
  return Buffer.concat([head, bytes]);
}

/** Ends a stream in both directions. */
export function resetFrame(stream: number): Buffer {
  const CANCEL = 5;
  return Buffer.concat([controlHead(RST_STREAM, 8), uint32(stream), uint32(CANCEL)]);
}

/** The answer to a ping: the same again. */
export function pingFrame(bytes: Buffer): Buffer {
  return Buffer.concat([controlHead(PING, bytes.length), bytes]);
}

function controlHead(type: number, length: number): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt16BE(0x8000 | VERSION, 0);
  head.writeUInt16BE(type, 2);
  head.writeUIntBE(length, 5, 3);
  return head;
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}

const DICTIONARY_WORDS =
  "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";
const DICTIONARY_TAIL =
  "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/** What both sides' zlib begins with (section 2.6.10.1): words with their length before them, then a text. */
export function headerDictionary(): Buffer {
  const words = DICTIONARY_WORDS.split(" ").map((word) => Buffer.from(word.replace("_", " ")));
  return Buffer.concat([...words.flatMap((word) => [uint32(word.length), word]), Buffer.from(DICTIONARY_TAIL)]);
}
