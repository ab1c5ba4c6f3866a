import {
  copyPlain,
  HbonePool,
  HboneServer,
  type HbonePoolOptions,
  type HboneServerOptions,
  type InboundTunnel,
  type OpenRequest,
  type PoolPeer,
  type TunnelHandle,
  type TunnelResult,
} from "#hbone";
import { PodDns, type PodDnsOptions } from "#dns";
import {
  adoptNetns,
  connectTcp,
  listenTcp,
  prepareNetns,
  type ConnectOptions,
  type ListenOptions,
  type Netns,
  type TcpListener,
  type TcpSocket,
} from "#linux";

/** What the data path uses of a connection; {@link TcpSocket} is one. */
export type PodSocket = Pick<
  TcpSocket,
  "remote" | "local" | "isLastFile" | "originalDestination" | "resetOnDeath" | "sendFirst" | "close" | "reset"
>;

/** What the data path uses of an inbound tunnel. */
export interface PodTunnel extends Omit<InboundTunnel, "accept"> {
  accept(
    socket: PodSocket,
    options: { baggage?: string | undefined; onEnd: (result: TunnelResult) => void },
  ): TunnelHandle;
}

/** What the data path uses of a pool of sessions. */
export interface PodPool {
  open(request: Omit<OpenRequest, "socket"> & { socket: PodSocket }): TunnelHandle;
  drain(deadlineMs: number): Promise<void>;
  certificateChanged(id: OpenRequest["source"]): void;
  trustChanged(): void;
  peersGone(ips: ReadonlySet<string>): void;
  peers(): Iterable<PoolPeer>;
}

/** What the data path uses of an inbound listener. */
export interface PodServer {
  /** Sessions that are open. */
  readonly sessions: number;
  start(): void;
  certificateArrived(): void;
  trustChanged(): void;
  drain(deadlineMs: number): Promise<void>;
}

/** What the data path uses of a pod's DNS. */
export type PodNames = Pick<PodServer, "start" | "drain">;

/** The kernel and the tunnels, as the data path sees them. */
export interface Network {
  adoptNetns(fd: number): Netns;
  /** Answers the settings that could not be made. */
  prepareNetns(netns: Netns): readonly string[];
  listenTcp(options: ListenOptions, onConnection: (socket: PodSocket) => void): TcpListener;
  connectTcp(options: ConnectOptions): Promise<PodSocket>;
  copyPlain(a: PodSocket, b: PodSocket, options: { onEnd: (result: TunnelResult) => void }): TunnelHandle;
  createPool(options: HbonePoolOptions): PodPool;
  createServer(options: Omit<HboneServerOptions, "onTunnel"> & { onTunnel: (tunnel: PodTunnel) => void }): PodServer;
  createDns(options: PodDnsOptions): PodNames;
}

/** The real one. */
export const kernelNetwork: Network = {
  adoptNetns,
  prepareNetns,
  listenTcp,
  connectTcp,
  // Sockets that come from here go back in here: both are the same class.
  copyPlain: (a, b, options) => copyPlain(a as TcpSocket, b as TcpSocket, options),
  createPool: (options) => new HbonePool(options),
  createServer: (options) => new HboneServer(options),
  createDns: (options) => new PodDns(options),
};
