import type { SpiffeId } from "./spiffe-id.ts";

/** How the bytes of a connection travelled between the two nodes. `none` when nothing was sent. */
export type Encryption = "mutual_tls" | "plaintext" | "none";

/**
 * Why a connection went the way it went, or did not go at all. One word for an operator; every record carries one.
 * `ok` says that nothing needs explaining.
 */
export type FlowReason =
  | "ok"
  /** Plaintext, because the destination is not enrolled. */
  | "destination_not_enrolled"
  /** Plaintext, because the source is not enrolled. */
  | "source_not_enrolled"
  /** Plaintext, because the destination is no workload of the cluster. */
  | "destination_outside"
  /** Plaintext within the propagation bound after a label change. */
  | "enrolling"
  /** Refused: both ends have been enrolled for longer than the propagation bound, yet plaintext came. */
  | "plaintext_refused"
  /** Refused: an authorization policy denies it, or none of those that allow does. The detail names the policy. */
  | "policy_denied"
  /** Ended: an authorization policy came, changed or went, and the connection is not allowed any more. */
  | "policy_changed"
  /** Refused: a policy applies to the destination that its proxy cannot enforce; it lets nothing in rather than ignore it. */
  | "policy_not_enforced"
  /** Refused: the proxy has no certificate for the source (or the destination) workload. */
  | "no_certificate"
  /** Refused: the control plane did not say who the destination is. */
  | "control_plane_unavailable"
  /** Refused: the peer presented another identity than expected, or none that verifies. */
  | "wrong_identity"
  /** Refused, or ended: a certificate of the peer is on its issuer's revocation list. */
  | "certificate_revoked"
  /** Refused: nobody answers on the peer's tunnel port, or the session broke while opening. */
  | "peer_unreachable"
  /** Refused: the peer's proxy answered CONNECT with an error status. */
  | "peer_refused"
  /** The application (or the plain destination) could not be reached. */
  | "destination_unreachable"
  /** Refused: no endpoint of the service is usable, or it has no such port. */
  | "no_healthy_upstream"
  /** Refused: the destination is behind a waypoint that is not known, or has no usable workload. */
  | "waypoint_unavailable"
  /** Refused: the connection points back at one of the proxy's own ports. */
  | "self_call"
  /** Refused: the request of the tunnel was wrong (method, authority, address). */
  | "bad_request"
  /** Refused: the proxy is shutting down, or a limit was reached. */
  | "draining"
  | "limit_reached"
  /** Refused: nobody reads the access log, and no connection may be forwarded without a record. */
  | "log_stalled"
  /** Ended: one side reset the connection. */
  | "reset"
  /** Ended: the proxy was told to stop before the connection had ended. */
  | "drained";

/** One end of a flow. Parts that are not known are undefined. */
export interface FlowPeer {
  /** `ip:port`. */
  readonly address: string;
  readonly workload: string | undefined;
  readonly namespace: string | undefined;
  /** Id of its cluster. */
  readonly cluster: string | undefined;
  readonly identity: SpiffeId | undefined;
}

/** The access record of one connection: one shape for allowed and refused. */
export interface FlowRecord {
  /** Wall clock at the end, milliseconds since the epoch. */
  readonly timeMs: number;
  readonly direction: "outbound" | "inbound";
  readonly verdict: "forwarded" | "refused";
  readonly encryption: Encryption;
  readonly reason: FlowReason;
  /** Free text that names the cause, for example the TLS error. Empty when there is none. */
  readonly detail: string;
  /** What policies in dry run would have changed; left out when nothing. */
  readonly dryRun?: string;
  /** 32 hex digits that both ends' records of a tunnel share (W3C Trace Context); undefined for plaintext. */
  readonly traceId: string | undefined;
  readonly source: FlowPeer;
  readonly destination: FlowPeer & {
    readonly service: string | undefined;
    /** The real target behind a tunnel, `ip:port`. */
    readonly hboneTarget: string | undefined;
  };
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly durationMs: number;
}
