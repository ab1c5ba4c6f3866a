import { defineErrors, type CodedError } from "#base/errors";

/** Failures of tunnels: TLS handshakes, HTTP/2, sessions. */
export const hboneError = defineErrors("hbone", {
  HBONE_NO_CERTIFICATE: {
    when: "the proxy has no certificate for the workload whose connection it is",
    hint: "look whether the node's agent reaches the controller: certificates come from there",
  },
  HBONE_TLS_HANDSHAKE: {
    when: "a TLS handshake failed before the peer could be judged (no TLS, wrong version, no common suite, cut off)",
    hint: "the message carries OpenSSL's word; both ends must speak TLS 1.3 with AES-GCM on tcp/15008",
  },
  HBONE_TLS_RECORD: {
    when: "a TLS record of an established session is not authentic, or breaks a rule of TLS 1.3",
    hint: "somebody changes bytes between the nodes, or the peer's TLS is broken; the message names the rule",
  },
  HBONE_TLS_ALERT: {
    when: "the peer ended an established TLS session with an alert",
    hint: "the message carries the alert's number (RFC 8446 §6); look at the log of the peer's proxy",
  },
  HBONE_TLS_TIMEOUT: {
    when: "a peer did not finish its TLS handshake in time",
    hint: "look at the peer named in the record: its proxy hangs, or something else answers on tcp/15008",
  },
  HBONE_TLS_NO_ALPN: {
    when: "a TLS peer did not agree on HTTP/2 (ALPN h2)",
    hint: "the peer is no HBONE proxy; only mesh proxies talk to tcp/15008",
  },
  HBONE_TLS_NO_CERTIFICATE: {
    when: "a TLS client presented no certificate",
    hint: "the peer is not part of the mesh; only enrolled workloads may open tunnels",
  },
  HBONE_TLS_UNTRUSTED: {
    when: "a peer's certificate chain does not lead to a root that this workload trusts",
    hint: "the details carry OpenSSL's reason; compare the trust bundles of both sides and their clocks",
  },
  HBONE_TLS_EXPIRED: {
    when: "a certificate in the peer's chain is expired or not yet valid by this machine's clock",
    hint: "check both clocks (NTP) and whether the peer's agent can renew its certificate",
  },
  HBONE_PEER_REVOKED: {
    when: "a certificate in the peer's chain is on a revocation list of its issuer",
    hint: "give the peer a new certificate, or correct the list (--crl-file)",
  },
  HBONE_PREFACE: {
    when: "a peer did not begin with the HTTP/2 preface",
    hint: "the peer speaks another protocol inside its TLS session; look at the peer named in the record",
  },
  HBONE_PROTOCOL: {
    when: "a peer broke a rule of HTTP/2",
    hint: "the message names the frame and the rule; look at the peer's implementation and version",
  },
  HBONE_FRAME_SIZE: {
    when: "a peer sent an HTTP/2 frame of a forbidden size",
    hint: "the message names the frame; look at the peer's implementation and version",
  },
  HBONE_FLOW_CONTROL: {
    when: "a peer sent more than its flow-control window allows, or overflowed ours",
    hint: "look at the peer's implementation and version",
  },
  HBONE_STREAM_CLOSED: {
    when: "a peer sent on a tunnel that it had ended",
    hint: "look at the peer's implementation and version",
  },
  HBONE_COMPRESSION: {
    when: "a header block cannot be decoded (RFC 7541)",
    hint: "the message names the rule; look at the peer's implementation and version",
  },
  HBONE_HEADERS_TOO_LARGE: {
    when: "a peer's header block is larger than is accepted",
    hint: "the caps are in docs/limits.md; an HBONE request needs a few hundred bytes",
  },
  HBONE_FLOOD: {
    when: "a peer sent masses of frames, or opened masses of streams, that carry nothing",
    hint: "the peer is broken or hostile; it is named in the record",
  },
  HBONE_PEER_ERROR: {
    when: "the peer ended the session because of an error that it saw",
    hint: "the details carry the peer's HTTP/2 error code; look at the log of the peer's proxy",
  },
  HBONE_SESSION_REFUSED: {
    when: "a peer closed a session right after the TLS handshake, most likely because it refused our certificate",
    hint: "look at the log of the peer's proxy, which names its reason",
  },
  HBONE_SESSION_LOST: {
    when: "a session broke while tunnels were open on it",
    hint: "the peer's proxy or node went away, or the network did; the cause says what was seen",
  },
  HBONE_PING_TIMEOUT: {
    when: "a peer did not answer a keep-alive in time",
    hint: "the peer's node is gone or cut off; look at the network between the nodes",
  },
  HBONE_SETTINGS_TIMEOUT: {
    when: "a peer did not acknowledge our HTTP/2 settings in time",
    hint: "look at the peer's implementation and version; it answers, but not to SETTINGS",
  },
  HBONE_PEER_STATUS: {
    when: "the peer's proxy answered CONNECT with an error status",
    hint: "401: refused by policy; 503: the application does not listen; 400: the address is not the peer's",
  },
  HBONE_STREAM_RESET: {
    when: "the other end of a tunnel was reset",
    hint: "the application there crashed or closed with data unread; the details carry the HTTP/2 error code",
  },
  HBONE_STREAM_REFUSED: {
    when: "the peer's proxy took no new tunnel (it is shutting down, or at its limit)",
    hint: "none when it happens during a roll-out; else look at the peer's load",
  },
  HBONE_MALFORMED: {
    when: "the header of a request or an answer is not what CONNECT asks for",
    hint: "the message names the field; look at the peer's implementation and version",
  },
  HBONE_DRAINING: { when: "a tunnel was ended or refused because the proxy shuts down", hint: "none: it is wanted" },
  HBONE_ABORTED: { when: "a tunnel was ended by whoever opened it", hint: "none: the cause says why" },
  HBONE_NO_FILES: {
    when: "a peer's session is refused because the process is about to run out of file descriptors",
    hint: "raise the limit of open files (LimitNOFILE) of the proxy, or spread its pods; running sessions go on",
  },
  HBONE_LIMIT: {
    when: "too many connections wait for the same session",
    hint: "the peer is slow to answer or gone; look at the records of the connections before",
  },
});

/** Why a session is lost: the peer closed it (no cause), or its stream broke. `refused`: before a word of the peer. */
export function lossError(refused: boolean, cause: CodedError | undefined): CodedError {
  const why = cause === undefined ? "the peer closed it" : cause.message;
  return refused
    ? hboneError("HBONE_SESSION_REFUSED", `the peer closed the session at once: ${why}`, { cause })
    : hboneError("HBONE_SESSION_LOST", `the session ended: ${why}`, { cause });
}

/** HTTP/2 error codes (RFC 9113 §7). */
export const H2_CODE = {
  NO_ERROR: 0,
  PROTOCOL_ERROR: 1,
  INTERNAL_ERROR: 2,
  FLOW_CONTROL_ERROR: 3,
  SETTINGS_TIMEOUT: 4,
  STREAM_CLOSED: 5,
  FRAME_SIZE_ERROR: 6,
  REFUSED_STREAM: 7,
  CANCEL: 8,
  COMPRESSION_ERROR: 9,
  CONNECT_ERROR: 10,
  ENHANCE_YOUR_CALM: 11,
} as const;

const CODES: Readonly<Record<string, number>> = {
  HBONE_PREFACE: H2_CODE.PROTOCOL_ERROR,
  HBONE_PROTOCOL: H2_CODE.PROTOCOL_ERROR,
  HBONE_MALFORMED: H2_CODE.PROTOCOL_ERROR,
  HBONE_FRAME_SIZE: H2_CODE.FRAME_SIZE_ERROR,
  HBONE_FLOW_CONTROL: H2_CODE.FLOW_CONTROL_ERROR,
  HBONE_STREAM_CLOSED: H2_CODE.STREAM_CLOSED,
  HBONE_COMPRESSION: H2_CODE.COMPRESSION_ERROR,
  HBONE_HEADERS_TOO_LARGE: H2_CODE.ENHANCE_YOUR_CALM,
  HBONE_FLOOD: H2_CODE.ENHANCE_YOUR_CALM,
  HBONE_SETTINGS_TIMEOUT: H2_CODE.SETTINGS_TIMEOUT,
  HBONE_PING_TIMEOUT: H2_CODE.NO_ERROR,
  HBONE_PEER_ERROR: H2_CODE.NO_ERROR,
  HBONE_DRAINING: H2_CODE.NO_ERROR,
};

/** What a peer is told about one of our errors. */
export function h2CodeOf(code: string): number {
  return CODES[code] ?? H2_CODE.INTERNAL_ERROR;
}
