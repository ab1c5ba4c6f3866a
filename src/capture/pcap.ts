import { bytesToIp, type IpAddress } from "#base/ip";
import { captureError } from "./errors.ts";

/** One captured TCP or UDP packet. */
export interface Packet {
  /** Microseconds since the epoch. */
  readonly timeUs: number;
  readonly protocol: "tcp" | "udp";
  readonly source: IpAddress;
  readonly destination: IpAddress;
  readonly sourcePort: number;
  readonly destinationPort: number;
  /** Sequence number of the first payload byte (TCP), 0 for UDP. */
  readonly sequence: number;
  /** TCP flags byte (0x02 SYN, 0x04 RST, 0x01 FIN), 0 for UDP. */
  readonly flags: number;
  readonly payload: Uint8Array;
}

const MAGIC_MICROSECONDS = 0xa1b2c3d4;
const MAGIC_NANOSECONDS = 0xa1b23c4d;
const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
const LINK_ETHERNET = 1;
/** Packets alone, as a tunnel's device has them. */
const LINK_RAW = 101;
const LINK_COOKED = 113;
const LINK_COOKED_V2 = 276;
const ETHERTYPE_V4 = 0x0800;
const ETHERTYPE_V6 = 0x86dd;
const ETHERTYPE_VLAN = 0x8100;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;

/**
 * Decodes a capture file (pcap, both byte orders, micro- and nanoseconds; draft-ietf-opsawg-pcap).
 * Packets other than unfragmented TCP and UDP over IPv4 or IPv6 are left out; a last record that is cut off ends the list.
 * Throws `CAPTURE_FORMAT` or `CAPTURE_LINK_TYPE`.
 */
export function decodePcap(file: Uint8Array): Packet[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < FILE_HEADER_BYTES) throw captureError("CAPTURE_FORMAT", "the capture is shorter than its header");
  const { little, ticksPerUs } = readMagic(view);
  const linkType = view.getUint32(20, little) & 0x0fff_ffff;
  const packets: Packet[] = [];
  for (let at = FILE_HEADER_BYTES; at + RECORD_HEADER_BYTES <= file.length;) {
    const length = view.getUint32(at + 8, little);
    const start = at + RECORD_HEADER_BYTES;
    if (start + length > file.length) break;
    const timeUs = view.getUint32(at, little) * 1e6 + view.getUint32(at + 4, little) / ticksPerUs;
    const packet = decodeLink(file.subarray(start, start + length), linkType, timeUs);
    if (packet !== undefined) packets.push(packet);
    at = start + length;
  }
  return packets;
}

function readMagic(view: DataView): { little: boolean; ticksPerUs: number } {
  for (const little of [true, false]) {
    const magic = view.getUint32(0, little);
    if (magic === MAGIC_MICROSECONDS) return { little, ticksPerUs: 1 };
    if (magic === MAGIC_NANOSECONDS) return { little, ticksPerUs: 1000 };
  }
  throw captureError("CAPTURE_FORMAT", "the file does not begin with a pcap magic number");
}

function decodeLink(frame: Uint8Array, linkType: number, timeUs: number): Packet | undefined {
  switch (linkType) {
    case LINK_ETHERNET: {
      const tagged = frame.length >= 18 && u16(frame, 12) === ETHERTYPE_VLAN;
      return decodeIp(frame, tagged ? 16 : 12, timeUs);
    }
    case LINK_RAW: {
      const type = (frame[0] ?? 0) >> 4 === 6 ? ETHERTYPE_V6 : ETHERTYPE_V4;
      return decodeIpAt(frame, { type, at: 0 }, timeUs);
    }
    case LINK_COOKED:
      return decodeIp(frame, 14, timeUs);
    case LINK_COOKED_V2:
      return frame.length < 20 ? undefined : decodeIpAt(frame, { type: u16(frame, 0), at: 20 }, timeUs);
    default:
      throw captureError("CAPTURE_LINK_TYPE", `captures of link type ${linkType} cannot be read`, {
        details: { linkType },
      });
  }
}

function decodeIp(frame: Uint8Array, typeAt: number, timeUs: number): Packet | undefined {
  if (frame.length < typeAt + 2) return undefined;
  return decodeIpAt(frame, { type: u16(frame, typeAt), at: typeAt + 2 }, timeUs);
}

function decodeIpAt(frame: Uint8Array, { type, at }: { type: number; at: number }, timeUs: number): Packet | undefined {
  if (type === ETHERTYPE_V4 && frame.length >= at + 20) return decodeV4(frame.subarray(at), timeUs);
  if (type === ETHERTYPE_V6 && frame.length >= at + 40) return decodeV6(frame.subarray(at), timeUs);
  return undefined;
}

function decodeV4(packet: Uint8Array, timeUs: number): Packet | undefined {
  const headerBytes = ((packet[0] ?? 0) & 0x0f) * 4;
  const fragment = u16(packet, 6) & 0x3fff;
  const end = u16(packet, 2);
  if (headerBytes < 20 || fragment !== 0 || end > packet.length || headerBytes > end) return undefined;
  const source = bytesToIp(packet.subarray(12, 16));
  const destination = bytesToIp(packet.subarray(16, 20));
  const ip = { source, destination, protocol: packet[9] ?? 0, timeUs };
  return decodeTransport(packet.subarray(headerBytes, end), ip);
}

function decodeV6(packet: Uint8Array, timeUs: number): Packet | undefined {
  const end = 40 + u16(packet, 4);
  if (end > packet.length) return undefined;
  const source = bytesToIp(packet.subarray(8, 24));
  const destination = bytesToIp(packet.subarray(24, 40));
  return decodeTransport(packet.subarray(40, end), { source, destination, protocol: packet[6] ?? 0, timeUs });
}

function decodeTransport(
  segment: Uint8Array,
  ip: { source: IpAddress; destination: IpAddress; protocol: number; timeUs: number },
): Packet | undefined {
  const { source, destination, protocol, timeUs } = ip;
  if (segment.length < 8) return undefined;
  const ports = { sourcePort: u16(segment, 0), destinationPort: u16(segment, 2) };
  if (protocol === PROTOCOL_UDP) {
    return {
      timeUs,
      protocol: "udp",
      source,
      destination,
      ...ports,
      sequence: 0,
      flags: 0,
      payload: segment.subarray(8),
    };
  }
  const headerBytes = ((segment[12] ?? 0) >> 4) * 4;
  if (protocol !== PROTOCOL_TCP || segment.length < 20 || headerBytes < 20 || headerBytes > segment.length)
    return undefined;
  const sequence = u16(segment, 4) * 0x1_0000 + u16(segment, 6);
  const payload = segment.subarray(headerBytes);
  return { timeUs, protocol: "tcp", source, destination, ...ports, sequence, flags: segment[13] ?? 0, payload };
}

function u16(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
}
