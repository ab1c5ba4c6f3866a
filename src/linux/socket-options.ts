import koffi from "koffi";
import type { CodedError } from "#base/errors";
import { bytesToIp, findIp, ipToBytes, isV6, type IpAddress } from "#base/ip";
import { systemRandom } from "#base/random";
import { isLastFile } from "./files.ts";
import { checkCall, lastErrno, libc, linuxError, socketError } from "./libc.ts";

/** An address and port of a TCP connection; IPv4-mapped IPv6 is shown as IPv4. */
export interface SocketAddress {
  readonly ip: IpAddress;
  readonly port: number;
}

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const MSG_PEEK_DONTWAIT = 0x2 | 0x40;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const EAGAIN = 11;
const EMFILE = 24;
const ENFILE = 23;
const SOL_SOCKET = 1;
const IPPROTO_IP = 0;
const IPPROTO_TCP = 6;
const IPPROTO_IPV6 = 41;
/** Every probe interval of a silent connection, seconds; and how many unanswered probes end it. */
const KEEPALIVE_SECONDS = 180;
const KEEPALIVE_PROBES = 9;

/** Socket options by name: level and number. */
const OPTIONS = {
  SO_REUSEADDR: [SOL_SOCKET, 2],
  SO_KEEPALIVE: [SOL_SOCKET, 9],
  SO_LINGER: [SOL_SOCKET, 13],
  SO_REUSEPORT: [SOL_SOCKET, 15],
  SO_SNDTIMEO: [SOL_SOCKET, 21],
  SO_MARK: [SOL_SOCKET, 36],
  IP_TRANSPARENT: [IPPROTO_IP, 19],
  IPV6_V6ONLY: [IPPROTO_IPV6, 26],
  IPV6_TRANSPARENT: [IPPROTO_IPV6, 75],
  TCP_NODELAY: [IPPROTO_TCP, 1],
  TCP_CORK: [IPPROTO_TCP, 3],
  TCP_KEEPIDLE: [IPPROTO_TCP, 4],
  TCP_KEEPINTVL: [IPPROTO_TCP, 5],
  TCP_KEEPCNT: [IPPROTO_TCP, 6],
  TCP_CONGESTION: [IPPROTO_TCP, 13],
} as const;

/** SO_ORIGINAL_DST, and IP6T_SO_ORIGINAL_DST: the same number on two levels. */
const ORIGINAL_DST = 80;

const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const bindCall = libc.func("int bind(int fd, const uint8_t *address, uint32_t length)");
const listenCall = libc.func("int listen(int fd, int backlog)");
const acceptCall = libc.func("int accept4(int fd, void *address, void *length, int flags)");
const closeCall = libc.func("int close(int fd)");
const connectCall = libc.func("int connect(int fd, const uint8_t *address, uint32_t length)");
const setOption = libc.func("int setsockopt(int fd, int level, int name, const void *value, uint32_t length)");
const getOption = libc.func("int getsockopt(int fd, int level, int name, void *value, void *length)");
const recvCall = libc.func("long recv(int fd, void *data, size_t length, int flags)");
const getName = libc.func("int getsockname(int fd, void *address, void *length)");
const getPeer = libc.func("int getpeername(int fd, void *address, void *length)");

const number = new Int32Array(1);
const one = new Int32Array([1]);
const lingerNot = new Int32Array([1, 0]);
const lingerDefault = new Int32Array([0, 0]);
const nameBuffer = new Uint8Array(28);
const nameLength = new Uint32Array(1);

function setNumber(fd: number, name: keyof typeof OPTIONS, value: number): void {
  const [level, option] = OPTIONS[name];
  number[0] = value;
  checkCall(`setsockopt ${name}`, Number(setOption(fd, level, option, value === 1 ? one : number, 4)));
}

/** How a socket of the data path is made. */
export interface SocketKind {
  readonly v6: boolean;
  /** SO_MARK, so that redirection leaves the socket's packets alone. */
  readonly mark?: number | undefined;
  /** IP_TRANSPARENT: may use addresses that are not the machine's. */
  readonly transparent?: boolean | undefined;
  /** Probes a silent connection; the default is true. */
  readonly keepAlive?: boolean | undefined;
  /**
   * The other ends are on this machine: no network lies between that could be congested, so that nothing is paced (a host that
   * has BBR for its networks would pace here, too: a fifth of the CPU of each byte).
   */
  readonly sameHost?: boolean | undefined;
}

/** Always there, and the only algorithm that keeps no timers and no model of the path. */
const PLAIN_CONGESTION = Buffer.from("reno");

/** Makes a TCP socket in the namespace that the thread is in: no delay, keep-alive. The caller closes it. */
export function makeTcpSocket({ v6, mark, transparent, keepAlive, sameHost }: SocketKind): number {
  const fd = openSocket(v6);
  try {
    setNumber(fd, "TCP_NODELAY", 1);
    if (keepAlive !== false) setKeepAlive(fd);
    if (sameHost === true) setPlainCongestion(fd);
    if (mark !== undefined) setNumber(fd, "SO_MARK", mark);
    if (transparent === true) setNumber(fd, v6 ? "IPV6_TRANSPARENT" : "IP_TRANSPARENT", 1);
    if (transparent === true && v6) setNumber(fd, "IP_TRANSPARENT", 1);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return fd;
}

function setKeepAlive(fd: number): void {
  setNumber(fd, "SO_KEEPALIVE", 1);
  setNumber(fd, "TCP_KEEPIDLE", KEEPALIVE_SECONDS);
  setNumber(fd, "TCP_KEEPINTVL", KEEPALIVE_SECONDS);
  setNumber(fd, "TCP_KEEPCNT", KEEPALIVE_PROBES);
}

/** A machine that forbids it loses speed alone. */
function setPlainCongestion(fd: number): void {
  const [level, option] = OPTIONS.TCP_CONGESTION;
  setOption(fd, level, option, PLAIN_CONGESTION, PLAIN_CONGESTION.length);
}

/** Makes a UDP socket in the namespace that the thread is in. The caller closes it. */
export function makeUdpSocket({ v6, mark }: Omit<SocketKind, "transparent">): number {
  const fd = Number(socketCall(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd < 0) throw outOfFiles() ?? asError("socket", fd);
  try {
    if (v6) setNumber(fd, "IPV6_V6ONLY", 1);
    if (mark !== undefined) setNumber(fd, "SO_MARK", mark);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return fd;
}

/** Binds a UDP socket to a port that other sockets may share. Errors are `LINUX_PORT_IN_USE` with the kernel's word. */
export function bindDatagrams(fd: number, at: SocketAddress): void {
  setNumber(fd, "SO_REUSEPORT", 1);
  const address = sockaddr(at.ip, at.port);
  if (Number(bindCall(fd, address, address.length)) === 0) return;
  const { errno, text } = lastErrno();
  throw linuxError("LINUX_PORT_IN_USE", `cannot bind ${at.ip} port ${at.port}: ${text}`, { details: { ...at, errno } });
}

/** From now on a UDP socket hears nobody but `peer`. What is in its queue already stays. */
export function connectDatagrams(fd: number, peer: SocketAddress): void {
  const address = sockaddr(peer.ip, peer.port);
  checkCall("connect", Number(connectCall(fd, address, address.length)));
}

/** True when a datagram waits to be read. */
export function hasDatagram(fd: number): boolean {
  return Number(recvCall(fd, nameBuffer, 1, MSG_PEEK_DONTWAIT)) >= 0;
}

function openSocket(v6: boolean): number {
  const fd = Number(socketCall(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd < 0) throw outOfFiles() ?? asError("socket", fd);
  if (!isLastFile(fd, "made")) return fd;
  closeFd(fd);
  throw linuxError("LINUX_NO_FILES", "cannot make a socket: the last descriptors are kept back");
}

function outOfFiles(): CodedError | undefined {
  const { errno, text } = lastErrno();
  if (errno !== EMFILE && errno !== ENFILE) return undefined;
  return linuxError("LINUX_NO_FILES", `cannot make a socket: ${text}`, { details: { errno } });
}

function asError(call: string, result: number): unknown {
  try {
    return checkCall(call, result);
  } catch (error) {
    return error;
  }
}

/** Closes a descriptor that no handle owns yet. */
export function closeFd(fd: number): void {
  closeCall(fd);
}

/** Binds and listens. Errors are `LINUX_PORT_IN_USE` with the address and the kernel's word. */
export function bindAndListen(fd: number, at: SocketAddress, options: { reusePort: boolean; backlog: number }): void {
  const where = `${at.ip} port ${at.port}`;
  const address = prepareToBind(fd, at, options);
  for (const [call, result] of [
    ["bind", () => bindCall(fd, address, address.length)],
    ["listen", () => listenCall(fd, options.backlog)],
  ] as const) {
    if (Number(result()) === 0) continue;
    const { errno, text } = lastErrno();
    throw linuxError("LINUX_PORT_IN_USE", `cannot ${call} on ${where}: ${text}`, { details: { ...at, errno } });
  }
}

function prepareToBind(fd: number, at: SocketAddress, { reusePort }: { reusePort: boolean }): Uint8Array {
  setNumber(fd, "SO_REUSEADDR", 1);
  if (reusePort) setNumber(fd, "SO_REUSEPORT", 1);
  if (isV6(at.ip)) setNumber(fd, "IPV6_V6ONLY", 0);
  return sockaddr(at.ip, at.port);
}

/** Whether a TCP socket with these options could be bound now. */
export function canBind(at: SocketAddress, options: { reusePort: boolean }): boolean {
  const fd = openSocket(isV6(at.ip));
  try {
    const address = prepareToBind(fd, at, options);
    return Number(bindCall(fd, address, address.length)) === 0;
  } finally {
    closeFd(fd);
  }
}

/**
 * Ports for connections under another's address: below those that Linux gives its own connections (32768 and up). From there, sooner
 * or later one would be taken that the address's owner uses for a connection to the same port, and break that one (ADR 0030).
 */
export const BORROWED_PORTS = { from: 1024, count: 32_768 - 1024 } as const;
/** Ports that are tried when some are listened on. */
const BIND_TRIES = 32;
const EADDRINUSE = 98;

/** Goes round, so that a port rests as long as possible before it is used again. */
let nextBorrowed = systemRandom.below(BORROWED_PORTS.count);

/**
 * Fixes the source of a socket that will connect: `ip`, and one of `BORROWED_PORTS`. Whether that is free towards the destination
 * shows when it connects (EADDRNOTAVAIL: make another socket, it gets another port).
 */
export function bindSource(fd: number, ip: IpAddress): void {
  setNumber(fd, "SO_REUSEADDR", 1); // the same source towards several destinations
  for (let tries = 1; ; tries++) {
    nextBorrowed = (nextBorrowed + 1) % BORROWED_PORTS.count;
    const address = sockaddr(ip, BORROWED_PORTS.from + nextBorrowed);
    const result = Number(bindCall(fd, address, address.length));
    if (result === 0) return;
    if (lastErrno().errno !== EADDRINUSE || tries >= BIND_TRIES) checkCall("bind", result, { ip });
  }
}

/**
 * Has the next source ports come from further on: connections that were opened one after the other hold ports one after
 * the other.
 */
export function skipSources(count: number): void {
  nextBorrowed = (nextBorrowed + count) % BORROWED_PORTS.count;
}

/** Takes one waiting connection from a listening socket; undefined when none waits. */
export function acceptWaiting(fd: number): number | undefined {
  const accepted = Number(acceptCall(fd, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (accepted >= 0) return accepted;
  if (lastErrno().errno === EAGAIN) return undefined;
  return undefined; // aborted in the queue, or no descriptor left: nothing more can be taken
}

const EINPROGRESS = 115;
const EALREADY = 114;

/**
 * Begins to connect. What listens in the same namespace has answered by the time that the call returns, which its second call
 * tells: the result is 0 then, or the errno of a failure; undefined when no answer has come.
 */
export function connectAtOnce(fd: number, to: SocketAddress): number | undefined {
  const address = sockaddr(to.ip, to.port);
  for (const pending of [EINPROGRESS, EALREADY]) {
    if (Number(connectCall(fd, address, address.length)) === 0) return 0;
    const errno = koffi.errno();
    if (errno !== pending) return errno;
  }
  return undefined;
}

/** Connects a socket on a thread of libuv's pool (it is made blocking for that). Resolves with 0 or the errno. */
export async function connectBlocking(fd: number, to: SocketAddress, timeoutMs: number): Promise<number> {
  setBlocking(fd);
  const [level, option] = OPTIONS.SO_SNDTIMEO;
  const seconds = Math.floor(timeoutMs / 1000);
  const time = new BigInt64Array([BigInt(seconds), BigInt(Math.round((timeoutMs - seconds * 1000) * 1000))]);
  checkCall("setsockopt SO_SNDTIMEO", Number(setOption(fd, level, option, time, 16)));
  const address = sockaddr(to.ip, to.port);
  return new Promise((resolve, reject) => {
    connectCall.async(fd, address, address.length, (error: unknown, result: unknown) => {
      if (error instanceof Error) reject(error);
      else resolve(Number(result) === 0 ? 0 : koffi.errno());
    });
  });
}

const fcntlCall = libc.func("int fcntl(int fd, int command, int flags)");

function setBlocking(fd: number): void {
  const F_SETFL = 4;
  checkCall("fcntl", Number(fcntlCall(fd, F_SETFL, 0)));
}

const sendCall = libc.func("int64_t send(int fd, const uint8_t *bytes, size_t count, int flags)");
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** Gives bytes to the kernel at once. Throws `LINUX_SOCKET` when it does not take all of them. */
export function sendAtOnce(fd: number, bytes: Uint8Array): void {
  const taken = Number(sendCall(fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL));
  if (taken === bytes.length) return;
  throw socketError("send", taken < 0 ? lastErrno().text : `only ${taken} of ${bytes.length} bytes were taken`);
}

/** What is written from now on waits (200 ms at most) to leave with the end of the direction. */
export function holdForEnd(fd: number): void {
  const [level, option] = OPTIONS.TCP_CORK;
  setOption(fd, level, option, one, 4);
}

const shutdownCall = libc.func("int shutdown(int fd, int how)");
const SHUT_WR = 1;

/** Ends our direction after all that was written. That the other end is gone already shows when it is read from. */
export function endSending(fd: number): void {
  shutdownCall(fd, SHUT_WR);
}

/** Whether the close of a socket, by whomever, is a reset. */
export function setResetOnClose(fd: number, reset: boolean): void {
  const [level, option] = OPTIONS.SO_LINGER;
  setOption(fd, level, option, reset ? lingerNot : lingerDefault, 8);
}

/** Where a redirected connection was going before redirection; undefined when it was not redirected. */
export function readOriginalDestination(fd: number, v6Socket: boolean): SocketAddress | undefined {
  const levels = v6Socket ? [IPPROTO_IPV6, IPPROTO_IP] : [IPPROTO_IP];
  for (const level of levels) {
    nameLength[0] = nameBuffer.length;
    if (Number(getOption(fd, level, ORIGINAL_DST, nameBuffer, nameLength)) === 0) return readSockaddr();
  }
  return undefined;
}

/** Our end of a socket. */
export function readLocalAddress(fd: number): SocketAddress | undefined {
  nameLength[0] = nameBuffer.length;
  return Number(getName(fd, nameBuffer, nameLength)) === 0 ? readSockaddr() : undefined;
}

/** The other end of a connected socket. */
export function readRemoteAddress(fd: number): SocketAddress | undefined {
  nameLength[0] = nameBuffer.length;
  return Number(getPeer(fd, nameBuffer, nameLength)) === 0 ? readSockaddr() : undefined;
}

function readSockaddr(): SocketAddress {
  const b = nameBuffer;
  const family = (b[0] ?? 0) | ((b[1] ?? 0) << 8);
  const port = ((b[2] ?? 0) << 8) | (b[3] ?? 0);
  const at = family === AF_INET ? 4 : mappedAt(b);
  if (at < 0) return { ip: bytesToIp(b.slice(8, 24)), port };
  const text = `${b[at]}.${b[at + 1]}.${b[at + 2]}.${b[at + 3]}`;
  return { ip: text as IpAddress, port }; // four bytes always print as an address
}

/** Where the IPv4 address of an IPv4-mapped `sockaddr_in6` begins, or -1. */
function mappedAt(b: Uint8Array): number {
  for (let at = 8; at < 18; at++) if (b[at] !== 0) return -1;
  return b[18] === 0xff && b[19] === 0xff ? 20 : -1;
}

/** `struct sockaddr_in` or `sockaddr_in6`. */
function sockaddr(ip: IpAddress, port: number): Uint8Array {
  const v6 = isV6(ip);
  const out = new Uint8Array(v6 ? 28 : 16);
  const view = new DataView(out.buffer);
  view.setUint16(0, v6 ? AF_INET6 : AF_INET, true); // the host's order: the machines of this program are little-endian
  view.setUint16(2, port);
  out.set(ipToBytes(ip), v6 ? 8 : 4);
  return out;
}

/** Reads an address given by a caller. Throws `LINUX_SYSCALL` naming it. */
export function checkAddress(text: string): IpAddress {
  const ip = findIp(text);
  if (ip === undefined) throw linuxError("LINUX_SYSCALL", `"${text}" is no IP address`, { details: { ip: text } });
  return ip;
}
