import type { FlowReason } from "#model/flow";

/** What upstream's metrics show for each reason: their `response_flags`. */
const FLAGS: Readonly<Record<FlowReason, string>> = {
  ok: "-",
  destination_not_enrolled: "-",
  source_not_enrolled: "-",
  destination_outside: "-",
  enrolling: "-",
  plaintext_refused: "DENY",
  policy_not_enforced: "DENY",
  policy_denied: "DENY",
  policy_changed: "DENY",
  no_certificate: "IDENTITY_ERROR",
  control_plane_unavailable: "IDENTITY_ERROR",
  wrong_identity: "TLS_FAILURE",
  certificate_revoked: "CERT_REVOKED",
  peer_unreachable: "CONNECT",
  peer_refused: "H2_HANDSHAKE_FAILURE",
  destination_unreachable: "CONNECT",
  no_healthy_upstream: "CONNECT",
  waypoint_unavailable: "CONNECT",
  self_call: "DENY",
  bad_request: "DENY",
  draining: "CONNECT",
  limit_reached: "CONNECT",
  log_stalled: "CONNECT",
  reset: "-",
  drained: "-",
};

/** One exhaustive table from reason to flag. */
export function responseFlags(reason: FlowReason): string {
  return FLAGS[reason];
}
