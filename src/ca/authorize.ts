import { CodedError } from "#base/errors";
import { formatSpiffeId, parseWorkloadIdentity, type SpiffeId, type WorkloadIdentity } from "#model/spiffe-id";
import { formatCaller, type Caller } from "./caller.ts";
import { caError } from "./errors.ts";

/** What the controller knows about pods, as far as signing needs it. */
export interface PodDirectory {
  /** True when a live pod (not failed, not succeeded) with this service account is bound to this node. */
  hasWorkload(node: string, namespace: string, serviceAccount: string): boolean;
}

/** The rule by which identities are given out. */
export interface AuthorizationRule {
  readonly trustDomain: string;
  /** `namespace/name` of the service accounts whose pods act for their node. */
  readonly nodeAccounts: readonly string[];
  readonly pods: PodDirectory;
}

/** The accounts that act for nodes unless others are given. */
export const DEFAULT_NODE_ACCOUNTS: readonly string[] = ["veil-system/veil-agent", "veil-system/ztunnel"];

/** Reads the identity that a request names. Throws `CA_NO_IDENTITY`, `CA_BAD_IDENTITY`. */
export function parseRequestedIdentity(text: unknown): WorkloadIdentity {
  if (text === undefined || text === "") throw caError("CA_NO_IDENTITY", "the request does not say for which identity");
  if (typeof text !== "string") throw caError("CA_BAD_IDENTITY", "ImpersonatedIdentity is no text");
  try {
    return parseWorkloadIdentity(text);
  } catch (cause) {
    const reason = cause instanceof CodedError ? `: ${cause.message}` : "";
    throw caError("CA_BAD_IDENTITY", `the requested identity cannot be read${reason}`, { cause });
  }
}

/**
 * Decides whether `caller` gets a certificate for `identity`, and returns the ID to be signed, made from what was decided here and
 * nothing else. Pure. A denial throws `CA_NOT_NODE_ACCOUNT`, `CA_WRONG_TRUST_DOMAIN` or `CA_NOT_ON_NODE`.
 */
export function authorize(caller: Caller, identity: WorkloadIdentity, rule: AuthorizationRule): SpiffeId {
  if (!rule.nodeAccounts.includes(`${caller.namespace}/${caller.serviceAccount}`)) {
    throw caError("CA_NOT_NODE_ACCOUNT", `${formatCaller(caller)} does not act for its node`);
  }
  if (identity.trustDomain !== rule.trustDomain) {
    throw caError(
      "CA_WRONG_TRUST_DOMAIN",
      `${identity.trustDomain} is not this authority's trust domain, ${rule.trustDomain}`,
    );
  }
  const { namespace, serviceAccount } = identity;
  if (!rule.pods.hasWorkload(caller.node, namespace, serviceAccount)) {
    throw caError(
      "CA_NOT_ON_NODE",
      `no live pod with service account ${namespace}/${serviceAccount} runs on node ${caller.node}`,
      {
        details: { node: caller.node, namespace, serviceAccount },
      },
    );
  }
  return formatSpiffeId({ trustDomain: rule.trustDomain, namespace, serviceAccount });
}
