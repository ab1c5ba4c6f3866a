import type { Netns, TcpSocket } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TunnelResult } from "./tunnel.ts";

/** One connection that is to go through a tunnel. */
export interface OpenRequest {
  readonly netns?: Netns | undefined;
  readonly mark?: number | undefined;
  readonly source: SpiffeId;
  /** Who may answer; empty: nobody. */
  readonly accepted: readonly SpiffeId[];
  /** The peer's proxy. */
  readonly ip: string;
  readonly port: number;
  /** Source address of the session. */
  readonly sourceIp?: string | undefined;
  /** Where the peer's proxy is to connect, `ip:port` or `host:port`. */
  readonly authority: string;
  readonly headers: {
    readonly baggage: string;
    readonly forwarded: string;
    /** Undefined: a random one. */
    readonly traceparent?: string | undefined;
  };
  /** Owned by the tunnel from here on, also when opening fails (it is reset then). */
  readonly socket: TcpSocket;
  readonly signal?: AbortSignal | undefined;
  /** The peer's proxy has answered 200. */
  readonly onOpen?: ((info: { peer: SpiffeId; responseBaggage: string | undefined }) => void) | undefined;
  /** Exactly once, never from inside `open`. */
  readonly onEnd: (result: TunnelResult) => void;
}
