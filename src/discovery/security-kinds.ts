import { resourceRef, type KubeObject } from "#kube";

/** A selector of pods; without labels it selects all of its namespace. */
interface Selector {
  matchLabels?: Record<string, string>;
}

/** `security.istio.io/v1` AuthorizationPolicy, as far as it is read. */
export interface AuthorizationPolicy extends KubeObject {
  spec?: {
    selector?: Selector;
    targetRef?: object;
    targetRefs?: object[];
    action?: string;
    rules?: PolicyRule[];
  };
  status?: { conditions?: PolicyCondition[] };
}

/** A rule: who calls (`from`), what (`to`), and further conditions (`when`). */
export interface PolicyRule {
  from?: { source?: Record<string, string[]> }[];
  to?: { operation?: Record<string, string[]> }[];
  when?: { key?: string; values?: string[]; notValues?: string[] }[];
}

/** A condition in the status of a policy. */
export interface PolicyCondition {
  type?: string;
  status?: string;
  reason?: string;
  message?: string;
  observedGeneration?: number | string;
  lastTransitionTime?: string;
}

/** `security.istio.io/v1` PeerAuthentication. */
export interface PeerAuthentication extends KubeObject {
  spec?: {
    selector?: Selector;
    mtls?: { mode?: string };
    portLevelMtls?: Record<string, { mode?: string }>;
  };
}

const security = { group: "security.istio.io", version: "v1", namespaced: true } as const;

/** Where the policies of users are served, where their kinds are installed. */
export const securityKinds = {
  authorizationPolicies: resourceRef<AuthorizationPolicy>({
    ...security,
    plural: "authorizationpolicies",
    kind: "AuthorizationPolicy",
  }),
  peerAuthentications: resourceRef<PeerAuthentication>({
    ...security,
    plural: "peerauthentications",
    kind: "PeerAuthentication",
  }),
} as const;
