import { bytesToIp, ipToBytes, isV6, parseCidr } from "#base/ip";
import { encodeAttribute, encodeNumber, type SocketAddress } from "#linux";
import type { DeviceChange, DeviceState, PeerChange, PeerState } from "./backend.ts";
import { wireguardError } from "./errors.ts";
import { decodeKey, KEY_BYTES } from "./keys.ts";

/**
 * How the kernel's WireGuard is spoken to: generic netlink, family `wireguard`, by uapi/linux/wireguard.h of Linux 5.6 and later.
 *
 *     SET_DEVICE  name, flags, key, port, mark, peers [ peer [ key, flags, endpoint, keepalive, allowed IPs [ … ] ], … ]
 *     GET_DEVICE  name  ──▶  the same, in as many messages as it takes; a peer may go on in the next one
 */
const FAMILY_NAME = "wireguard";
const COMMAND = { getDevice: 0, setDevice: 1 } as const;
const VERSION = 1;
/** `struct genlmsghdr`. */
const GENERIC_HEADER_BYTES = 4;
const NESTED = 0x8000;
const TYPE_MASK = 0x3fff;
const DEVICE = { name: 2, privateKey: 3, publicKey: 4, flags: 5, listenPort: 6, mark: 7, peers: 8 } as const;
const PEER = {
  publicKey: 1,
  flags: 3,
  endpoint: 4,
  keepalive: 5,
  lastHandshake: 6,
  received: 7,
  sent: 8,
  allowedIps: 9,
} as const;
const ALLOWED_IP = { family: 1, address: 2, length: 3 } as const;
const REPLACE_PEERS = 1;
const [REMOVE_PEER, REPLACE_ALLOWED_IPS] = [1, 2] as const;
const AF = { inet: 2, inet6: 10 } as const;
const SOCKADDR_BYTES = { v4: 16, v6: 28 } as const;
/** An attribute's length has 16 bits: peers are told in as many messages as it takes to stay below. */
const MAX_PEERS_BYTES = 48 << 10;

/** The controller of generic netlink, which tells the number of a family. */
export const CONTROLLER = { type: 0x10, getFamily: 3, familyId: 1, familyName: 2 } as const;

/** The question for the number of the family. */
export function encodeFamilyQuestion(): Buffer {
  const name = encodeAttribute(CONTROLLER.familyName, Buffer.from(`${FAMILY_NAME}\0`));
  return Buffer.concat([genericHeader(CONTROLLER.getFamily), name]);
}

/** The number of the family; undefined when the answer does not tell it. */
export function decodeFamily(message: Buffer): number | undefined {
  const found = [...attributesOf(message.subarray(GENERIC_HEADER_BYTES))].find(
    ({ type }) => type === CONTROLLER.familyId,
  );
  return found?.value.length === 2 ? found.value.readUInt16LE(0) : undefined;
}

/** The question for a device. */
export function encodeGet(device: string): Buffer {
  return Buffer.concat([genericHeader(COMMAND.getDevice), encodeAttribute(DEVICE.name, Buffer.from(`${device}\0`))]);
}

/**
 * The messages of a change, to be sent in order: the first has all that is of the device. The caller overwrites them once they are
 * sent when the change carries a key.
 */
export function encodeChange(device: string, change: DeviceChange): Buffer[] {
  const { replacePeers = false, privateKey, listenPort, mark, peers = [] } = change;
  const name = encodeAttribute(DEVICE.name, Buffer.from(`${device}\0`));
  const first = [
    ...(replacePeers ? [encodeNumber(DEVICE.flags, REPLACE_PEERS)] : []),
    ...(privateKey === undefined ? [] : [encodeAttribute(DEVICE.privateKey, privateKey)]),
    ...(listenPort === undefined ? [] : [encodeAttribute(DEVICE.listenPort, short(listenPort))]),
    ...(mark === undefined ? [] : [encodeNumber(DEVICE.mark, mark)]),
  ];
  const groups = grouped(peers.map(encodePeer));
  return (groups.length === 0 ? [[]] : groups).map((group, index) =>
    Buffer.concat([
      genericHeader(COMMAND.setDevice),
      name,
      ...(index === 0 ? first : []),
      ...(group.length === 0 ? [] : [nested(DEVICE.peers, group)]),
    ]),
  );
}

/** Splits what does not fit into one message. */
function grouped(peers: readonly Buffer[]): Buffer[][] {
  const groups: Buffer[][] = [];
  let bytes = MAX_PEERS_BYTES;
  for (const peer of peers) {
    if (bytes + peer.length > MAX_PEERS_BYTES) {
      groups.push([]);
      bytes = 0;
    }
    groups.at(-1)?.push(peer);
    bytes += peer.length;
  }
  return groups;
}

function encodePeer({ publicKey, remove, endpoint, keepaliveSeconds, allowedIps }: PeerChange): Buffer {
  const key = decodeKey(publicKey);
  if (key === undefined) throw wireguardError("WIREGUARD_PROTOCOL", `"${publicKey}" is no WireGuard key`);
  const own = encodeAttribute(PEER.publicKey, key);
  if (remove === true) return nested(0, [own, encodeNumber(PEER.flags, REMOVE_PEER)]);
  return nested(0, [
    own,
    ...(allowedIps === undefined ? [] : [encodeNumber(PEER.flags, REPLACE_ALLOWED_IPS)]),
    ...(endpoint === undefined ? [] : [encodeAttribute(PEER.endpoint, sockaddr(endpoint))]),
    ...(keepaliveSeconds === undefined ? [] : [encodeAttribute(PEER.keepalive, short(keepaliveSeconds))]),
    ...(allowedIps === undefined ? [] : [nested(PEER.allowedIps, allowedIps.map(encodeAllowedIp))]),
  ]);
}

function encodeAllowedIp(text: string): Buffer {
  const { address, length } = parseCidr(text);
  return nested(0, [
    encodeAttribute(ALLOWED_IP.family, short(isV6(address) ? AF.inet6 : AF.inet)),
    encodeAttribute(ALLOWED_IP.address, ipToBytes(address)),
    encodeAttribute(ALLOWED_IP.length, Uint8Array.of(length)),
  ]);
}

/** Reads the answers to {@link encodeGet}. Overwrites private keys in them. Throws `WIREGUARD_PROTOCOL`. */
export function decodeDevice(messages: readonly Buffer[]): DeviceState {
  const state = { publicKey: undefined as string | undefined, listenPort: 0, mark: 0 };
  const peers: PeerState[] = [];
  for (const message of messages) {
    for (const { type, value } of attributesOf(message.subarray(GENERIC_HEADER_BYTES))) {
      if (type === DEVICE.privateKey) value.fill(0);
      if (type === DEVICE.publicKey) state.publicKey = keyOf(value);
      if (type === DEVICE.listenPort) state.listenPort = number(value, 2);
      if (type === DEVICE.mark) state.mark = number(value, 4);
      if (type === DEVICE.peers) for (const peer of attributesOf(value)) addPeer(peers, decodePeer(peer.value));
    }
  }
  return { ...state, peers };
}

/** A peer that began in the message before goes on with more prefixes. */
function addPeer(peers: PeerState[], peer: PeerState): void {
  const last = peers.at(-1);
  if (last?.publicKey !== peer.publicKey) peers.push(peer);
  else peers[peers.length - 1] = { ...last, allowedIps: [...last.allowedIps, ...peer.allowedIps] };
}

function decodePeer(bytes: Buffer): PeerState {
  const values = new Map([...attributesOf(bytes)].map(({ type, value }) => [type, value]));
  const time = values.get(PEER.lastHandshake);
  const publicKey = keyOf(values.get(PEER.publicKey) ?? Buffer.alloc(0));
  if (publicKey === undefined) throw wireguardError("WIREGUARD_PROTOCOL", "the kernel told a peer without a key");
  return {
    publicKey,
    endpoint: endpointOf(values.get(PEER.endpoint)),
    lastHandshakeMs: time?.length === 16 ? number(time, 8) * 1000 + Math.floor(number(time.subarray(8), 8) / 1e6) : 0,
    receivedBytes: number(values.get(PEER.received), 8),
    sentBytes: number(values.get(PEER.sent), 8),
    keepaliveSeconds: number(values.get(PEER.keepalive), 2),
    allowedIps: [...attributesOf(values.get(PEER.allowedIps) ?? Buffer.alloc(0))].flatMap(({ value }) =>
      allowedIpOf(value),
    ),
  };
}

function allowedIpOf(bytes: Buffer): string[] {
  const values = new Map([...attributesOf(bytes)].map(({ type, value }) => [type, value]));
  const address = values.get(ALLOWED_IP.address);
  if (address?.length !== 4 && address?.length !== 16) return [];
  return [`${bytesToIp(address)}/${number(values.get(ALLOWED_IP.length), 1)}`];
}

function endpointOf(bytes: Buffer | undefined): SocketAddress | undefined {
  const family = number(bytes, 2);
  if (bytes === undefined || bytes.length < (family === AF.inet6 ? SOCKADDR_BYTES.v6 : SOCKADDR_BYTES.v4))
    return undefined;
  const port = bytes.readUInt16BE(2);
  if (family === AF.inet) return { ip: bytesToIp(bytes.subarray(4, 8)), port };
  return family === AF.inet6 ? { ip: bytesToIp(bytes.subarray(8, 24)), port } : undefined;
}

function sockaddr({ ip, port }: SocketAddress): Buffer {
  const bytes = Buffer.alloc(isV6(ip) ? SOCKADDR_BYTES.v6 : SOCKADDR_BYTES.v4);
  bytes.writeUInt16LE(isV6(ip) ? AF.inet6 : AF.inet, 0);
  bytes.writeUInt16BE(port, 2);
  bytes.set(ipToBytes(ip), isV6(ip) ? 8 : 4);
  return bytes;
}

/** A key that is all zeros is none. */
function keyOf(value: Buffer): string | undefined {
  return value.length === KEY_BYTES && value.some((byte) => byte !== 0) ? value.toString("base64") : undefined;
}

/** A little-endian number of so many bytes; 0 when they are not there. */
function number(bytes: Buffer | undefined, length: 1 | 2 | 4 | 8): number {
  if (bytes === undefined || bytes.length < length) return 0;
  return length === 8 ? Number(bytes.readBigUInt64LE(0)) : bytes.readUIntLE(0, length);
}

function short(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value, 0);
  return bytes;
}

function nested(type: number, parts: readonly Buffer[]): Buffer {
  return encodeAttribute(type | NESTED, Buffer.concat(parts));
}

function genericHeader(command: number): Buffer {
  return Buffer.from([command, VERSION, 0, 0]);
}

/** The attributes of a message or of a nested one; ends at the first that is cut. */
function* attributesOf(bytes: Buffer): Generator<{ readonly type: number; readonly value: Buffer }> {
  for (let at = 0; at + 4 <= bytes.length;) {
    const length = bytes.readUInt16LE(at);
    if (length < 4 || at + length > bytes.length) return;
    yield { type: bytes.readUInt16LE(at + 2) & TYPE_MASK, value: bytes.subarray(at + 4, at + length) };
    at += Math.ceil(length / 4) * 4;
  }
}
