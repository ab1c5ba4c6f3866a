import { createServer, Socket, type Server } from "node:net";
import type { TLSSocket } from "node:tls";
import type { AbortView } from "#base/abort";
import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { IpAddress } from "#base/ip";
import type { ByteStream } from "./byte-stream.ts";
import { connectError, ERRNO_NAMES } from "./connect-errors.ts";
import { isLastFile } from "./files.ts";
import { linuxError } from "./libc.ts";
import { inNetns, type Netns } from "./netns.ts";
import { PublicStream } from "./public-stream.ts";
import {
  connectHandle,
  findWrongShape,
  listenHandle,
  openHandle,
  RawStream,
  socketOfHandle,
  type TcpHandle,
} from "./raw-stream.ts";
import {
  acceptWaiting,
  bindAndListen,
  bindSource,
  skipSources,
  checkAddress,
  closeFd,
  connectAtOnce,
  connectBlocking,
  makeTcpSocket,
  readLocalAddress,
  readOriginalDestination,
  readRemoteAddress,
  sendAtOnce,
  setResetOnClose,
  type SocketAddress,
} from "./socket-options.ts";

/** `handles`: Node's socket internals. `public`: its public streams, slower, for a Node of another shape. */
export type SocketPath = "handles" | "public";

let path: SocketPath = findWrongShape() === undefined ? "handles" : "public";

/** Which way this thread's sockets go. */
export function socketPath(): SocketPath {
  return path;
}

/**
 * Chooses the way for this thread's sockets made from now on. The default is `handles` where the internals have the
 * expected shape. Throws `LINUX_WRONG_SHAPE` when they have not and `handles` is asked for: a role calls this at its
 * start, so that running on the slow path is somebody's decision.
 */
export function useSocketPath(wanted: SocketPath): void {
  const wrong = findWrongShape();
  if (wanted === "handles" && wrong !== undefined) throw wrong;
  path = wanted;
}

const UNKNOWN: SocketAddress = { ip: checkAddress("0.0.0.0"), port: 0 };

/**
 * A connected TCP socket. Whoever holds it closes it, or hands it on (to a tunnel, a copy, a TLS session), which then
 * closes it.
 */
export class TcpSocket {
  readonly #inner: TcpHandle | Socket;
  readonly #fd: number;
  #stream: ByteStream | undefined;
  #remote: SocketAddress | undefined;
  #local: SocketAddress | undefined;
  #closed = false;
  #handedOn = false;
  #resetsOnDeath: boolean;

  /** `known` saves asking the kernel: who is at the other end; that the socket resets on death already. */
  constructor(inner: TcpHandle | Socket, known?: { remote?: SocketAddress; resetsOnDeath?: boolean | undefined }) {
    this.#inner = inner;
    this.#fd = inner instanceof Socket ? fdOf(inner) : inner.fd;
    this.#remote = known?.remote;
    this.#resetsOnDeath = known?.resetsOnDeath === true;
  }

  /** Its descriptor is one of those that are kept back: nothing is to be done with it but to refuse it. */
  get isLastFile(): boolean {
    return isLastFile(this.#fd, "accepted");
  }

  /** The other end. */
  get remote(): SocketAddress {
    this.#remote ??= readRemoteAddress(this.#fd) ?? UNKNOWN;
    return this.#remote;
  }

  /** Our end. */
  get local(): SocketAddress {
    this.#local ??= readLocalAddress(this.#fd) ?? UNKNOWN;
    return this.#local;
  }

  /** Where the connection was going before redirection; undefined when it was not redirected. */
  originalDestination(): SocketAddress | undefined {
    if (this.#closed) return undefined;
    return readOriginalDestination(this.#fd, this.remote.ip.includes(":"));
  }

  /** The bytes. One owner only. */
  get stream(): ByteStream {
    this.#stream ??=
      this.#inner instanceof Socket ? new PublicStream(this.#inner, { copies: false }) : new RawStream(this.#inner);
    return this.#stream;
  }

  /**
   * Sends a few bytes before anything else, on a socket that was just connected: there is room for them. Throws `LINUX_SOCKET`
   * when the connection is gone already.
   */
  sendFirst(bytes: Uint8Array): void {
    sendAtOnce(this.#fd, bytes);
  }

  /** A `net.Socket` for a TLS handshake. It owns the connection from then on: `close` and `reset` here do nothing more. */
  toNetSocket(): Socket {
    this.#handedOn = true;
    if (!(this.#inner instanceof Socket)) return socketOfHandle(this.#inner);
    this.#inner.allowHalfOpen = false; // a handshake whose peer has ended is over
    return this.#inner;
  }

  /**
   * From now on the other end sees a reset, not an end of data, when this process dies and the kernel closes the socket:
   * half an answer must not look like a whole one. An ordinary `close` stays ordinary.
   */
  resetOnDeath(): void {
    if (this.#closed || this.#handedOn || this.#resetsOnDeath) return;
    this.#resetsOnDeath = true;
    setResetOnClose(this.#fd, true);
  }

  /** Ends both directions; what was written is still sent. Twice is harmless. */
  close(): void {
    if (this.#closed || this.#handedOn) return;
    if (this.#resetsOnDeath) setResetOnClose(this.#fd, false);
    this.#end();
  }

  #end(): void {
    // The addresses are asked for after the end, too: in records.
    void this.remote;
    this.#closed = true;
    if (this.#stream !== undefined) this.#stream.close();
    else if (this.#inner instanceof Socket) this.#inner.destroy();
    else this.#inner.close();
  }

  /** Ends the connection with a reset: the other end sees an error, not an end of data. */
  reset(): void {
    if (this.#closed || this.#handedOn) return;
    setResetOnClose(this.#fd, true);
    this.#end();
  }
}

function fdOf(socket: Socket): number {
  const handle: unknown = Reflect.get(socket, "_handle");
  const fd: unknown = typeof handle === "object" && handle !== null ? Reflect.get(handle, "fd") : undefined;
  return typeof fd === "number" ? fd : -1;
}

/** The bytes of a TLS session that stays Node's, after its handshake. */
export function publicTlsStream(socket: TLSSocket): ByteStream {
  return new PublicStream(socket, { copies: true });
}

/** Where to listen. */
export interface ListenOptions {
  /** The namespace whose port it is; undefined: this thread's own. */
  readonly netns?: Netns | undefined;
  /** `::` is all addresses of both families. */
  readonly ip: string;
  /** 0 chooses one. */
  readonly port: number;
  readonly mark?: number | undefined;
  readonly transparent?: boolean | undefined;
  /** Lets a second process take the port over without a gap. */
  readonly reusePort?: boolean | undefined;
  readonly backlog?: number | undefined;
  /** Accepted sockets are as after {@link TcpSocket.resetOnDeath}: they inherit it, which costs nothing per connection. */
  readonly resetOnDeath?: boolean | undefined;
  /** Whoever connects is in the same namespace. */
  readonly sameHost?: boolean | undefined;
}

/** A listening socket. */
export interface TcpListener {
  /** The port, also when 0 was asked for. */
  readonly port: number;
  /** Takes what waits in the accept queue, then closes. Twice is harmless. */
  stop(): void;
}

const BACKLOG = 4096;

/**
 * Listens; accepted sockets inherit mark, no-delay and keep-alive. `onConnection` owns each socket.
 * Throws `LINUX_PORT_IN_USE`, `LINUX_NETNS_GONE`, `LINUX_NO_FILES`, `LINUX_SYSCALL`. Whoever gets a socket with `isLastFile`
 * refuses it: when there is no descriptor at all, what waits is accepted and closed by libuv, and nobody is told.
 */
export function listenTcp(options: ListenOptions, onConnection: (socket: TcpSocket) => void): TcpListener {
  const ip = checkAddress(options.ip);
  const backlog = options.backlog ?? BACKLOG;
  const fd = within(options.netns, () => {
    const { mark, transparent, sameHost } = options;
    const made = makeTcpSocket({ v6: ip.includes(":"), mark, transparent, sameHost });
    try {
      bindAndListen(made, { ip, port: options.port }, { reusePort: options.reusePort === true, backlog });
    } catch (error) {
      closeFd(made);
      throw error;
    }
    return made;
  });
  const port = readLocalAddress(fd)?.port ?? options.port;
  const resetsOnDeath = options.resetOnDeath === true;
  if (resetsOnDeath) setResetOnClose(fd, true);
  const take = (inner: TcpHandle | Socket): void => {
    onConnection(new TcpSocket(inner, { resetsOnDeath }));
  };
  const close = path === "handles" ? listenRaw(fd, backlog, take) : listenPublic(fd, backlog, take);
  let stopped = false;
  const stop = (): void => {
    if (stopped) return;
    stopped = true;
    for (let next = acceptWaiting(fd); next !== undefined; next = acceptWaiting(fd)) take(adopt(next));
    close();
  };
  return { port, stop };
}

function listenRaw(fd: number, backlog: number, take: (inner: TcpHandle) => void): () => void {
  const handle = openHandle(fd, "listener");
  listenHandle(handle, backlog, (client) => {
    if (client !== undefined) take(client);
  });
  return () => {
    handle.close();
  };
}

function listenPublic(fd: number, backlog: number, take: (inner: Socket) => void): () => void {
  const server: Server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    socket.on("error", () => {}); // before it has an owner, its close says enough
    take(socket);
  });
  server.listen({ fd, backlog });
  return () => {
    server.close();
  };
}

/** Makes a handle or socket of a connected descriptor, which then belongs to it. */
function adopt(fd: number): TcpHandle | Socket {
  if (path === "handles") return openHandle(fd, "socket");
  const socket = new Socket({ fd, allowHalfOpen: true, readable: true, writable: true });
  socket.pause();
  socket.on("error", () => {});
  return socket;
}

function within<T>(netns: Netns | undefined, body: () => T extends Promise<unknown> ? never : T): T {
  return netns === undefined ? body() : inNetns(netns, body);
}

/** Where to connect. */
export interface ConnectOptions {
  readonly netns?: Netns | undefined;
  /** The source address; it need not be the machine's (needs CAP_NET_ADMIN and routes that bring the answers back). */
  readonly sourceIp?: string | undefined;
  readonly mark?: number | undefined;
  readonly ip: string;
  readonly port: number;
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly signal?: AbortView | undefined;
  /** The other end is in the same namespace: it cannot vanish silently, so that nothing probes whether it is there. */
  readonly sameHost?: boolean | undefined;
}

/** Source ports that are tried when those before are in use towards the same destination. */
const SOURCE_TRIES = 8;
/** Each try skips so many times as many ports as the one before: the last ones leave a run of thousands behind. */
const SKIP = 4;

/**
 * Connects. Rejects with `LINUX_CONNECT_REFUSED`, `_TIMEOUT`, `_UNREACHABLE`, `_NO_PORTS`, `_ABORTED`, `LINUX_NO_FILES`,
 * `LINUX_NETNS_GONE` or `LINUX_SYSCALL`. The caller owns the socket.
 */
export async function connectTcp(options: ConnectOptions): Promise<TcpSocket> {
  for (let tries = 1; ; tries++) {
    try {
      return await connectOnce(options);
    } catch (error) {
      const portTaken = error instanceof CodedError && error.code === "LINUX_CONNECT_NO_PORTS";
      if (!portTaken || options.sourceIp === undefined || tries >= SOURCE_TRIES) throw error;
      skipSources(SKIP ** tries);
    }
  }
}

async function connectOnce(options: ConnectOptions): Promise<TcpSocket> {
  const { signal, clock, timeoutMs } = options;
  if (signal?.aborted === true) throw aborted(options);
  const to: SocketAddress = { ip: checkAddress(options.ip), port: options.port };
  const near = options.sameHost === true ? connectNear(options, to) : undefined;
  if (near !== undefined) return near;
  const fd = makeOutgoing(options, to.ip);
  if (path === "public") return connectPublic(fd, to, options);
  const handle = openHandle(fd, "socket");
  return new Promise((resolve, reject) => {
    const done = (error: CodedError | undefined): void => {
      cancel();
      signal?.removeEventListener("abort", onAbort);
      if (error === undefined) resolve(new TcpSocket(handle, { remote: to }));
      else {
        handle.close();
        reject(error);
      }
    };
    let over = false;
    const once = (error: CodedError | undefined): void => {
      if (over) return;
      over = true;
      done(error);
    };
    const onAbort = (): void => {
      once(aborted(options));
    };
    const cancel = clock.after(timeoutMs, () => {
      once(connectError("ETIMEDOUT", to, `no answer within ${timeoutMs} ms`));
    });
    signal?.addEventListener("abort", onAbort);
    connectHandle(handle, to, (name) => {
      once(name === undefined ? undefined : connectError(name, to, name));
    });
  });
}

/** Connects within this turn; undefined when the other end is not so near, or too busy: then it takes another socket, and time. */
function connectNear(options: ConnectOptions, to: SocketAddress): TcpSocket | undefined {
  const fd = makeOutgoing(options, to.ip);
  const errno = connectAtOnce(fd, to);
  if (errno === 0) return new TcpSocket(adopt(fd), { remote: to });
  closeFd(fd);
  if (errno === undefined) return undefined;
  const name = ERRNO_NAMES[errno] ?? `errno ${errno}`;
  throw connectError(name, to, name);
}

function makeOutgoing(options: ConnectOptions, to: IpAddress): number {
  const source = options.sourceIp === undefined ? undefined : checkAddress(options.sourceIp);
  return within(options.netns, () => {
    const fd = makeTcpSocket({
      v6: to.includes(":"),
      mark: options.mark,
      transparent: source !== undefined,
      keepAlive: options.sameHost !== true,
      sameHost: options.sameHost,
    });
    try {
      if (source !== undefined) bindSource(fd, source);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
    return fd;
  });
}

async function connectPublic(fd: number, to: SocketAddress, options: ConnectOptions): Promise<TcpSocket> {
  const errno = await connectBlocking(fd, to, options.timeoutMs);
  const failure = errno === 0 ? undefined : connectError(ERRNO_NAMES[errno] ?? `errno ${errno}`, to, `errno ${errno}`);
  const error = options.signal?.aborted === true ? aborted(options) : failure;
  if (error === undefined) return new TcpSocket(adopt(fd), { remote: to });
  closeFd(fd);
  throw error;
}

function aborted({ ip, port, signal }: ConnectOptions): CodedError {
  const cause: unknown = signal?.reason;
  if (cause instanceof CodedError) return cause;
  return linuxError("LINUX_CONNECT_ABORTED", `gave up connecting to ${ip} port ${port}`, { cause });
}
