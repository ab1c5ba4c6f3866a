import { formatHostPort } from "#base/ip";
import type { Packet } from "./pcap.ts";

/** The bytes that one side of a TCP connection sent, put together from a capture. */
export interface Stream {
  /** `ip:port` of the sender. */
  readonly from: string;
  /** `ip:port` of the receiver. */
  readonly to: string;
  /** Payload in order; a gap in the capture ends it. */
  readonly bytes: Uint8Array;
  /** When the first packet with payload was seen, microseconds since the epoch. */
  readonly firstUs: number;
  /** How many packets this side sent, with or without payload. */
  readonly packetCount: number;
}

/** What a stream looks like as TLS. */
export interface TlsView {
  /** True when every byte belongs to a well-formed sequence of TLS records. */
  readonly wellFormed: boolean;
  /** The version that the server chose (RFC 8446 §4.2.1), for example `TLS 1.3`; undefined unless a ServerHello is there. */
  readonly version: string | undefined;
  /** Records of application data. */
  readonly applicationRecords: number;
}

/** Puts the TCP payloads of a capture together, one stream for each direction of each connection. */
export function tcpStreams(packets: readonly Packet[]): Stream[] {
  const groups = new Map<string, Packet[]>();
  const generation = new Map<string, number>();
  for (const packet of packets) {
    if (packet.protocol !== "tcp") continue;
    const pair = `${formatHostPort(packet.source, packet.sourcePort)}>${formatHostPort(packet.destination, packet.destinationPort)}`;
    if ((packet.flags & 0x02) !== 0) generation.set(pair, (generation.get(pair) ?? 0) + 1);
    const key = `${pair}#${generation.get(pair) ?? 0}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [packet]);
    else group.push(packet);
  }
  return [...groups.values()].map(joinPackets);
}

/** The packets whose payload contains any of `words` (UTF-8), each with the words it shows. */
export function findWords(packets: readonly Packet[], words: readonly string[]): { packet: Packet; words: string[] }[] {
  const needles = words.map((word) => ({ word, bytes: Buffer.from(word) }));
  return packets.flatMap((packet) => {
    const payload = Buffer.from(packet.payload.buffer, packet.payload.byteOffset, packet.payload.length);
    const shown = needles.filter(({ bytes }) => payload.includes(bytes)).map(({ word }) => word);
    return shown.length === 0 ? [] : [{ packet, words: shown }];
  });
}

/** Reads a stream as TLS records (RFC 8446 §5.1). A record that the capture cuts off at the end is allowed. */
export function readTls(stream: Stream): TlsView {
  const { bytes } = stream;
  let version: string | undefined;
  let applicationRecords = 0;
  for (let at = 0; at < bytes.length;) {
    const { type, length, valid } = readRecordHeader(bytes.subarray(at, at + 5));
    if (!valid) return { wellFormed: false, version, applicationRecords };
    if (type === 23) applicationRecords++;
    if (type === 22) version ??= serverHelloVersion(bytes.subarray(at + 5, at + 5 + length));
    at += 5 + length;
  }
  return { wellFormed: bytes.length > 0, version, applicationRecords };
}

/** The five bytes in front of a record; fewer when the capture cuts them off, which is no fault of the record. */
function readRecordHeader(header: Uint8Array): { type: number; length: number; valid: boolean } {
  const [type = 0, major = 3, , high = 0, low = 0] = header;
  const length = (high << 8) | low;
  return { type, length, valid: type >= 20 && type <= 23 && major === 3 && length <= 16_640 };
}

function joinPackets(packets: readonly Packet[]): Stream {
  const first = packets[0];
  const base = first === undefined ? 0 : first.sequence + ((first.flags & 0x02) === 0 ? 0 : 1);
  const withPayload = packets
    .filter((packet) => packet.payload.length > 0)
    .map((packet) => ({ packet, offset: (packet.sequence - base) | 0 }))
    .toSorted((a, b) => a.offset - b.offset);
  const parts: Uint8Array[] = [];
  let next = 0;
  for (const { packet, offset } of withPayload) {
    if (parts.length === 0 && offset > 0) next = offset; // the capture began in the middle
    if (offset > next) break;
    const fresh = packet.payload.subarray(next - offset);
    parts.push(fresh);
    next += fresh.length;
  }
  return {
    from: first === undefined ? "" : formatHostPort(first.source, first.sourcePort),
    to: first === undefined ? "" : formatHostPort(first.destination, first.destinationPort),
    bytes: Buffer.concat(parts),
    firstUs: withPayload[0]?.packet.timeUs ?? 0,
    packetCount: packets.length,
  };
}

/** The version in a ServerHello: the extension supported_versions (43) when it is there, the legacy field otherwise. */
function serverHelloVersion(handshake: Uint8Array): string | undefined {
  const at = (index: number): number => handshake[index] ?? 0;
  const pair = (index: number): number => (at(index) << 8) | at(index + 1);
  if (at(0) !== 2) return undefined;
  let extension = 4 + 2 + 32;
  extension += 1 + at(extension) + 2 + 1;
  const end = Math.min(handshake.length, extension + 2 + pair(extension));
  let chosen = pair(4);
  for (let index = extension + 2; index + 4 <= end; index += 4 + pair(index + 2)) {
    if (pair(index) === 43) chosen = pair(index + 4);
  }
  return { 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3" }[chosen];
}
