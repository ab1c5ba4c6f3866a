import type { Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import type { Netns, SocketAddress, TcpSocket } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import type { HboneLimits } from "./pool.ts";
import type { TunnelHandle, TunnelResult } from "./tunnel.ts";

/** A CONNECT of a peer whose identity is proven. Answer it with `accept` or `refuse`, once. */
export interface InboundTunnel {
  readonly peer: SpiffeId;
  /** The peer proxy's end of the session, and ours. */
  readonly remote: SocketAddress;
  readonly local: SocketAddress;
  readonly authority: string;
  /** Lower-case names; repeated ones are joined by `, `. */
  readonly headers: ReadonlyMap<string, string>;
  /** Answers 200 and copies between the tunnel and `socket`, which it owns from then on. */
  accept(
    socket: TcpSocket,
    options: { baggage?: string | undefined; onEnd: (result: TunnelResult) => void },
  ): TunnelHandle;
  /** Answers with an error status and ends. */
  refuse(status: number): void;
  /** The peer gave up (or the session broke) before an answer; also set after `accept` or `refuse`. */
  readonly closed: boolean;
  /** Aborted when the peer gives up before an answer. */
  readonly signal: AbortSignal;
}

/** What an inbound listener is made of. */
export interface HboneServerOptions {
  readonly netns?: Netns | undefined;
  readonly ip: string;
  readonly port: number;
  readonly mark?: number | undefined;
  /** Asked at each handshake. */
  readonly certificate: () => TlsIdentity | undefined;
  readonly clock: Clock;
  readonly limits?: Partial<HboneLimits> | undefined;
  readonly onTunnel: (tunnel: InboundTunnel) => void;
  readonly onRejected?: ((info: { remote: SocketAddress; error: CodedError }) => void) | undefined;
}

/** Listens for HBONE: mutual TLS, HTTP/2, CONNECT. */
export class HboneServer {
  constructor(_options: HboneServerOptions) {}

  /** Listens. Throws as `listenTcp` does. */
  start(): void {}

  /** The port, after `start`. */
  get port(): number {
    return 0;
  }

  /** Takes no new sessions and tunnels (GOAWAY), waits for the running ones, breaks what is left at the deadline. */
  async drain(_deadlineMs: number): Promise<void> {}
}
