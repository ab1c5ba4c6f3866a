import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import type { CodedError } from "#base/errors";
import type { SpiffeId } from "#model/spiffe-id";
import { IstioCertificateService } from "#proto";
import { identityError } from "./errors.ts";

/** Where a node's certificates come from. */
export interface CertificateIssuer {
  /**
   * Has a request signed for `id`. Resolves with Istio's layout: leaf, intermediates one by one, and last all roots in one string.
   * Rejects with `IDENTITY_AUTHORITY_UNREACHABLE`, `IDENTITY_REFUSED`, `IDENTITY_CLOCK_BEHIND`, `IDENTITY_CLOCK_AHEAD`.
   */
  issue(csrPem: string, id: SpiffeId, signal: AbortSignal): Promise<readonly string[]>;
}

/** How to reach an authority that speaks Istio's certificate service. */
export interface IstioIssuerOptions {
  /** Carries the bearer token. */
  readonly transport: Transport;
  /** The life that is asked for. Default: what the authority gives. */
  readonly lifeMs?: number;
  /** Default `Kubernetes`. */
  readonly clusterId?: string;
}

const CALL_TIMEOUT_MS = 10_000;

/** Asks an authority over Istio's certificate service (istioca.proto). */
export function istioIssuer(options: IstioIssuerOptions): CertificateIssuer {
  const { transport, lifeMs = 0, clusterId = "Kubernetes" } = options;
  const client = createClient(IstioCertificateService, transport);
  return {
    async issue(csr, id, signal) {
      try {
        const metadata = { ImpersonatedIdentity: id };
        const request = { csr, validityDuration: BigInt(Math.floor(lifeMs / 1000)), metadata };
        const call = { signal, timeoutMs: CALL_TIMEOUT_MS, headers: { clusterid: clusterId } };
        return (await client.createCertificate(request, call)).certChain;
      } catch (error) {
        throw translate(error, id);
      }
    },
  };
}

const UNREACHABLE = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Canceled, Code.Unknown, Code.Internal]);
const OWN_CODE = /^([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+): /;

function translate(cause: unknown, id: SpiffeId): CodedError {
  const details: Record<string, unknown> = { identity: id };
  const tls = tlsCodeOf(cause);
  if (tls === "CERT_NOT_YET_VALID") {
    const message = "the authority's certificate is not valid yet by this node's clock, which is behind";
    return identityError("IDENTITY_CLOCK_BEHIND", message, { cause, details });
  }
  if (tls === "CERT_HAS_EXPIRED") {
    const message =
      "the authority's certificate has expired by this node's clock, which is ahead, or it was not renewed";
    return identityError("IDENTITY_CLOCK_AHEAD", message, { cause, details });
  }
  const error = ConnectError.from(cause);
  const refusal = OWN_CODE.exec(error.rawMessage)?.[1];
  if (refusal !== undefined || !UNREACHABLE.has(error.code)) {
    const message = `the authority refused a certificate for ${id}: ${error.rawMessage}`;
    return identityError("IDENTITY_REFUSED", message, { cause, details: { ...details, refusal } });
  }
  return identityError("IDENTITY_AUTHORITY_UNREACHABLE", `the authority could not be asked for ${id}`, {
    cause,
    details,
  });
}

/** OpenSSL's verdict on the server's certificate, when that ended the call. */
function tlsCodeOf(error: unknown): string | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 8; at = at.cause, depth++) {
    if ("code" in at && typeof at.code === "string" && at.code.startsWith("CERT_")) return at.code;
  }
  return undefined;
}
