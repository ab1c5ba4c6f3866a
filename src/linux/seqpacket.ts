import { closeSync, chmodSync, lstatSync, unlinkSync } from "node:fs";
import koffi from "koffi";
import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { checkCall, lastErrno, libc, linuxError } from "./libc.ts";
import { whenReadable } from "./poller.ts";

/**
 * Unix sockets of type SOCK_SEQPACKET that carry descriptors (SCM_RIGHTS): what ZDS speaks, and what Node cannot.
 * One packet is one message. Layouts are those of 64-bit Linux (msghdr, iovec and cmsghdr are the same on amd64 and arm64).
 */

/** Longest message that is received; a longer one is `LINUX_SEQPACKET_TRUNCATED`, as ZDS asks. */
export const MAX_PACKET_BYTES = 1024;
/** Most descriptors that one message may carry. */
const MAX_PACKET_FDS = 4;

/** One received packet. The receiver owns the descriptors and closes each of them. */
export interface SeqpacketMessage {
  readonly data: Uint8Array;
  readonly fds: readonly number[];
}

const AF_UNIX = 1;
const SOCK_SEQPACKET_CLOEXEC_NONBLOCK = 5 | 0x8_0000 | 0x800;
const ACCEPT_FLAGS = 0x8_0000 | 0x800;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const MSG_TRUNC = 0x20;
const MSG_CTRUNC = 0x8;
const EAGAIN = 11;
const ECONNABORTED = 103;
const EMFILE = 24;
const ENFILE = 23;
const ECONNRESET = 104;
const ECONNREFUSED = 111;
/** How long a listener waits before it accepts again when the process has no descriptor left. */
const ACCEPT_PAUSE_MS = 100;

const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const bindCall = libc.func("int bind(int fd, void *address, unsigned int length)");
const connectCall = libc.func("int connect(int fd, void *address, unsigned int length)");
const listenCall = libc.func("int listen(int fd, int backlog)");
const accept4Call = libc.func("int accept4(int fd, void *address, void *length, int flags)");
const sendmsgCall = libc.func("long sendmsg(int fd, void *message, int flags)");
const recvmsgCall = libc.func("long recvmsg(int fd, void *message, int flags)");

// One scratch area per thread: every call below fills it, calls the kernel and copies out before anything else runs.
const MSGHDR = 0;
const MSGHDR_BYTES = 56;
const IOVEC = 64;
const CONTROL = 80;
const CMSG_HEADER_BYTES = 16;
const CONTROL_BYTES = CMSG_HEADER_BYTES + 16 * 8; // room for more than is allowed, so that extra descriptors are seen and closed
const DATA = CONTROL + CONTROL_BYTES;
const SCRATCH_BYTES = DATA + MAX_PACKET_BYTES;
const scratchAddress = koffi.alloc("uint8_t", SCRATCH_BYTES) as bigint; // koffi types it as any
const scratch = Buffer.from(koffi.view(scratchAddress, SCRATCH_BYTES));

/** Lays out a msghdr with one iovec of `dataBytes` and a control area of `controlBytes`. */
function prepareMessage(dataBytes: number, controlBytes: number): bigint {
  scratch.fill(0, MSGHDR, MSGHDR + MSGHDR_BYTES);
  scratch.writeBigUInt64LE(scratchAddress + BigInt(IOVEC), MSGHDR + 16);
  scratch.writeBigUInt64LE(1n, MSGHDR + 24);
  if (controlBytes > 0) scratch.writeBigUInt64LE(scratchAddress + BigInt(CONTROL), MSGHDR + 32);
  scratch.writeBigUInt64LE(BigInt(controlBytes), MSGHDR + 40);
  scratch.writeBigUInt64LE(scratchAddress + BigInt(DATA), IOVEC);
  scratch.writeBigUInt64LE(BigInt(dataBytes), IOVEC + 8);
  return scratchAddress + BigInt(MSGHDR);
}

/** The descriptors in the control area after a `recvmsg`. */
function takeDescriptors(): number[] {
  const end = Number(scratch.readBigUInt64LE(MSGHDR + 40));
  const fds: number[] = [];
  for (let at = 0; at + CMSG_HEADER_BYTES <= end;) {
    const length = Number(scratch.readBigUInt64LE(CONTROL + at));
    if (length < CMSG_HEADER_BYTES) break;
    const isRights =
      scratch.readInt32LE(CONTROL + at + 8) === SOL_SOCKET && scratch.readInt32LE(CONTROL + at + 12) === SCM_RIGHTS;
    if (isRights)
      for (let fd = CMSG_HEADER_BYTES; fd + 4 <= length; fd += 4) fds.push(scratch.readInt32LE(CONTROL + at + fd));
    at += Math.ceil(length / 8) * 8;
  }
  return fds;
}

/** One end of a connection. The holder calls `close` once. */
export class SeqpacketConnection {
  #fd: number | undefined;
  #stopWaiting: (() => void) | undefined;
  #wake: (() => void) | undefined;

  /** Takes over a connected descriptor. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** True after `close`. */
  get closed(): boolean {
    return this.#fd === undefined;
  }

  /**
   * Sends one packet, with descriptors (which stay open here). Never waits: a peer that does not read makes it throw
   * `LINUX_SEQPACKET_FULL`; one that is gone, `LINUX_SEQPACKET_CLOSED`.
   */
  send(data: Uint8Array, fds: readonly number[] = []): void {
    if (this.#fd === undefined) throw linuxError("LINUX_SEQPACKET_CLOSED", "cannot send: the connection is closed");
    if (data.length === 0 || data.length > MAX_PACKET_BYTES || fds.length > MAX_PACKET_FDS) {
      throw linuxError(
        "LINUX_SEQPACKET_SIZE",
        `cannot send ${data.length} bytes with ${fds.length} descriptors in one packet (1 to ${MAX_PACKET_BYTES} bytes, at most ${MAX_PACKET_FDS} descriptors)`,
      );
    }
    const rightsBytes = CMSG_HEADER_BYTES + 4 * fds.length;
    scratch.set(data, DATA);
    scratch.writeBigUInt64LE(BigInt(rightsBytes), CONTROL);
    scratch.writeInt32LE(SOL_SOCKET, CONTROL + 8);
    scratch.writeInt32LE(SCM_RIGHTS, CONTROL + 12);
    for (const [i, fd] of fds.entries()) scratch.writeInt32LE(fd, CONTROL + CMSG_HEADER_BYTES + 4 * i);
    const message = prepareMessage(data.length, fds.length === 0 ? 0 : Math.ceil(rightsBytes / 8) * 8);
    if (fds.length > 0) scratch.writeBigUInt64LE(BigInt(rightsBytes), MSGHDR + 40);
    const sent: number = sendmsgCall(this.#fd, message, MSG_NOSIGNAL);
    if (sent >= 0) return;
    const { errno, text } = lastErrno();
    if (errno === EAGAIN) throw linuxError("LINUX_SEQPACKET_FULL", "cannot send: the peer does not read");
    throw linuxError("LINUX_SEQPACKET_CLOSED", `cannot send: ${text}`, { details: { errno } });
  }

  /**
   * The next packet; undefined when the peer has closed, or when `close` was called meanwhile. One call at a time.
   * Throws `LINUX_SEQPACKET_TRUNCATED` for a packet that is too long or carries too many descriptors (the packet is lost, its
   * descriptors are closed, the connection stays), and the signal's reason when it is aborted.
   */
  async receive(signal?: AbortSignal): Promise<SeqpacketMessage | undefined> {
    if (this.#wake !== undefined) throw new Error("receive is called twice at once");
    for (;;) {
      signal?.throwIfAborted();
      if (this.#fd === undefined) return undefined;
      const message = this.#receiveNow(this.#fd);
      if (message !== "wait") return message;
      await this.#readable(this.#fd, signal);
    }
  }

  /** Closes. A `receive` in progress answers undefined. May be called twice. */
  close(): void {
    if (this.#fd === undefined) return;
    this.#stopWaiting?.();
    closeSync(this.#fd);
    this.#fd = undefined;
    this.#wake?.();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #receiveNow(fd: number): SeqpacketMessage | undefined | "wait" {
    const size: number = recvmsgCall(fd, prepareMessage(MAX_PACKET_BYTES, CONTROL_BYTES), MSG_CMSG_CLOEXEC);
    if (size < 0) {
      const { errno } = lastErrno();
      if (errno === EAGAIN) return "wait";
      if (errno === ECONNRESET) return undefined;
      checkCall("recvmsg", size);
    }
    const fds = takeDescriptors();
    if (size === 0 && fds.length === 0) return undefined;
    const truncated = (scratch.readInt32LE(MSGHDR + 48) & (MSG_TRUNC | MSG_CTRUNC)) !== 0;
    if (truncated || fds.length > MAX_PACKET_FDS) {
      for (const extra of fds) closeSync(extra);
      throw linuxError(
        "LINUX_SEQPACKET_TRUNCATED",
        `a packet is longer than ${MAX_PACKET_BYTES} bytes or carries more than ${MAX_PACKET_FDS} descriptors`,
      );
    }
    return { data: Uint8Array.from(scratch.subarray(DATA, DATA + size)), fds };
  }

  async #readable(fd: number, signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    this.#stopWaiting = whenReadable(fd, resolve);
    signal?.addEventListener("abort", this.#wake, { once: true });
    await promise;
    signal?.removeEventListener("abort", this.#wake);
    this.#stopWaiting();
    this.#wake = undefined;
    this.#stopWaiting = undefined;
  }
}

/** The `sockaddr_un` of a path. Throws `LINUX_SEQPACKET_PATH` when it does not fit. */
function addressOf(path: string): Buffer {
  const bytes = Buffer.from(path);
  if (bytes.length === 0 || bytes.length > 107 || bytes.includes(0)) {
    throw linuxError("LINUX_SEQPACKET_PATH", `"${path}" cannot be the path of a Unix socket (1 to 107 bytes)`);
  }
  const address = Buffer.alloc(2 + bytes.length + 1);
  address.writeUInt16LE(AF_UNIX, 0);
  address.set(bytes, 2);
  return address;
}

/** Connects to a listening socket. Throws `LINUX_SEQPACKET_CONNECT` when nobody listens there. */
export function connectSeqpacket(path: string): SeqpacketConnection {
  const address = addressOf(path);
  const fd = checkCall("socket", socketCall(AF_UNIX, SOCK_SEQPACKET_CLOEXEC_NONBLOCK, 0));
  if (connectCall(fd, address, address.length) === 0) return new SeqpacketConnection(fd);
  const { errno, text } = lastErrno();
  closeSync(fd);
  throw linuxError("LINUX_SEQPACKET_CONNECT", `cannot connect to ${path}: ${text}`, { details: { path, errno } });
}

/** A listening socket. `close` stops accepting and removes the file; connections that were accepted stay. */
export interface SeqpacketListener extends Disposable {
  readonly path: string;
  close(): void;
}

/**
 * Listens at `path` (file mode `mode`, default 0600) and hands each connection to `onConnection`, which then owns it.
 * A socket file that nobody serves any more is replaced; one that is served is `LINUX_SEQPACKET_IN_USE`, and a file that is no
 * socket is left alone (`LINUX_SYSCALL`). When descriptors run out, connections wait in the backlog until some are free;
 * so they do for `pauseMs` (default 0) after each one that was accepted.
 */
export function listenSeqpacket(
  options: { path: string; clock: Clock; mode?: number; backlog?: number; pauseMs?: number },
  onConnection: (connection: SeqpacketConnection) => void,
): SeqpacketListener {
  const { path, clock, mode = 0o600, backlog = 16, pauseMs = 0 } = options;
  const address = addressOf(path);
  removeStale(path);
  let fd: number | undefined = checkCall("socket", socketCall(AF_UNIX, SOCK_SEQPACKET_CLOEXEC_NONBLOCK, 0));
  try {
    checkCall("bind", bindCall(fd, address, address.length), { path });
    chmodSync(path, mode);
    checkCall("listen", listenCall(fd, backlog), { path });
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  const inode = lstatSync(path).ino;
  let stopWaiting = (): void => {};
  const accept = (): void => {
    if (fd === undefined) return;
    const accepted: number = accept4Call(fd, null, null, ACCEPT_FLAGS);
    const errno = accepted < 0 ? lastErrno().errno : 0;
    if (errno === EMFILE || errno === ENFILE) stopWaiting = clock.after(ACCEPT_PAUSE_MS, accept);
    else if (accepted >= 0 && pauseMs > 0) stopWaiting = clock.after(pauseMs, arm);
    else if (errno === 0 || errno === EAGAIN || errno === ECONNABORTED) arm();
    else checkCall("accept4", accepted, { path });
    if (accepted >= 0) onConnection(new SeqpacketConnection(accepted));
  };
  const arm = (): void => {
    if (fd !== undefined) stopWaiting = whenReadable(fd, accept);
  };
  arm();
  const close = (): void => {
    if (fd === undefined) return;
    stopWaiting();
    closeSync(fd);
    fd = undefined;
    if (lstatSync(path, { throwIfNoEntry: false })?.ino === inode) unlinkSync(path); // not a successor's
  };
  return { path, close, [Symbol.dispose]: close };
}

/** Removes a socket file that nobody listens at. Throws `LINUX_SEQPACKET_IN_USE` when somebody does. */
function removeStale(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return;
  try {
    connectSeqpacket(path).close();
  } catch (error) {
    if (error instanceof CodedError && error.details["errno"] === ECONNREFUSED) {
      unlinkSync(path);
      return;
    }
    if (!(error instanceof CodedError) || error.details["errno"] !== EAGAIN) throw error; // a full backlog is served, too
  }
  throw linuxError("LINUX_SEQPACKET_IN_USE", `another process listens at ${path}`, { details: { path } });
}
