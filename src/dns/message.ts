import { ipToBytes, isV6, type IpAddress } from "#base/ip";

/**
 * DNS messages as far as this component has to understand them (RFC 1035 section 4, RFC 6891): one question in, addresses out. Everything
 * else is forwarded as it came. The question is echoed byte for byte, because resolvers compare it, upper and lower case included.
 */

/** Types of records that are answered here. */
export const TYPE_A = 1;
export const TYPE_AAAA = 28;
const TYPE_CNAME = 5;
const TYPE_OPT = 41;
/** The class of the Internet. */
export const CLASS_IN = 1;

/** Response codes (RFC 1035 section 4.1.1). */
export const RCODE = { noError: 0, formatError: 1, serverFailure: 2, notImplemented: 4 } as const;

/** How long an answer may be kept: upstream's value. */
const TTL_SECONDS = 30;
const HEADER_BYTES = 12;
const MAX_NAME_BYTES = 255;
const MAX_LABEL_BYTES = 63;
/** The least that every client takes over UDP. */
const LEAST_UDP_BYTES = 512;
/** What we take over UDP ourselves, told to clients that speak EDNS: what fits into a packet of 1,280 bytes. */
const OWN_UDP_BYTES = 1232;
const MAX_MESSAGE_BYTES = 65_535;
const OPT_BYTES = 11;

const RESPONSE = 0x8000;
const OPCODE = 0x7800;
const AUTHORITATIVE = 0x0400;
const TRUNCATED = 0x0200;
const RECURSION_DESIRED = 0x0100;
const RECURSION_AVAILABLE = 0x0080;

/** A question that can be answered or forwarded. */
export interface Query {
  /** The whole message. */
  readonly bytes: Buffer;
  readonly id: number;
  readonly flags: number;
  /** In lower case without the last dot; undefined when a label has bytes that no host's name has. Such a name is nobody's here. */
  readonly name: string | undefined;
  readonly type: number;
  readonly class: number;
  /** Where the question ends. */
  readonly questionEnd: number;
  /** Undefined: the client speaks no EDNS. */
  readonly edns: { readonly udpBytes: number; readonly dnssecOk: boolean } | undefined;
}

/** A message that is no question for us: `failure` is the answer to it, undefined when it deserves none. */
export interface NoQuery {
  readonly failure: Buffer | undefined;
}

/** Reads a message of a client. Never throws. A message without header, or one that is itself an answer, gets no answer. */
export function decodeQuery(bytes: Buffer): Query | NoQuery {
  if (bytes.length < HEADER_BYTES) return { failure: undefined };
  const flags = bytes.readUInt16BE(2);
  if ((flags & RESPONSE) !== 0) return { failure: undefined };
  if ((flags & OPCODE) !== 0) return { failure: encodeFailure(bytes, RCODE.notImplemented) };
  const nameEnd = bytes.readUInt16BE(4) === 1 ? endOfName(bytes, HEADER_BYTES) : undefined;
  if (nameEnd === undefined || nameEnd + 4 > bytes.length) {
    return { failure: encodeFailure(bytes, RCODE.formatError) };
  }
  const questionEnd = nameEnd + 4;
  return {
    bytes,
    id: bytes.readUInt16BE(0),
    flags,
    name: readName(bytes),
    type: bytes.readUInt16BE(nameEnd),
    class: bytes.readUInt16BE(nameEnd + 2),
    questionEnd,
    edns: readEdns(bytes, questionEnd),
  };
}

/** The position after an uncompressed name, as questions carry it; undefined when it is none. */
function endOfName(bytes: Buffer, start: number): number | undefined {
  for (let at = start; at < bytes.length;) {
    const length = bytes[at] ?? 0;
    at += 1 + length;
    if (length > MAX_LABEL_BYTES || at - start > MAX_NAME_BYTES) return undefined;
    if (length === 0) return at;
  }
  return undefined;
}

/** The name of the question, which {@link endOfName} has found whole. */
function readName(bytes: Buffer): string | undefined {
  const labels: string[] = [];
  for (let at = HEADER_BYTES, length = bytes[at] ?? 0; length > 0; at += 1 + length, length = bytes[at] ?? 0) {
    labels.push(bytes.toString("latin1", at + 1, at + 1 + length));
  }
  return labels.every((label) => /^[\w*-]+$/.test(label)) ? labels.join(".").toLowerCase() : undefined;
}

/** Resolvers put the OPT record right behind the question; one that stands elsewhere is not seen, and costs only size. */
function readEdns(bytes: Buffer, at: number): Query["edns"] {
  const isOpt = bytes.length >= at + OPT_BYTES && bytes[at] === 0 && bytes.readUInt16BE(at + 1) === TYPE_OPT;
  if (!isOpt) return undefined;
  return { udpBytes: bytes.readUInt16BE(at + 3), dnssecOk: (bytes.readUInt16BE(at + 7) & 0x8000) !== 0 };
}

/** What is answered to a question of type A or AAAA. */
export interface AddressAnswer {
  /** All of one family. */
  readonly addresses: readonly IpAddress[];
  /** The addresses belong to the first so many labels of the question, of which the question's name is an alias; undefined: no alias. */
  readonly strippedTo?: number | undefined;
}

/** Writes an answer of our own, with as many addresses as fit: over UDP what is left out is marked, and the client asks again over TCP. */
export function encodeAnswer(query: Query, answer: AddressAnswer, protocol: "udp" | "tcp"): Buffer {
  const limit = protocol === "tcp" ? MAX_MESSAGE_BYTES : Math.max(LEAST_UDP_BYTES, query.edns?.udpBytes ?? 0);
  const opt = encodeOpt(query);
  const alias = encodeAlias(query, answer);
  const head = query.questionEnd + alias.record.length;
  const records: Buffer[] = [];
  let size = head + opt.length;
  let truncated = false;
  for (const address of answer.addresses) {
    const record = encodeAddress(alias.owner, address);
    truncated = size + record.length > limit;
    if (truncated) break;
    size += record.length;
    records.push(record);
  }
  const header = encodeHeader(query, {
    flags: AUTHORITATIVE | (truncated && protocol === "udp" ? TRUNCATED : 0),
    answers: records.length + (alias.record.length > 0 ? 1 : 0),
    additionals: opt.length > 0 ? 1 : 0,
  });
  return Buffer.concat([header, query.bytes.subarray(HEADER_BYTES, query.questionEnd), alias.record, ...records, opt]);
}

/** Writes that a question cannot be answered. */
export function encodeRefusal(query: Query, code: number): Buffer {
  const opt = encodeOpt(query);
  const header = encodeHeader(query, { flags: code, answers: 0, additionals: opt.length > 0 ? 1 : 0 });
  return Buffer.concat([header, query.bytes.subarray(HEADER_BYTES, query.questionEnd), opt]);
}

function encodeHeader(query: Query, more: { flags: number; answers: number; additionals: number }): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16BE(query.id, 0);
  header.writeUInt16BE(RESPONSE | RECURSION_AVAILABLE | (query.flags & RECURSION_DESIRED) | more.flags, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(more.answers, 6);
  header.writeUInt16BE(more.additionals, 10);
  return header;
}

/** A pointer to the name of the question. */
const QUESTION_NAME = 0xc000 | HEADER_BYTES;

/** The record of the alias, where there is one, and a pointer to the name that the addresses belong to. */
function encodeAlias(query: Query, { addresses, strippedTo }: AddressAnswer): { record: Buffer; owner: number } {
  if (strippedTo === undefined || addresses.length === 0) return { record: Buffer.alloc(0), owner: QUESTION_NAME };
  let end = HEADER_BYTES;
  for (let label = 0; label < strippedTo; label++) end += 1 + (query.bytes[end] ?? 0);
  const target = Buffer.concat([query.bytes.subarray(HEADER_BYTES, end), Buffer.alloc(1)]);
  const record = Buffer.concat([encodeRecordHead(QUESTION_NAME, TYPE_CNAME, target.length), target]);
  return { record, owner: 0xc000 | (query.questionEnd + record.length - target.length) };
}

function encodeAddress(owner: number, address: IpAddress): Buffer {
  const data = ipToBytes(address);
  return Buffer.concat([encodeRecordHead(owner, isV6(address) ? TYPE_AAAA : TYPE_A, data.length), data]);
}

function encodeRecordHead(owner: number, type: number, dataBytes: number): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt16BE(owner, 0);
  head.writeUInt16BE(type, 2);
  head.writeUInt16BE(CLASS_IN, 4);
  head.writeUInt32BE(TTL_SECONDS, 6);
  head.writeUInt16BE(dataBytes, 10);
  return head;
}

/** The OPT record for a client that sent one (RFC 6891 section 6.1.1). */
function encodeOpt({ edns }: Query): Buffer {
  if (edns === undefined) return Buffer.alloc(0);
  const opt = Buffer.alloc(OPT_BYTES);
  opt.writeUInt16BE(TYPE_OPT, 1);
  opt.writeUInt16BE(OWN_UDP_BYTES, 3);
  opt.writeUInt16BE(edns.dnssecOk ? 0x8000 : 0, 7);
  return opt;
}

/** An answer without question, to a message that has none to be read. */
function encodeFailure(bytes: Buffer, code: number): Buffer {
  const answer = Buffer.alloc(HEADER_BYTES);
  bytes.copy(answer, 0, 0, 2);
  answer.writeUInt16BE(RESPONSE | (bytes.readUInt16BE(2) & (OPCODE | RECURSION_DESIRED)) | code, 2);
  return answer;
}

/** True when a server's answer is one to this question, under the number it was sent with. */
export function answersQuery(answer: Buffer, query: Query, id: number): boolean {
  const { questionEnd, bytes } = query;
  if (answer.length < HEADER_BYTES || answer.readUInt16BE(0) !== id) return false;
  const flags = answer.readUInt16BE(2);
  if ((flags & RESPONSE) === 0 || (flags & OPCODE) !== 0) return false;
  if (answer.readUInt16BE(4) === 0) return rcodeOf(answer) !== RCODE.noError; // some servers leave the question out of a failure
  return sameText(answer.subarray(HEADER_BYTES, questionEnd), bytes.subarray(HEADER_BYTES, questionEnd));
}

/** Equal but for upper and lower case of letters. Length bytes and types below 64 are the same in both. */
function sameText(a: Buffer, b: Buffer): boolean {
  return a.length === b.length && a.toString("latin1").toLowerCase() === b.toString("latin1").toLowerCase();
}

/** The response code of an answer. */
export function rcodeOf(answer: Buffer): number {
  return answer.readUInt16BE(2) & 0xf;
}

/** How many records an answer says that it has. */
export function answerCount(answer: Buffer): number {
  return answer.readUInt16BE(6);
}

/** The message under another number. */
export function withId(message: Buffer, id: number): Buffer {
  const copy = Buffer.from(message);
  copy.writeUInt16BE(id, 0);
  return copy;
}

/** A server's answer as the client gets it: under the client's number, and not in our authority. */
export function relayed(answer: Buffer, query: Query): Buffer {
  const copy = withId(answer, query.id);
  copy.writeUInt16BE(copy.readUInt16BE(2) & ~AUTHORITATIVE, 2);
  return copy;
}

const TYPE_NAMES: Readonly<Record<number, string>> = {
  1: "a",
  2: "ns",
  5: "cname",
  6: "soa",
  12: "ptr",
  15: "mx",
  16: "txt",
  28: "aaaa",
  33: "srv",
  35: "naptr",
  64: "svcb",
  65: "https",
  255: "any",
  257: "caa",
};

/** The name of a record type in metrics; rare ones are `unknown`, so that a client cannot make series. */
export function typeName(type: number): string {
  return TYPE_NAMES[type] ?? "unknown";
}
