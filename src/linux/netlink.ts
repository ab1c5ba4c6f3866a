import { closeSync } from "node:fs";
import { checkCall, libc, linuxError } from "./libc.ts";
import { inNetns, type Netns } from "./netns.ts";

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 3 | 0x8_0000;
const MSG_DONTWAIT = 0x40;
const NLM_F_REQUEST = 0x1;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const HEADER_BYTES = 16;
const ATTRIBUTE_HEADER_BYTES = 4;
/** The kernel cuts long answers into packets of at most this size. */
const MAX_ANSWER_BYTES = 32_768;

/** The kernel's subsystems that are asked. */
export const NETLINK = { route: 0, netfilter: 12, generic: 16 } as const;
/** Ask for an error number as the answer, or for a list. */
export const NLM_F = { ack: 0x4, dump: 0x300, createExclusive: 0x600 } as const;

const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const sendCall = libc.func("long send(int fd, void *data, size_t length, int flags)");
const recvCall = libc.func("long recv(int fd, _Out_ void *data, size_t length, int flags)");

/** A request (`struct nlmsghdr` and what follows it), in the machine's byte order: little-endian. */
export interface NetlinkRequest {
  readonly type: number;
  /** Of {@link NLM_F}: `ack` or `dump`, so that an answer comes. */
  readonly flags: number;
  /** The subsystem's header and attributes. */
  readonly body: Uint8Array;
}

/** What the kernel answered. */
export interface NetlinkAnswer {
  /** 0 when it is done. */
  readonly errno: number;
  /** The messages of a list, without their `nlmsghdr`. */
  readonly parts: readonly Buffer[];
}

/** Asks the kernel for something in a network namespace. Throws `LINUX_SYSCALL` when no answer can be had. */
export function askNetlink(
  netns: Netns,
  protocol: (typeof NETLINK)[keyof typeof NETLINK],
  request: NetlinkRequest,
): NetlinkAnswer {
  const fd = inNetns(netns, () => checkCall("socket(AF_NETLINK)", socketCall(AF_NETLINK, SOCK_RAW_CLOEXEC, protocol)));
  try {
    const message = Buffer.alloc(HEADER_BYTES + request.body.length);
    message.writeUInt32LE(message.length, 0);
    message.writeUInt16LE(request.type, 4);
    message.writeUInt16LE(NLM_F_REQUEST | request.flags, 6);
    message.set(request.body, HEADER_BYTES);
    checkCall("send to netlink", sendCall(fd, message, message.length, 0));
    message.fill(0); // requests and answers of some families carry keys
    return receiveAnswer(fd);
  } finally {
    closeSync(fd);
  }
}

/** The kernel has its answer, or its next part, ready when it is asked for it. */
function receiveAnswer(fd: number): NetlinkAnswer {
  const parts: Buffer[] = [];
  const packet = Buffer.alloc(MAX_ANSWER_BYTES);
  try {
    for (;;) {
      const length = checkCall("receive from netlink", recvCall(fd, packet, packet.length, MSG_DONTWAIT));
      for (const { type, body } of decodeMessages(packet.subarray(0, length))) {
        if (type === NLMSG_DONE) return { errno: 0, parts };
        if (type === NLMSG_ERROR) return { errno: -body.readInt32LE(0), parts };
        parts.push(Buffer.from(body));
      }
    }
  } finally {
    packet.fill(0);
  }
}

/** Splits a packet into its messages. Throws `LINUX_SYSCALL` when it is cut. */
export function decodeMessages(packet: Buffer): { readonly type: number; readonly body: Buffer }[] {
  const messages = [];
  for (let at = 0; at < packet.length;) {
    const length = packet.length - at < HEADER_BYTES ? 0 : packet.readUInt32LE(at);
    const type = length < HEADER_BYTES ? 0 : packet.readUInt16LE(at + 4);
    const isCut = length < HEADER_BYTES + (type === NLMSG_ERROR ? 4 : 0) || at + length > packet.length;
    if (isCut) throw linuxError("LINUX_SYSCALL", "the kernel's answer over netlink is cut");
    messages.push({ type, body: packet.subarray(at + HEADER_BYTES, at + length) });
    at += align(length);
  }
  return messages;
}

/** One attribute (`struct nlattr` and its value). */
export function encodeAttribute(type: number, value: Uint8Array): Buffer {
  const bytes = Buffer.alloc(align(ATTRIBUTE_HEADER_BYTES + value.length));
  bytes.writeUInt16LE(ATTRIBUTE_HEADER_BYTES + value.length, 0);
  bytes.writeUInt16LE(type, 2);
  bytes.set(value, ATTRIBUTE_HEADER_BYTES);
  return bytes;
}

/** An attribute that is a number of 32 bits. */
export function encodeNumber(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value, 0);
  return encodeAttribute(type, bytes);
}

/** The value of an attribute; undefined when it is not there. */
export function findAttribute(attributes: Buffer, type: number): Buffer | undefined {
  for (let at = 0; at + ATTRIBUTE_HEADER_BYTES <= attributes.length;) {
    const length = attributes.readUInt16LE(at);
    if (length < ATTRIBUTE_HEADER_BYTES || at + length > attributes.length) return undefined;
    if (attributes.readUInt16LE(at + 2) === type) return attributes.subarray(at + ATTRIBUTE_HEADER_BYTES, at + length);
    at += align(length);
  }
  return undefined;
}

function align(length: number): number {
  return Math.ceil(length / 4) * 4;
}
