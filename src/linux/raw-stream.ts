/**
 * The one file that touches Node's socket internals (`process.binding`, the handles behind `net`, the verdict of one behind `tls`).
 * They are not a public interface: {@link findWrongShape} looks at each of them before the first use, and when one differs
 * the program falls back to the public streams (`public-stream.ts`), which are slower.
 */
import { Socket, type SocketConstructorOpts } from "node:net";
import type { TLSSocket } from "node:tls";
import { getSystemErrorName } from "node:util";
import type { CodedError } from "#base/errors";
import { describeMissingCrypto } from "./aead.ts";
import type { ByteStream, StreamOwner, WriteOutcome } from "./byte-stream.ts";
import { linuxError, socketError } from "./libc.ts";
import { endSending, holdForEnd } from "./socket-options.ts";

/** A request object of libuv; `stream` is ours. */
interface Request {
  oncomplete: ((this: Request, status: number) => void) | undefined;
  stream: RawStream | undefined;
  /** Keeps the bytes of a pending write alive. */
  pieces: unknown;
}

/** What a stream handle can do. */
interface StreamHandle {
  readonly fd: number;
  readonly writeQueueSize: number;
  onread: (this: StreamHandle) => Uint8Array | undefined;
  /** Ours: found again in `onread`, which gets the handle as `this`. */
  veilStream?: RawStream | undefined;
  readStart(): number;
  readStop(): number;
  useUserBuffer(buffer: Uint8Array): void;
  writeBuffer(request: Request, bytes: Uint8Array): number;
  writev(request: Request, pieces: readonly Uint8Array[], allBuffers: true): number;
  shutdown(request: Request): number;
  close(callback?: () => void): void;
}

/** A TCP handle of libuv. */
export interface TcpHandle extends StreamHandle {
  onconnection: ((this: TcpHandle, status: number, client: TcpHandle | undefined) => void) | null;
  open(fd: number): number;
  listen(backlog: number): number;
  connect(request: Request, ip: string, port: number): number;
  connect6(request: Request, ip: string, port: number): number;
}

interface Internals {
  readonly TCP: new (kind: number) => TcpHandle;
  readonly TCPConnectWrap: new () => Request;
  readonly WriteWrap: new () => Request;
  readonly ShutdownWrap: new () => Request;
  readonly constants: { readonly SOCKET: number; readonly SERVER: number };
  /** Results of the last call: bytes read, whether the last write is pending. */
  readonly state: Int32Array;
  readonly kReadBytesOrError: number;
  readonly kLastWriteWasAsync: number;
}

const HANDLE_MEMBERS = ["readStart", "readStop", "useUserBuffer", "writeBuffer", "writev", "shutdown", "close"];
const EOF = "EOF";

function loadInternals(): Internals | string {
  const binding: unknown = Reflect.get(process, "binding");
  if (typeof binding !== "function") return "process.binding is no function";
  try {
    // Internals have no types; every member that is used is looked at below.
    const load = (name: string): Record<string, unknown> => binding.call(process, name) as Record<string, unknown>;
    const found = { ...load("tcp_wrap"), ...load("stream_wrap") };
    const internals = { ...found, state: found["streamBaseState"] } as unknown as Internals;
    return describeWrongShape(internals) ?? describeMissingCrypto() ?? internals;
  } catch (error) {
    return `process.binding refuses: ${String(error)}`;
  }
}

function describeWrongShape(found: Internals): string | undefined {
  for (const name of ["TCP", "TCPConnectWrap", "WriteWrap", "ShutdownWrap"] as const) {
    if (typeof found[name] !== "function") return `${name} is no constructor`;
  }
  if (!(found.state instanceof Int32Array)) return "streamBaseState is no Int32Array";
  for (const name of ["kReadBytesOrError", "kLastWriteWasAsync"] as const) {
    if (typeof found[name] !== "number" || found[name] >= found.state.length) return `${name} is no index`;
  }
  if (typeof found.constants?.SOCKET !== "number" || typeof found.constants.SERVER !== "number") {
    return "the constants of tcp_wrap are not there";
  }
  return describeWrongHandle(new found.TCP(found.constants.SOCKET));
}

function describeWrongHandle(handle: TcpHandle): string | undefined {
  try {
    const members = [...HANDLE_MEMBERS, "open", "listen", "connect", "connect6"];
    const missing = members.filter((name) => typeof Reflect.get(handle, name) !== "function");
    if (missing.length > 0) return `a TCP handle has no ${missing.join(", ")}`;
    if (!("onread" in handle && "fd" in handle && "writeQueueSize" in handle)) return "a TCP handle lacks onread or fd";
    return undefined;
  } finally {
    handle.close();
  }
}

const loaded = loadInternals();

/** What is wrong with the running Node's internals, as `LINUX_WRONG_SHAPE`; undefined when they are as expected. */
export function findWrongShape(): CodedError | undefined {
  if (typeof loaded !== "string") return undefined;
  return linuxError("LINUX_WRONG_SHAPE", `Node ${process.version} has other socket internals than expected: ${loaded}`);
}

function internals(): Internals {
  if (typeof loaded === "string") throw findWrongShape() ?? new Error("unreachable");
  return loaded;
}

/** Bound once: the data path reads these without a check. */
const state = typeof loaded === "string" ? new Int32Array(8) : loaded.state;
const kCount = typeof loaded === "string" ? 0 : loaded.kReadBytesOrError;
const kPending = typeof loaded === "string" ? 0 : loaded.kLastWriteWasAsync;

/** Turns a descriptor into a handle that owns it. Throws `LINUX_SYSCALL`. */
export function openHandle(fd: number, kind: "socket" | "listener"): TcpHandle {
  const { TCP, constants } = internals();
  const handle = new TCP(kind === "socket" ? constants.SOCKET : constants.SERVER);
  const status = handle.open(fd);
  if (status !== 0) throw socketError("open", errorName(status));
  return handle;
}

/** Connects a handle whose socket exists already. `onDone` gets undefined, or the name of the error (`ECONNREFUSED`). */
export function connectHandle(
  handle: TcpHandle,
  to: { ip: string; port: number },
  onDone: (error: string | undefined) => void,
): void {
  const { TCPConnectWrap } = internals();
  const request = new TCPConnectWrap();
  request.oncomplete = (status) => {
    onDone(status === 0 ? undefined : errorName(status));
  };
  const call = to.ip.includes(":") ? "connect6" : "connect";
  const status = handle[call](request, to.ip, to.port);
  if (status !== 0) onDone(errorName(status));
}

/** Listens on a handle whose socket is bound. `onAccepted` gets each new socket, or the name of an error. */
export function listenHandle(
  handle: TcpHandle,
  backlog: number,
  onAccepted: (client: TcpHandle | undefined, error: string | undefined) => void,
): void {
  handle.onconnection = (status, client) => {
    onAccepted(client, status === 0 ? undefined : errorName(status));
  };
  const status = handle.listen(backlog);
  if (status !== 0) throw socketError("listen", errorName(status));
}

/** A `net.Socket` around a handle, for the TLS handshake. The handle belongs to it from then on. */
export function socketOfHandle(handle: TcpHandle): Socket {
  const options: SocketConstructorOpts = { allowHalfOpen: false };
  return new Socket(Object.assign(options, { handle, manualStart: true })); // both are known to Node, not to its types
}

/** Why OpenSSL refuses the peer's certificate chain (`CERT_HAS_EXPIRED`), client or server; undefined: it does not. */
export function refusedPeer(socket: TLSSocket): string | undefined {
  if (socket.authorized) return undefined;
  if (socket.authorizationError != null) return String(socket.authorizationError); // oxlint-disable-line eqeqeq
  const handle: unknown = Reflect.get(socket, "_handle");
  const verify: unknown =
    typeof handle === "object" && handle !== null ? Reflect.get(handle, "verifyError") : undefined;
  if (typeof verify !== "function") return "UNKNOWN";
  // A server's socket that no `tls.Server` looks after: the verdict is with its handle.
  const verdict: unknown = verify.call(handle);
  if (verdict === null) return undefined;
  return verdict instanceof Error && "code" in verdict ? String(verdict.code) : "UNKNOWN";
}

function errorName(status: number): string {
  return getSystemErrorName(status);
}

let spareWrite: Request | undefined;

/** {@link ByteStream} over a handle of libuv. */
export class RawStream implements ByteStream {
  readonly #handle: StreamHandle;
  #owner: StreamOwner | undefined;
  #error: CodedError | undefined;
  #reading = false;
  #ended = false;
  /** A write is under way. */
  #writing = false;
  closed = false;
  /** The buffer in force: the handle does not keep it alive. */
  buffer: Uint8Array | undefined;

  constructor(handle: StreamHandle) {
    this.#handle = handle;
  }

  get error(): CodedError | undefined {
    return this.#error;
  }

  start(owner: StreamOwner, buffer: Uint8Array): void {
    this.#owner = owner;
    this.#handle.veilStream = this;
    this.#handle.onread = onRead;
    this.replaceBuffer(buffer);
    this.resume();
  }

  pause(): void {
    if (!this.#reading) return;
    this.#reading = false;
    this.#handle.readStop();
  }

  resume(): void {
    if (this.#reading || this.closed || this.#ended) return;
    this.#reading = true;
    const status = this.#handle.readStart();
    if (status === 0) return;
    setImmediate(() => {
      this.#broken(socketError("read", errorName(status)));
    });
  }

  replaceBuffer(buffer: Uint8Array): void {
    this.buffer = buffer;
    this.#handle.useUserBuffer(buffer);
  }

  write(bytes: Uint8Array, last = false): WriteOutcome {
    if (last) holdForEnd(this.#handle.fd);
    const request = spareWrite ?? newWrite();
    spareWrite = undefined;
    return this.#written(request, this.#handle.writeBuffer(request, bytes), bytes);
  }

  writeAll(pieces: readonly Uint8Array[]): WriteOutcome {
    const request = spareWrite ?? newWrite();
    spareWrite = undefined;
    return this.#written(request, this.#handle.writev(request, pieces, true), pieces);
  }

  #written(request: Request, status: number, pieces: unknown): WriteOutcome {
    if (status !== 0) {
      this.#error = socketError("write", errorName(status));
      return "failed";
    }
    if (state[kPending] === 0) {
      spareWrite = request;
      return "done";
    }
    request.stream = this;
    request.pieces = pieces;
    request.oncomplete = onWritten;
    this.#writing = true;
    return "pending";
  }

  shutdown(): void {
    if (this.closed) return;
    if (!this.#writing) {
      endSending(this.#handle.fd); // libuv would take a turn of the loop, and two calls more
      return;
    }
    const request = new (internals().ShutdownWrap)();
    request.stream = this;
    request.oncomplete = ignore;
    this.#handle.shutdown(request);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.#owner = undefined;
    this.#handle.veilStream = undefined;
    this.#handle.close();
  }

  reset(): void {
    this.close();
  }

  /** From the handle: `count` bytes, or a negative error number. */
  received(count: number): Uint8Array | undefined {
    const owner = this.#owner;
    if (owner === undefined || count === 0) return undefined;
    if (count > 0) {
      const next = owner.onRead(count);
      if (next === undefined) return undefined;
      this.buffer = next;
      return next;
    }
    const name = errorName(count);
    this.#reading = false;
    if (name !== EOF) this.#broken(socketError("read", name));
    else if (!this.#ended) {
      this.#ended = true;
      owner.onEnd();
    }
    return undefined;
  }

  /** From the handle: a pending write is out, or failed. */
  sent(status: number): void {
    this.#writing = false;
    if (status < 0) this.#broken(socketError("write", errorName(status)));
    else this.#owner?.onWritten();
  }

  #broken(error: CodedError): void {
    const owner = this.#owner;
    if (owner === undefined) return;
    this.#owner = undefined;
    this.#error = error;
    this.pause();
    owner.onBroken(error);
  }
}

function newWrite(): Request {
  const request = new (internals().WriteWrap)();
  request.stream = undefined;
  request.pieces = undefined;
  request.oncomplete = undefined;
  return request;
}

function onRead(this: StreamHandle): Uint8Array | undefined {
  return this.veilStream?.received(state[kCount] ?? 0);
}

function onWritten(this: Request, status: number): void {
  this.pieces = undefined;
  this.stream?.sent(status);
}

function ignore(): void {}
