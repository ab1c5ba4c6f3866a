import { defineErrors } from "#base/errors";

/** Failures of the node's side of identities. */
export const identityError = defineErrors("identity", {
  IDENTITY_AUTHORITY_UNREACHABLE: {
    when: "the certificate authority could not be asked",
    hint: "certificates at hand stay in use to their end; look at the controller and at the way to it (port 15012)",
  },
  IDENTITY_REFUSED: {
    when: "the certificate authority refused to issue a certificate",
    hint: "the message carries the authority's own code and sentence; look that code up in this list",
  },
  IDENTITY_BAD_ANSWER: {
    when: "the certificate authority answered with something other than what was asked for",
    hint: "the cause names what is wrong; check that agent and controller are of the same installation",
  },
  IDENTITY_CLOCK_BEHIND: {
    when: "a certificate that was just issued is not valid yet by this node's clock",
    hint: "this node's clock is behind the authority's by more than the two minutes by which certificates are backdated: correct it (NTP)",
  },
  IDENTITY_CLOCK_AHEAD: {
    when: "a certificate that was just issued, or the authority's own, has expired by this node's clock",
    hint: "this node's clock is ahead of the authority's: correct it (NTP)",
  },
  IDENTITY_EXPIRED: {
    when: "a workload's certificate ended before it could be renewed",
    hint: "connections of that workload are refused until the authority can be asked again; the cause is the last failed attempt",
  },
  IDENTITY_NOT_READY: {
    when: "a certificate was waited for in vain",
    hint: "the cause is the last failed attempt to get it",
  },
  IDENTITY_TOO_MANY: {
    when: "more identities are asked for on one node than are kept",
    hint: "the cap is in docs/limits.md; a node does not run that many service accounts, so find out who asks",
  },
  IDENTITY_BAD_UPDATE: {
    when: "the agent sent the proxy a certificate that cannot be used",
    hint: "the one before stays in use; check that agent and proxy are of the same version",
  },
  IDENTITY_STOPPED: {
    when: "a certificate was asked for while the role stops",
    hint: "nothing is to be done",
  },
});
