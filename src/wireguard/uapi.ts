import { findHostPort, findIp, formatHostPort } from "#base/ip";
import type { SocketAddress } from "#linux";
import type { DeviceChange, DeviceState, PeerChange, PeerState } from "./backend.ts";
import { wireguardError } from "./errors.ts";
import { decodeKey, KEY_BYTES, publicKeyOf } from "./keys.ts";

/**
 * The text protocol of user-space WireGuard (https://www.wireguard.com/xplatform/): lines of `key=value`, an empty line ends a message.
 * Private keys pass as bytes of buffers only, which are overwritten after use: a string could not be.
 */
export const GET_REQUEST = "get=1\n\n";

/** The longest answer that is read, bytes: 5,000 peers with 40 prefixes each. */
export const MAX_ANSWER_BYTES = 16 << 20;

const HEX = Buffer.from("0123456789abcdef", "latin1");
const PRIVATE_KEY = Buffer.from("private_key=", "latin1");
const NEWLINE = 10;

/** Encodes a change. The caller overwrites the result once it is sent when the change carries a key. */
export function encodeSet(change: DeviceChange): Buffer {
  const { replacePeers = false, privateKey, listenPort, mark, peers = [] } = change;
  const lines = [
    ...(listenPort === undefined ? [] : [`listen_port=${listenPort}`]),
    ...(mark === undefined ? [] : [`fwmark=${mark}`]),
    ...peers.flatMap(peerLines),
  ];
  return Buffer.concat([
    Buffer.from(`set=1\n${replacePeers ? "replace_peers=true\n" : ""}`, "latin1"),
    ...(privateKey === undefined ? [] : [keyLine(privateKey)]),
    Buffer.from(`${lines.map((line) => `${line}\n`).join("")}\n`, "latin1"),
  ]);
}

function keyLine(privateKey: Uint8Array): Buffer {
  const line = Buffer.alloc(PRIVATE_KEY.length + 2 * privateKey.length + 1, NEWLINE);
  line.set(PRIVATE_KEY);
  privateKey.forEach((byte, index) => {
    line[PRIVATE_KEY.length + 2 * index] = HEX[byte >> 4] ?? 0;
    line[PRIVATE_KEY.length + 2 * index + 1] = HEX[byte & 15] ?? 0;
  });
  return line;
}

function peerLines({ publicKey, remove, endpoint, keepaliveSeconds, allowedIps }: PeerChange): string[] {
  const key = decodeKey(publicKey);
  if (key === undefined) throw wireguardError("WIREGUARD_PROTOCOL", `"${publicKey}" is no WireGuard key`);
  const name = `public_key=${key.toString("hex")}`;
  if (remove === true) return [name, "remove=true"];
  return [
    name,
    ...(endpoint === undefined ? [] : [`endpoint=${formatHostPort(endpoint.ip, endpoint.port)}`]),
    ...(keepaliveSeconds === undefined ? [] : [`persistent_keepalive_interval=${keepaliveSeconds}`]),
    ...(allowedIps === undefined
      ? []
      : ["replace_allowed_ips=true", ...allowedIps.map((cidr) => `allowed_ip=${cidr}`)]),
  ];
}

/** True when an answer is complete: it ends with an empty line. */
export function isComplete(answer: Buffer): boolean {
  return answer.length >= 2 && answer[answer.length - 1] === NEWLINE && answer[answer.length - 2] === NEWLINE;
}

/** The lines of an answer by key and value, in order, and its error number. Throws `WIREGUARD_PROTOCOL` when it has another form. */
function parseLines(text: string): { readonly lines: readonly (readonly [string, string])[]; readonly errno: number } {
  const lines = text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const at = line.indexOf("=");
      if (at <= 0) throw wireguardError("WIREGUARD_PROTOCOL", "a line of a device's answer has no key");
      return [line.slice(0, at), line.slice(at + 1)] as const;
    });
  const last = lines.at(-1);
  if (last?.[0] !== "errno")
    throw wireguardError("WIREGUARD_PROTOCOL", "a device's answer does not end with its outcome");
  return { lines: lines.slice(0, -1), errno: toNumber(last[1]) };
}

/** Throws `WIREGUARD_DEVICE` with the error number unless the answer says that the change was made. */
export function checkSetAnswer(answer: Buffer): void {
  const { errno } = parseLines(answer.toString("latin1"));
  if (errno === 0) return;
  throw wireguardError("WIREGUARD_DEVICE", `the device refused a change: errno ${errno}`, { details: { errno } });
}

/** Decodes the answer to {@link GET_REQUEST}, and overwrites the private key in it. Throws `WIREGUARD_PROTOCOL`, `WIREGUARD_DEVICE`. */
export function decodeDevice(answer: Buffer): DeviceState {
  const publicKey = takePrivateKey(answer);
  const { lines, errno } = parseLines(answer.toString("latin1"));
  if (errno !== 0) throw wireguardError("WIREGUARD_DEVICE", `the device does not tell its state: errno ${errno}`);
  const starts = lines.flatMap(([key], index) => (key === "public_key" ? [index] : []));
  const own = new Map(lines.slice(0, starts[0]));
  return {
    publicKey,
    listenPort: toNumber(own.get("listen_port")),
    mark: toNumber(own.get("fwmark")),
    peers: starts.map((start, index) => decodePeer(lines.slice(start, starts[index + 1]))),
  };
}

/** Overwrites the private key with zeros and answers the public one; undefined when there is none. */
function takePrivateKey(answer: Buffer): string | undefined {
  const at = answer.indexOf(PRIVATE_KEY);
  if (at < 0 || (at > 0 && answer[at - 1] !== NEWLINE)) return undefined;
  const text = answer.subarray(at + PRIVATE_KEY.length, at + PRIVATE_KEY.length + 2 * KEY_BYTES);
  const key = Buffer.allocUnsafeSlow(KEY_BYTES);
  for (let index = 0; index < KEY_BYTES; index++) {
    key[index] = (hexDigit(text[2 * index]) << 4) | hexDigit(text[2 * index + 1]);
  }
  text.fill(HEX[0] ?? 0);
  const publicKey = key.every((byte) => byte === 0) ? undefined : publicKeyOf(key);
  key.fill(0);
  return publicKey;
}

function hexDigit(code: number | undefined): number {
  const digit = code === undefined ? -1 : HEX.indexOf(code);
  if (digit < 0) throw wireguardError("WIREGUARD_PROTOCOL", "a device's answer has a key that is none");
  return digit;
}

function decodePeer(lines: readonly (readonly [string, string])[]): PeerState {
  const all = new Map(lines);
  const key = Buffer.from(all.get("public_key") ?? "", "hex");
  if (key.length !== KEY_BYTES) throw wireguardError("WIREGUARD_PROTOCOL", "a device's answer has a key that is none");
  const nanoseconds = toNumber(all.get("last_handshake_time_nsec"));
  return {
    publicKey: key.toString("base64"),
    endpoint: findEndpoint(all.get("endpoint")),
    lastHandshakeMs: toNumber(all.get("last_handshake_time_sec")) * 1000 + Math.floor(nanoseconds / 1_000_000),
    receivedBytes: toNumber(all.get("rx_bytes")),
    sentBytes: toNumber(all.get("tx_bytes")),
    keepaliveSeconds: toNumber(all.get("persistent_keepalive_interval")),
    allowedIps: lines.flatMap(([name, value]) => (name === "allowed_ip" ? [value] : [])),
  };
}

function findEndpoint(text: string | undefined): SocketAddress | undefined {
  const found = text === undefined ? undefined : findHostPort(text);
  const ip = found === undefined ? undefined : findIp(found.host);
  return found === undefined || ip === undefined ? undefined : { ip, port: found.port };
}

/** A number of at most 15 digits, perhaps negative; 0 when the line is not there. */
function toNumber(text = "0"): number {
  if (!/^-?\d{1,15}$/.test(text))
    throw wireguardError("WIREGUARD_PROTOCOL", `a device's answer has "${text.slice(0, 40)}" for a number`);
  return Number(text);
}
