import { ipToBytes, type IpAddress } from "#base/ip";
import type { SpiffeId } from "#model/spiffe-id";
import type { SocketAddress } from "./route.ts";

/** What a PROXY protocol header tells the application. */
export interface ProxyHeader {
  readonly source: SocketAddress;
  readonly destination: SocketAddress;
  /** Who has proved himself as the caller. */
  readonly peer: SpiffeId;
}

const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const VERSION_2_PROXY = 0x21;
const TCP_OVER_IPV4 = 0x11;
const TCP_OVER_IPV6 = 0x21;
/** The type of the field that carries the caller's SPIFFE ID; ztunnel and waypoints use it. */
const TLV_PEER_IDENTITY = 0xd0;

/**
 * A PROXY protocol header, version 2 (haproxy's proxy-protocol.txt §2.2), for a TCP connection. Where only one of the two
 * addresses is of IPv6, the other is written as an IPv4-mapped one: the format knows one family per header.
 *
 *     signature (12) │ version, command │ family │ length (2) │ source ip │ destination ip │ ports (2+2) │ 0xD0, length (2), SPIFFE ID
 */
export function encodeProxyHeader({ source, destination, peer }: ProxyHeader): Uint8Array {
  const v6 = source.ip.includes(":") || destination.ip.includes(":");
  const identity = new TextEncoder().encode(peer);
  const content = [
    ...addressBytes(source.ip, v6),
    ...addressBytes(destination.ip, v6),
    ...uint16(source.port),
    ...uint16(destination.port),
    TLV_PEER_IDENTITY,
    ...uint16(identity.length),
    ...identity,
  ];
  return Uint8Array.of(
    ...SIGNATURE,
    VERSION_2_PROXY,
    v6 ? TCP_OVER_IPV6 : TCP_OVER_IPV4,
    ...uint16(content.length),
    ...content,
  );
}

function addressBytes(ip: IpAddress, v6: boolean): readonly number[] {
  const bytes = [...ipToBytes(ip)];
  return v6 && bytes.length === 4 ? [...Array<number>(10).fill(0), 0xff, 0xff, ...bytes] : bytes;
}

function uint16(value: number): readonly [number, number] {
  return [value >> 8, value & 0xff];
}
