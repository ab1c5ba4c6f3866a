import { findCodedError, messageOf, type CodedError } from "#base/errors";
import type { FlowReason } from "#model/flow";

/** Why a connection did not come about, or how it ended: what its record says. */
export interface Cause {
  readonly reason: FlowReason;
  readonly detail: string;
}

/** Codes that mean the same wherever they appear. */
const REASONS: Readonly<Record<string, FlowReason>> = {
  PROXY_DRAINED: "drained",
  PROXY_LIMIT: "limit_reached",
  PROXY_POLICY_CHANGED: "policy_changed",
  PROXY_NO_CERTIFICATE: "no_certificate",
  PROXY_CONTROL_PLANE: "control_plane_unavailable",
  LINUX_NO_FILES: "limit_reached",
  LINUX_CONNECT_NO_PORTS: "limit_reached",
  HBONE_LIMIT: "limit_reached",
  HBONE_NO_FILES: "limit_reached",
  HBONE_PEER_REVOKED: "certificate_revoked",
  HBONE_NO_CERTIFICATE: "no_certificate",
};

/** Codes of a tunnel that did not come about; all others mean that the peer could not be reached. */
const TUNNEL_REASONS: Readonly<Record<string, FlowReason>> = {
  HBONE_TLS_UNTRUSTED: "wrong_identity",
  HBONE_TLS_EXPIRED: "wrong_identity",
  HBONE_TLS_NO_CERTIFICATE: "wrong_identity",
  HBONE_TLS_NO_ALPN: "wrong_identity",
  HBONE_PEER_STATUS: "peer_refused",
  HBONE_STREAM_REFUSED: "peer_refused",
  HBONE_SESSION_REFUSED: "peer_refused",
  HBONE_DRAINING: "draining",
};

/** What a failure while dialling the application, or a plain destination, means. */
export function plainCause(error: unknown): Cause {
  return causeOf(error, () => "destination_unreachable");
}

/** What a failure while opening a tunnel means. */
export function tunnelCause(error: unknown): Cause {
  return causeOf(error, (code) => {
    if (code.startsWith("X509_") || code.startsWith("SPIFFE_ID_")) return "wrong_identity";
    return TUNNEL_REASONS[code] ?? "peer_unreachable";
  });
}

/** How a connection that was forwarded ended, when it did not end as it should. */
export function endCause(error: CodedError): Cause {
  return causeOf(error, (code) => (code === "HBONE_DRAINING" ? "drained" : "reset"));
}

function causeOf(error: unknown, other: (code: string) => FlowReason): Cause {
  const coded = findCodedError(error);
  const detail = `${coded === undefined ? "" : `${coded.code}: `}${messageOf(error)}`;
  return { reason: coded === undefined ? other("") : (REASONS[coded.code] ?? other(coded.code)), detail };
}
