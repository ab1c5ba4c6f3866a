import type { CodedError } from "#base/errors";

/** How a tunnel (or a plain copy) ended. */
export interface TunnelResult {
  /** From the local plain socket into the tunnel. */
  readonly bytesSent: number;
  /** From the tunnel to the local plain socket. */
  readonly bytesReceived: number;
  /** Undefined when both directions ended as they should. */
  readonly error: CodedError | undefined;
}

/** What whoever opened a tunnel holds on to. */
export interface TunnelHandle {
  /** Ends it now, with a reset of both sides; `onEnd` is called with `error`. Twice is harmless. */
  abort(error: CodedError): void;
  /** So far. */
  readonly bytes: { readonly sent: number; readonly received: number };
}
