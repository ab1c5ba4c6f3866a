import { defineErrors } from "#base/errors";

/** Failures of the certificate authority and of its service. */
export const caError = defineErrors("ca", {
  CA_UNREADABLE: {
    when: "the place of the authority's keys exists, but what is in it cannot be used",
    hint: "restore it from a backup; Veil never replaces it, since every certificate in use hangs on it. Only if it is lost for good: delete it and restart the controller, and every workload gets a new certificate under a new root",
  },
  CA_STORE: {
    when: "the place of the authority's keys could not be read or written",
    hint: "the cause names the file or the API's answer: check permissions, disk and the connection to the API server",
  },
  CA_NOT_MADE: {
    when: "no authority is stored yet, and this replica of the controller is not the one that makes it",
    hint: "nothing, when it passes; otherwise see the log of the replica that holds the Lease veil-controller",
  },
  CA_CONTENDED: {
    when: "the authority's keys changed again and again while they were being written",
    hint: "something else writes to the same place; let only controllers of this cluster do so",
  },
  CA_FOREIGN_KEY: {
    when: "a key was to be stored in a place that did not make it",
    hint: "this is a mistake in the program; please report it",
  },
  CA_NOT_READY: {
    when: "a certificate was asked for before the authority had been opened, or after it was closed",
    hint: "nothing, when it passes; otherwise the controller's log says why the authority could not be opened",
  },
  CA_CLOCK_BEHIND: {
    when: "this machine's clock is before the beginning of the authority's own certificate",
    hint: "correct the clock of the controller's machine (NTP)",
  },
  CA_ROOT_EXPIRED: {
    when: "the root certificate's life has ended by this machine's clock",
    hint: "if the clock is right, the root must be replaced: delete the authority's Secret and restart the controller; every workload then gets a new certificate",
  },
  CA_ROOT_SWAPPED: {
    when: "the stored trust bundle was exchanged for another one while the authority runs",
    hint: "add the new root beside the old one first; to exchange them at once, restart the controller and all agents",
  },
  CA_PREFLIGHT: {
    when: "a certificate signed for a trial by a new authority did not verify, so that the authority was not put to use",
    hint: "the cause names the failed check; the authority that was in use before stays in use",
  },
  CA_TOKEN_MISSING: {
    when: "a caller gave no authorization header",
    hint: "send `authorization: Bearer <service account token with audience istio-ca>`",
  },
  CA_TOKEN_SCHEME: {
    when: "a caller's authorization header is not of the scheme Bearer",
    hint: "send `authorization: Bearer <service account token with audience istio-ca>`",
  },
  CA_TOKEN_MALFORMED: {
    when: "a caller's token is too large or is no JSON web token",
    hint: "check which file the caller reads its token from",
  },
  CA_TOKEN_REJECTED: {
    when: "the API server does not accept a caller's token",
    hint: "the token has expired, its pod is gone, or it is of another cluster; the message carries the API server's reason",
  },
  CA_TOKEN_AUDIENCE: {
    when: "a caller's token is good, but not meant for the authority",
    hint: "project the caller's token with audience istio-ca",
  },
  CA_TOKEN_NOT_SERVICE_ACCOUNT: {
    when: "a caller's token belongs to no service account",
    hint: "only pods may call; use a projected service account token",
  },
  CA_TOKEN_NOT_BOUND: {
    when: "a caller's token does not say which pod on which node it was made for",
    hint: "use a projected (bound) token; its node is named by Kubernetes 1.30 and newer",
  },
  CA_REVIEW_UNAVAILABLE: {
    when: "the API server could not be asked whether a caller's token is good",
    hint: "look at the API server and at the controller's connection and permissions (create tokenreviews)",
  },
  CA_NO_IDENTITY: {
    when: "a request does not say for which identity",
    hint: "set the metadata field ImpersonatedIdentity to the workload's SPIFFE ID",
  },
  CA_BAD_IDENTITY: {
    when: "a request names an identity that is no SPIFFE ID of a Kubernetes workload",
    hint: "identities have the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>",
  },
  CA_WRONG_TRUST_DOMAIN: {
    when: "a request names an identity of another trust domain",
    hint: "the authority signs for its own trust domain only; check --trust-domain of controller and agent",
  },
  CA_NOT_NODE_ACCOUNT: {
    when: "a caller that is no node's agent asks for a certificate",
    hint: "only the accounts given as node accounts may ask (veil-system/veil-agent and veil-system/ztunnel unless changed)",
  },
  CA_NOT_ON_NODE: {
    when: "a node's agent asks for an identity of which no live pod runs on that node",
    hint: "a new pod may not be known yet, and the agent asks again; if it stays, the node asks for what is not its own: investigate that node",
  },
  CA_BUSY: {
    when: "more requests are being worked on than the authority takes at a time",
    hint: "agents ask again by themselves; if it stays, look at the controller's load",
  },
});
