import { isIPv4, isIPv6 } from "node:net";
import { CodedError } from "./errors.ts";

/** An IP address in canonical text: IPv4 dotted, IPv6 compressed lower case (RFC 5952). Only a parser makes one. */
export type IpAddress = string & { readonly __ip: unique symbol };

/** An address prefix. */
export interface Cidr {
  readonly address: IpAddress;
  readonly length: number;
}

/** Parses an address; IPv4-mapped IPv6 becomes IPv4. Returns undefined when it is none. */
export function findIp(text: string): IpAddress | undefined {
  if (isIPv4(text)) return text as IpAddress; // checked on this line
  if (!isIPv6(text) || text.includes("%")) return undefined;
  return bytesToIp(ipv6Bytes(text));
}

/** Parses an address. Throws `IP_INVALID`. */
export function parseIp(text: string): IpAddress {
  const ip = findIp(text);
  if (ip === undefined) throw new CodedError("IP_INVALID", `cannot read "${text}" as an IP address`);
  return ip;
}

/** The bytes of an address in network order: 4 or 16. */
export function ipToBytes(ip: IpAddress): Uint8Array {
  if (ip.includes(":")) return ipv6Bytes(ip);
  const bits = ipv4Bits(ip);
  return Uint8Array.of(bits >>> 24, bits >>> 16, bits >>> 8, bits);
}

/** Reads an address from 4 or 16 bytes in network order; IPv4-mapped IPv6 becomes IPv4. Throws `IP_INVALID`. */
export function bytesToIp(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return bytes.join(".") as IpAddress; // four bytes always print as an address
  if (bytes.length !== 16) throw new CodedError("IP_INVALID", `an IP address has 4 or 16 bytes, not ${bytes.length}`);
  const mapped = bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff;
  if (mapped) return bytes.subarray(12).join(".") as IpAddress;
  return compress(Array.from({ length: 8 }, (_, i) => ((bytes[2 * i] ?? 0) << 8) | (bytes[2 * i + 1] ?? 0)));
}

/** True for IPv6. */
export function isV6(ip: IpAddress): boolean {
  return ip.includes(":");
}

/** `ip:port`, IPv6 in brackets. */
export function formatHostPort(ip: string, port: number): string {
  return ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`;
}

/** Splits `host:port` or `[v6]:port`; undefined when the form or the port (0 to 65535) is wrong. */
export function findHostPort(text: string): { host: string; port: number } | undefined {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined || !(port <= 65535)) return undefined;
  return { host, port };
}

/** Parses `address/length`. Throws `CIDR_INVALID`. Bits behind the prefix are kept as they are. */
export function parseCidr(text: string): Cidr {
  const [addressText = "", lengthText = ""] = text.split("/");
  const address = findIp(addressText);
  const length = Number(lengthText);
  const most = address !== undefined && isV6(address) ? 128 : 32;
  if (address === undefined || !/^\d{1,3}$/.test(lengthText) || length > most) {
    throw new CodedError("CIDR_INVALID", `cannot read "${text}" as an address prefix such as 10.244.0.0/16`);
  }
  return { address, length };
}

/** True when `ip` lies within `cidr`. Addresses of different families never do. */
export function cidrContains(cidr: Cidr, ip: IpAddress): boolean {
  const v6 = isV6(ip);
  if (isV6(cidr.address) !== v6) return false;
  if (!v6) return cidr.length === 0 || (ipv4Bits(cidr.address) ^ ipv4Bits(ip)) >>> (32 - cidr.length) === 0;
  const prefix = ipv6Bytes(cidr.address);
  const bytes = ipv6Bytes(ip);
  for (let bit = 0; bit < cidr.length; bit += 8) {
    const mask = cidr.length - bit >= 8 ? 0xff : (0xff << (8 - (cidr.length - bit))) & 0xff;
    if (((prefix[bit / 8] ?? 0) & mask) !== ((bytes[bit / 8] ?? 0) & mask)) return false;
  }
  return true;
}

/** The four bytes as one 32-bit number. Every new connection asks several times: nothing is allocated. */
function ipv4Bits(ip: IpAddress): number {
  let bits = 0;
  let byte = 0;
  for (let at = 0; at < ip.length; at++) {
    const code = ip.charCodeAt(at);
    if (code === DOT) {
      bits = (bits << 8) | byte;
      byte = 0;
    } else byte = byte * 10 + code - ZERO;
  }
  return (bits << 8) | byte;
}

const DOT = 0x2e;
const ZERO = 0x30;

function ipv6Bytes(text: string): Uint8Array {
  const v4 = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  const hex = v4 ? `${text.slice(0, v4.index)}${toHextet(v4[1], v4[2])}:${toHextet(v4[3], v4[4])}` : text;
  const [head = "", tail] = hex.split("::");
  const left = head === "" ? [] : head.split(":");
  const right = tail === undefined || tail === "" ? [] : tail.split(":");
  const groups = [...left, ...Array<string>(8 - left.length - right.length).fill("0"), ...right];
  return Uint8Array.from(
    groups.flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 255]),
  );
}

function toHextet(high: string | undefined, low: string | undefined): string {
  return ((Number(high) << 8) | Number(low)).toString(16);
}

function compress(groups: readonly number[]): IpAddress {
  let best = { start: -1, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (groups[start + length] === 0) length++;
    if (length > best.length) best = { start, length };
  }
  const text = (part: readonly number[]): string => part.map((group) => group.toString(16)).join(":");
  const out =
    best.start < 0
      ? text(groups)
      : `${text(groups.slice(0, best.start))}::${text(groups.slice(best.start + best.length))}`;
  return out as IpAddress; // written by the rules of RFC 5952 just above
}
