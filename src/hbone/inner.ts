import type { Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import type { Random } from "#base/random";
import type { SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { ClientSession, type ClientTunnel } from "./client-session.ts";
import { hboneError } from "./errors.ts";
import type { HboneLimits } from "./limits.ts";
import { LoopSocket } from "./loop-socket.ts";
import type { InnerRequest, TunnelRequest } from "./open-request.ts";
import type { PeerRevocations } from "./revocation.ts";
import { handshakeAsClient } from "./tls.ts";
import type { TunnelHandle } from "./tunnel.ts";

/** What a tunnel in a tunnel needs. */
export interface InnerParts {
  readonly clock: Clock;
  readonly random: Random;
  readonly certificate: (id: SpiffeId) => TlsIdentity | undefined;
  readonly limits: HboneLimits;
  readonly revocations?: PeerRevocations | undefined;
  /** Opens the outer tunnel. */
  readonly open: (request: TunnelRequest) => TunnelHandle;
}

/**
 * One connection through a tunnel in a tunnel:
 *
 *     plain socket ── inner tunnel ── inner session (TLS, HTTP/2) ── LoopSocket ── outer tunnel ══ pooled session ══ gateway
 *
 * The inner session has this one tunnel and ends with it: which workload answers behind the gateway is chosen anew for
 * each connection.
 */
export class InnerOpening implements TunnelHandle {
  readonly #parts: InnerParts;
  readonly #request: TunnelRequest;
  readonly #inner: InnerRequest;
  readonly #loop = new LoopSocket();
  readonly #outer: TunnelHandle;
  #cancelHandshake: (() => void) | undefined;
  #tunnel: ClientTunnel | undefined;
  #over = false;

  constructor(parts: InnerParts, request: TunnelRequest, inner: InnerRequest) {
    this.#parts = parts;
    this.#request = request;
    this.#inner = inner;
    this.#outer = parts.open({
      ...request,
      inner: undefined,
      socket: this.#loop,
      onOpen: () => {
        this.#shake();
      },
      onEnd: ({ error }) => {
        // A tunnel that runs hears of it through its session, with what was still on its way.
        if (this.#tunnel === undefined) this.#fail(error ?? hboneError("HBONE_SESSION_LOST", "the gateway hung up"));
      },
    });
  }

  get bytes(): { readonly sent: number; readonly received: number } {
    return this.#tunnel?.bytes ?? { sent: 0, received: 0 };
  }

  abort(error: CodedError): void {
    if (this.#tunnel === undefined) this.#fail(error);
    else this.#tunnel.abort(error);
  }

  #shake(): void {
    const { clock, certificate, limits, revocations } = this.#parts;
    const { source } = this.#request;
    const identity = certificate(source);
    if (identity === undefined) {
      this.#fail(hboneError("HBONE_NO_CERTIFICATE", `there is no certificate for ${source} any more`));
      return;
    }
    this.#cancelHandshake = handshakeAsClient({
      socket: { toNetSocket: () => this.#loop.far, close: () => this.#loop.far.destroy() },
      identity,
      accepted: this.#inner.accepted,
      revocations,
      clock,
      timeoutMs: limits.handshakeTimeoutMs,
      onDone: (secure) => {
        this.#cancelHandshake = undefined;
        if (secure instanceof CodedError) {
          this.#fail(secure);
          return;
        }
        const session = new ClientSession({ ...this.#parts, source, secure, onChanged: () => undefined });
        session.start();
        const headers = { ...this.#request.headers, network: this.#inner.network };
        this.#tunnel = session.open({ ...this.#request, headers }, (result) => {
          this.#over = true;
          this.#request.onEnd(result);
        });
        session.retire(); // it ends with its only tunnel
      },
    });
  }

  /** Ends before there is an inner tunnel. */
  #fail(error: CodedError): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancelHandshake?.();
    this.#outer.abort(error);
    this.#request.socket.reset();
    this.#request.onEnd({ bytesSent: 0, bytesReceived: 0, error });
  }
}
