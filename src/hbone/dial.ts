import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { connectTcp } from "#linux";
import type { TlsIdentity } from "#model/tls-identity";
import { hboneError } from "./errors.ts";
import type { HboneLimits } from "./limits.ts";
import type { OpenRequest } from "./open-request.ts";
import type { PeerRevocations } from "./revocation.ts";
import { handshakeAsClient, type SecureStream } from "./tls.ts";

/** What is needed to dial a peer's proxy. */
export interface DialOptions {
  readonly request: Pick<OpenRequest, "netns" | "mark" | "ip" | "port" | "sourceIp" | "accepted">;
  readonly identity: TlsIdentity;
  readonly revocations?: PeerRevocations | undefined;
  readonly clock: Clock;
  readonly limits: HboneLimits;
}

/**
 * Connects to a peer's proxy and shakes hands. `onDone` is called once, later, with the session's stream or the failure;
 * never after the returned function was called, which gives up.
 */
export function dialSession(options: DialOptions, onDone: (result: SecureStream | CodedError) => void): () => void {
  const { request, identity, revocations, clock, limits } = options;
  const { netns, mark, ip, port, sourceIp, accepted } = request;
  const controller = new AbortController();
  const { signal } = controller;
  let cancelHandshake: (() => void) | undefined;
  const dial = async (): Promise<void> => {
    const socket = await connectTcp({
      netns,
      mark,
      ip,
      port,
      sourceIp,
      timeoutMs: limits.connectTimeoutMs,
      clock,
      signal,
    });
    if (signal.aborted) {
      socket.reset();
      return;
    }
    cancelHandshake = handshakeAsClient({
      socket,
      identity,
      accepted,
      revocations,
      clock,
      timeoutMs: limits.handshakeTimeoutMs,
      onDone,
    });
  };
  dial().catch((error: unknown) => {
    if (signal.aborted) return;
    onDone(error instanceof CodedError ? error : hboneError("HBONE_SESSION_LOST", "cannot dial", { cause: error }));
  });
  return () => {
    controller.abort();
    cancelHandshake?.();
  };
}
