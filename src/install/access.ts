/** The roles of an installation that run as pods. */
export type InstalledRole = "controller" | "agent" | "proxy";

/** A rule of Kubernetes' role-based access control. */
export interface AccessRule {
  readonly apiGroups: readonly string[];
  readonly resources: readonly string[];
  readonly resourceNames?: readonly string[];
  readonly verbs: readonly string[];
}

const FOLLOW = ["list", "watch"];
/** The ConfigMap with the roots, in each namespace. Listing by the field `metadata.name` counts as asking for that name. */
const TRUST_BUNDLE = "istio-ca-root-cert";
const AUTHORITY = "veil-ca";

/**
 * What each role may do in the whole cluster: what its code asks for and nothing else (test/rbac.test.ts compares the two).
 * Nobody reads Secrets outside of Veil's own namespace.
 */
export const CLUSTER_RULES: Readonly<Record<InstalledRole, readonly AccessRule[]>> = {
  controller: [
    { apiGroups: [""], resources: ["pods"], verbs: ["get", ...FOLLOW] },
    { apiGroups: [""], resources: ["services", "namespaces", "nodes"], verbs: FOLLOW },
    { apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: FOLLOW },
    { apiGroups: ["gateway.networking.k8s.io"], resources: ["gateways", "gatewayclasses"], verbs: FOLLOW },
    { apiGroups: ["networking.istio.io"], resources: ["serviceentries", "workloadentries"], verbs: FOLLOW },
    { apiGroups: ["networking.istio.io"], resources: ["serviceentries/status"], verbs: ["patch"] },
    { apiGroups: ["security.istio.io"], resources: ["authorizationpolicies", "peerauthentications"], verbs: FOLLOW },
    { apiGroups: ["security.istio.io"], resources: ["authorizationpolicies/status"], verbs: ["patch"] },
    { apiGroups: [""], resources: ["configmaps"], resourceNames: [TRUST_BUNDLE], verbs: [...FOLLOW, "patch"] },
    { apiGroups: [""], resources: ["configmaps"], verbs: ["create"] }, // a name cannot be asked for before the object is there
    { apiGroups: [""], resources: ["events"], verbs: ["create"] },
    { apiGroups: ["authentication.k8s.io"], resources: ["tokenreviews"], verbs: ["create"] },
  ],
  agent: [
    // The CNI plugin asks with the agent's credentials for a pod and its namespace while the agent is away.
    { apiGroups: [""], resources: ["pods"], verbs: ["get", ...FOLLOW, "patch"] },
    { apiGroups: [""], resources: ["namespaces"], verbs: ["get", ...FOLLOW] },
    { apiGroups: [""], resources: ["events"], verbs: ["create"] },
  ],
  proxy: [],
};

/** Only in Veil's own namespace: the authority's keys, and the roots by which agents know the controller. */
export const INSIDE_RULES: Readonly<Record<InstalledRole, readonly AccessRule[]>> = {
  controller: [
    { apiGroups: [""], resources: ["secrets"], resourceNames: [AUTHORITY], verbs: ["get", "update"] },
    { apiGroups: [""], resources: ["secrets"], verbs: ["create"] },
  ],
  agent: [{ apiGroups: [""], resources: ["configmaps"], resourceNames: [TRUST_BUNDLE], verbs: FOLLOW }],
  proxy: [],
};
