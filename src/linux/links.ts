import { closeSync, openSync } from "node:fs";
import { bytesToIp, type IpAddress } from "#base/ip";
import { checkCall, libc, linuxError } from "./libc.ts";
import { askNetlink, encodeAttribute, encodeNumber, findAttribute, NETLINK, NLM_F } from "./netlink.ts";
import { inNetns, type Netns } from "./netns.ts";

/** A network interface. */
export interface Link {
  readonly index: number;
  readonly name: string;
  /** Bytes. */
  readonly mtu: number;
  readonly up: boolean;
  /** Index of what it is tied to: of a veth's other end, which may be in another namespace. */
  readonly tiedTo: number | undefined;
}

/** An address of an interface. */
export interface LinkAddress {
  readonly index: number;
  readonly ip: IpAddress;
  readonly prefixLength: number;
}

const RTM = { newLink: 16, deleteLink: 17, getLink: 18, getAddress: 22 } as const;
const IFLA = { name: 3, mtu: 4, link: 5, linkInfo: 18, infoKind: 1 } as const;
const IFA = { address: 1, local: 2 } as const;
const IFF_UP = 1;
/** `struct ifinfomsg`, `struct ifaddrmsg`. */
const LINK_HEADER_BYTES = 16;
const ADDRESS_HEADER_BYTES = 8;
const [ENODEV, EEXIST, EOPNOTSUPP] = [19, 17, 95] as const;

/** The interface of that name; undefined when there is none. Throws `LINUX_SYSCALL`. */
export function findLink(netns: Netns, name: string): Link | undefined {
  const body = Buffer.concat([Buffer.alloc(LINK_HEADER_BYTES), nameAttribute(name)]);
  const { errno, parts } = askNetlink(netns, NETLINK.route, { type: RTM.getLink, flags: NLM_F.ack, body });
  if (errno === ENODEV) return undefined;
  if (errno !== 0) throw refused(`find interface ${name}`, errno);
  return parts.map(decodeLink).find((link) => link !== undefined);
}

/** All interfaces of a namespace. Throws `LINUX_SYSCALL`. */
export function listLinks(netns: Netns): readonly Link[] {
  const request = { type: RTM.getLink, flags: NLM_F.dump, body: Buffer.alloc(LINK_HEADER_BYTES) };
  const { errno, parts } = askNetlink(netns, NETLINK.route, request);
  if (errno !== 0) throw refused("list interfaces", errno);
  return parts.flatMap((part) => decodeLink(part) ?? []);
}

/** All addresses of a namespace's interfaces. Throws `LINUX_SYSCALL`. */
export function listAddresses(netns: Netns): readonly LinkAddress[] {
  const request = { type: RTM.getAddress, flags: NLM_F.dump, body: Buffer.alloc(ADDRESS_HEADER_BYTES) };
  const { errno, parts } = askNetlink(netns, NETLINK.route, request);
  if (errno !== 0) throw refused("list addresses", errno);
  return parts.flatMap((part) => decodeAddress(part) ?? []);
}

/** Makes an interface of a kind that needs no more than its name (`wireguard`). False when the kernel has no such kind. Throws `LINUX_SYSCALL`. */
export function makeLink(netns: Netns, name: string, kind: string): boolean {
  const info = encodeAttribute(IFLA.linkInfo, encodeAttribute(IFLA.infoKind, Buffer.from(`${kind}\0`)));
  const body = Buffer.concat([Buffer.alloc(LINK_HEADER_BYTES), nameAttribute(name), info]);
  const flags = NLM_F.ack | NLM_F.createExclusive;
  const { errno } = askNetlink(netns, NETLINK.route, { type: RTM.newLink, flags, body });
  if (errno === EOPNOTSUPP) return false;
  if (errno !== 0 && errno !== EEXIST) throw refused(`make interface ${name}`, errno);
  return true;
}

/** Changes an interface: its MTU in bytes, and whether it is up. Throws `LINUX_SYSCALL`. */
export function setLink(
  netns: Netns,
  index: number,
  { mtu, up }: { readonly mtu?: number; readonly up?: boolean },
): void {
  const header = Buffer.alloc(LINK_HEADER_BYTES);
  header.writeInt32LE(index, 4);
  header.writeUInt32LE(up === true ? IFF_UP : 0, 8);
  header.writeUInt32LE(up === undefined ? 0 : IFF_UP, 12);
  const body = Buffer.concat([header, ...(mtu === undefined ? [] : [encodeNumber(IFLA.mtu, mtu)])]);
  const { errno } = askNetlink(netns, NETLINK.route, { type: RTM.newLink, flags: NLM_F.ack, body });
  if (errno !== 0) throw refused("change an interface", errno);
}

/** Removes an interface; one that is not there counts as done. Throws `LINUX_SYSCALL`. */
export function deleteLink(netns: Netns, name: string): void {
  const body = Buffer.concat([Buffer.alloc(LINK_HEADER_BYTES), nameAttribute(name)]);
  const { errno } = askNetlink(netns, NETLINK.route, { type: RTM.deleteLink, flags: NLM_F.ack, body });
  if (errno !== 0 && errno !== ENODEV) throw refused(`remove interface ${name}`, errno);
}

const ioctlCall = libc.func("int ioctl(int fd, unsigned long request, void *argument)");
const TUNSETIFF = 0x4004_54ca;
const TUNSETPERSIST = 0x4004_54cb;
/** Packets without Ethernet, with what the kernel knows of checksums and segments. */
const TUN_FLAGS = 0x1 | 0x1000 | 0x4000;
const IFREQ_BYTES = 40;
const NAME_BYTES = 16;

/**
 * Makes an interface whose packets a program reads (`/dev/net/tun`), and that stays when the program ends: routes to it stay, and what is
 * sent to it meanwhile is dropped. Throws `LINUX_SYSCALL`, also when a program has it open.
 */
export function makePersistentTun(netns: Netns, name: string): void {
  inNetns(netns, () => {
    const fd = openTun();
    try {
      const request = Buffer.alloc(IFREQ_BYTES);
      request.write(name.slice(0, NAME_BYTES - 1), "latin1");
      request.writeUInt16LE(TUN_FLAGS, NAME_BYTES);
      checkCall("ioctl TUNSETIFF", Number(ioctlCall(fd, TUNSETIFF, request)), { name });
      // Its argument is a number that stands where others have a pointer.
      checkCall("ioctl TUNSETPERSIST", Number(persistCall(fd, TUNSETPERSIST, 1)), { name });
    } finally {
      closeSync(fd);
    }
  });
}

const persistCall = libc.func("int ioctl(int fd, unsigned long request, long argument)");

function openTun(): number {
  try {
    return openSync("/dev/net/tun", "r+");
  } catch (cause) {
    throw linuxError("LINUX_SYSCALL", "cannot open /dev/net/tun", { cause });
  }
}

function nameAttribute(name: string): Buffer {
  return encodeAttribute(IFLA.name, Buffer.from(`${name}\0`));
}

/** Reads `struct ifinfomsg` and attributes; undefined when name or MTU are not in it. */
export function decodeLink(message: Buffer): Link | undefined {
  if (message.length < LINK_HEADER_BYTES) return undefined;
  const attributes = message.subarray(LINK_HEADER_BYTES);
  const name = findAttribute(attributes, IFLA.name)?.toString("latin1").replace(/\0.*$/, "");
  const mtu = findAttribute(attributes, IFLA.mtu);
  const tied = findAttribute(attributes, IFLA.link);
  if (name === undefined || mtu?.length !== 4) return undefined;
  return {
    index: message.readInt32LE(4),
    name,
    mtu: mtu.readUInt32LE(0),
    up: (message.readUInt32LE(8) & IFF_UP) !== 0,
    tiedTo: tied?.length === 4 ? tied.readUInt32LE(0) : undefined,
  };
}

/** Reads `struct ifaddrmsg` and attributes; undefined when there is no address in it. */
export function decodeAddress(message: Buffer): LinkAddress | undefined {
  if (message.length < ADDRESS_HEADER_BYTES) return undefined;
  const attributes = message.subarray(ADDRESS_HEADER_BYTES);
  // Of a point-to-point link the other end's is IFA_ADDRESS, its own IFA_LOCAL; IPv6 has the first alone.
  const bytes = findAttribute(attributes, IFA.local) ?? findAttribute(attributes, IFA.address);
  if (bytes?.length !== 4 && bytes?.length !== 16) return undefined;
  return { index: message.readUInt32LE(4), ip: bytesToIp(bytes), prefixLength: message[1] ?? 0 };
}

function refused(what: string, errno: number): Error {
  return linuxError("LINUX_SYSCALL", `the kernel refused to ${what}: errno ${errno}`, { details: { errno } });
}
