import type { Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import type { Random } from "#base/random";
import type { Netns, TcpSocket } from "#linux";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import type { TunnelHandle, TunnelResult } from "./tunnel.ts";

/** What the pool is made of. */
export interface HbonePoolOptions {
  readonly clock: Clock;
  readonly random: Random;
  /** The certificate in force for an identity of this node; undefined refuses with `HBONE_NO_CERTIFICATE`. */
  readonly certificate: (id: SpiffeId) => TlsIdentity | undefined;
  readonly limits?: Partial<HboneLimits> | undefined;
}

/** Caps and times of sessions. */
export interface HboneLimits {
  readonly connectTimeoutMs: number;
  readonly handshakeTimeoutMs: number;
  readonly pingIntervalMs: number;
  readonly pingTimeoutMs: number;
  readonly idleMs: number;
  readonly streamsPerSession: number;
}

/** One connection that is to go through a tunnel. */
export interface OpenRequest {
  readonly netns?: Netns | undefined;
  readonly mark?: number | undefined;
  readonly source: SpiffeId;
  readonly accepted: readonly SpiffeId[];
  readonly ip: string;
  readonly port: number;
  readonly sourceIp?: string | undefined;
  readonly authority: string;
  readonly headers: {
    readonly baggage: string;
    readonly forwarded: string;
    readonly traceparent?: string | undefined;
  };
  /** Owned by the tunnel from here on, also when opening fails (it is reset then). */
  readonly socket: TcpSocket;
  readonly signal?: AbortSignal | undefined;
  readonly onOpen?: ((info: { peer: SpiffeId; responseBaggage: string | undefined }) => void) | undefined;
  /** Exactly once. */
  readonly onEnd: (result: TunnelResult) => void;
}

/** The sessions that this thread's pods have opened, shared by (namespace, source, accepted identities, address). */
export class HbonePool {
  constructor(_options: HbonePoolOptions) {}

  open(_request: OpenRequest): TunnelHandle {
    throw new Error("not there yet");
  }

  /** No new tunnels; ends when the last has ended, or breaks what is left at the deadline. */
  async drain(_deadlineMs: number): Promise<void> {}

  /** A certificate was renewed: new tunnels of `id` use new sessions, running ones stay. */
  certificateChanged(_id: SpiffeId): void {}

  /** The trusted roots changed: all new tunnels use new sessions. */
  trustChanged(): void {}
}

export type { CodedError };
