import { CodedError } from "#base/errors";
import type { PodDnsOptions } from "#dns";
import type { HbonePoolOptions, OpenRequest, PoolPeer, TunnelResult } from "#hbone";
import type { ConnectOptions, ListenOptions, Netns } from "#linux";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { Network, PodNames, PodPool, PodServer, PodSocket, PodTunnel } from "./network.ts";
import type { SocketAddress } from "./route.ts";
import { testAddress } from "./testing.ts";

/** A socket that remembers how it ended. */
export class FakeSocket implements PodSocket {
  readonly remote: SocketAddress;
  readonly local: SocketAddress;
  readonly #original: SocketAddress | undefined;
  state: "open" | "closed" | "reset" = "open";
  resetsOnDeath = false;
  isLastFile = false;
  /** What was sent before the copy. */
  readonly sent: Uint8Array[] = [];

  /** `original`: where it was redirected from; undefined: it was not. */
  constructor(remote: string, local: string, original?: string) {
    this.remote = testAddress(remote);
    this.local = testAddress(local);
    this.#original = original === undefined ? undefined : testAddress(original);
  }

  originalDestination(): SocketAddress | undefined {
    return this.#original;
  }

  sendFirst(bytes: Uint8Array): void {
    this.sent.push(bytes);
  }

  resetOnDeath(): void {
    this.resetsOnDeath = true;
  }

  close(): void {
    if (this.state === "open") this.state = "closed";
  }

  reset(): void {
    if (this.state === "open") this.state = "reset";
  }
}

/** One copy, or one tunnel that carries bytes. The test ends it. */
export class FakeCarry {
  readonly bytes = { sent: 0, received: 0 };
  aborted: CodedError | undefined;
  readonly #onEnd: (result: TunnelResult) => void;
  #hasEnded = false;

  constructor(onEnd: (result: TunnelResult) => void) {
    this.#onEnd = onEnd;
  }

  abort(error: CodedError): void {
    this.aborted = error;
    this.end(error);
  }

  end(error?: CodedError): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.#onEnd({ bytesSent: this.bytes.sent, bytesReceived: this.bytes.received, error });
  }
}

/** A tunnel that a peer opened, and how it was answered. */
export class FakeTunnel implements PodTunnel {
  readonly peer: SpiffeId;
  readonly remote: SocketAddress;
  readonly local = testAddress("10.1.0.2:15008");
  readonly headers: ReadonlyMap<string, string>;
  readonly authority: string;
  readonly #gaveUp = new AbortController();
  status: number | undefined;
  baggage: string | undefined;
  carry: FakeCarry | undefined;

  constructor(authority: string, more: { remote?: string; peer?: string; headers?: Record<string, string> } = {}) {
    this.authority = authority;
    this.remote = testAddress(more.remote ?? "10.1.0.1:4000");
    this.peer = parseSpiffeId(more.peer ?? "spiffe://cluster.local/ns/shop/sa/client");
    this.headers = new Map(Object.entries(more.headers ?? {}));
  }

  get closed(): boolean {
    return this.#gaveUp.signal.aborted;
  }

  get signal(): AbortSignal {
    return this.#gaveUp.signal;
  }

  giveUp(): void {
    this.#gaveUp.abort(new CodedError("HBONE_STREAM_RESET", "the peer gave up"));
  }

  accept(_socket: PodSocket, options: Parameters<PodTunnel["accept"]>[1]): FakeCarry {
    this.status = 200;
    this.baggage = options.baggage;
    this.carry = new FakeCarry(options.onEnd);
    return this.carry;
  }

  refuse(status: number): void {
    this.status = status;
  }
}

type FakeOpen = Parameters<PodPool["open"]>[0] & { readonly carry: FakeCarry };

/** The kernel and the tunnels, in memory. What the data path asked for is in the lists; the test decides what follows. */
export class FakeNetwork implements Network {
  readonly dialled: ConnectOptions[] = [];
  readonly opened: FakeOpen[] = [];
  readonly copies: FakeCarry[] = [];
  readonly listeners: (ListenOptions & { onConnection: (socket: PodSocket) => void; stopped: boolean })[] = [];
  readonly servers: (Parameters<Network["createServer"]>[0] & { drained: boolean; arrivals: number })[] = [];
  readonly dns: (PodDnsOptions & { drained: boolean })[] = [];
  readonly pools: HbonePoolOptions[] = [];
  readonly changed: string[] = [];
  readonly closedNetns: number[] = [];
  readonly prepared: string[] = [];
  /** How the next dials go; the default is that they succeed. */
  dial: (options: ConnectOptions) => Promise<PodSocket> = async ({ ip, port, sourceIp }) =>
    Promise.resolve(new FakeSocket(`${ip}:${port}`, `${sourceIp ?? "10.1.0.1"}:50000`));
  /** What every pool says that it holds. */
  peers: readonly PoolPeer[] = [];
  /** Ports whose listening fails. */
  readonly takenPorts = new Set<number>();

  adoptNetns(fd: number): Netns {
    return { fd, key: `netns:${fd}`, [Symbol.dispose]: () => this.closedNetns.push(fd) };
  }

  prepareNetns({ key }: Netns): readonly string[] {
    this.prepared.push(key);
    return [];
  }

  listenTcp(options: ListenOptions, onConnection: (socket: PodSocket) => void): { port: number; stop: () => void } {
    if (this.takenPorts.has(options.port)) throw new CodedError("LINUX_PORT_IN_USE", `port ${options.port} is taken`);
    const listener = { ...options, onConnection, stopped: false };
    this.listeners.push(listener);
    return { port: options.port, stop: () => (listener.stopped = true) };
  }

  async connectTcp(options: ConnectOptions): Promise<PodSocket> {
    this.dialled.push(options);
    return this.dial(options);
  }

  copyPlain(_a: PodSocket, _b: PodSocket, { onEnd }: { onEnd: (result: TunnelResult) => void }): FakeCarry {
    const carry = new FakeCarry(onEnd);
    this.copies.push(carry);
    return carry;
  }

  createPool(options: HbonePoolOptions): PodPool {
    this.pools.push(options);
    return {
      open: (request) => {
        const carry = new FakeCarry(request.onEnd);
        this.opened.push({ ...request, carry });
        return carry;
      },
      drain: () => Promise.resolve(),
      certificateChanged: (id: OpenRequest["source"]) => this.changed.push(`leaf ${id}`),
      trustChanged: () => this.changed.push("roots"),
      peersGone: (ips) => this.changed.push(`gone ${[...ips].join(" ")}`),
      peers: () => this.peers,
    };
  }

  createDns(options: PodDnsOptions): PodNames {
    const server = { ...options, drained: false };
    this.dns.push(server);
    return {
      start: () => {
        if (this.takenPorts.has(options.port)) throw new CodedError("LINUX_PORT_IN_USE", "the DNS port is taken");
      },
      drain: async () => {
        server.drained = true;
      },
    };
  }

  createServer(options: Parameters<Network["createServer"]>[0]): PodServer {
    const server = { ...options, drained: false, arrivals: 0 };
    this.servers.push(server);
    return {
      sessions: 2,
      start: () => {
        if (this.takenPorts.has(options.port))
          throw new CodedError("LINUX_PORT_IN_USE", `port ${options.port} is taken`);
      },
      certificateArrived: () => {
        server.arrivals++;
      },
      trustChanged: () => this.changed.push("roots of peers"),
      drain: () => {
        server.drained = true;
        return Promise.resolve();
      },
    };
  }
}
