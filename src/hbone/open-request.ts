import type { Netns, TcpSocket } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TunnelResult, TunnelSocket } from "./tunnel.ts";

/** An {@link OpenRequest} whose plain socket need not be the kernel's. */
export interface TunnelRequest extends Omit<OpenRequest, "socket"> {
  readonly socket: TunnelSocket;
}

/** The far end of a tunnel in a tunnel. */
export interface InnerRequest {
  /** Who may answer there; empty: nobody. */
  readonly accepted: readonly SpiffeId[];
  /** The network that the connection comes from (`x-forwarded-network`). */
  readonly network: string;
}

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
    /** `x-forwarded-network`. Undefined: none. */
    readonly network?: string | undefined;
  };
  /** The peer is only a gateway: a second tunnel, with the same authority, goes through the first to whom it chooses. */
  readonly inner?: InnerRequest | undefined;
  /** Owned by the tunnel from here on, also when opening fails (it is reset then). */
  readonly socket: TcpSocket;
  readonly signal?: AbortSignal | undefined;
  /** The peer's proxy has answered 200. */
  readonly onOpen?: ((info: { peer: SpiffeId; responseBaggage: string | undefined }) => void) | undefined;
  /** Exactly once, never from inside `open`. */
  readonly onEnd: (result: TunnelResult) => void;
}
