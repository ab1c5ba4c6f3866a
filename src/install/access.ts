import { AUTHORITY_SECRET, DEFAULT_TRUST_BUNDLE, OWN_TRUST_BUNDLE } from "#model/authority-objects";
import { AGENTS } from "#model/leaving";

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
/** By which the controller's replicas elect the one that writes. */
const LEASES = "coordination.k8s.io";
const LEASE = "veil-controller";
/** Whose token the CNI plugin has: a pod's own token ends with the pod, and the plugin asks when the agent's pod is gone. */
export const PLUGIN_ACCOUNT = "veil-cni";

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
    { apiGroups: [""], resources: ["configmaps"], resourceNames: [DEFAULT_TRUST_BUNDLE], verbs: [...FOLLOW, "patch"] },
    { apiGroups: [""], resources: ["configmaps"], verbs: ["create"] }, // a name cannot be asked for before the object is there
    { apiGroups: [""], resources: ["events"], verbs: ["create"] },
    { apiGroups: ["authentication.k8s.io"], resources: ["tokenreviews"], verbs: ["create"] },
  ],
  agent: [
    { apiGroups: [""], resources: ["pods"], verbs: [...FOLLOW, "patch"] },
    { apiGroups: [""], resources: ["namespaces", "nodes"], verbs: FOLLOW },
    { apiGroups: [""], resources: ["events"], verbs: ["create"] },
  ],
  proxy: [],
};

/**
 * In the whole cluster besides, where there are tunnels between nodes. An agent may change CiliumNodes and WireGuardNodes, and of them its
 * own node's only: admission.ts.
 */
export const WIREGUARD_RULES: Readonly<Record<InstalledRole, readonly AccessRule[]>> = {
  controller: [
    { apiGroups: ["cilium.io"], resources: ["ciliumnodes"], verbs: FOLLOW },
    { apiGroups: ["veil.dev"], resources: ["wireguardnodes"], verbs: FOLLOW },
    { apiGroups: ["veil.dev"], resources: ["wireguardrotations"], verbs: [...FOLLOW, "create"] },
    { apiGroups: ["veil.dev"], resources: ["wireguardrotations/status"], verbs: ["patch"] },
  ],
  agent: [
    { apiGroups: [""], resources: ["nodes"], verbs: ["get", ...FOLLOW] },
    { apiGroups: ["cilium.io"], resources: ["ciliumnodes"], verbs: ["get", ...FOLLOW, "create", "patch"] },
    { apiGroups: ["veil.dev"], resources: ["wireguardnodes"], verbs: ["get", "create"] },
    { apiGroups: ["veil.dev"], resources: ["wireguardnodes/status"], verbs: ["patch"] },
    { apiGroups: ["veil.dev"], resources: ["wireguardrotations"], verbs: FOLLOW },
  ],
  proxy: [],
};

/** What the CNI plugin asks the API for while its node's agent is away. */
export const PLUGIN_RULES: readonly AccessRule[] = [
  { apiGroups: [""], resources: ["pods", "namespaces"], verbs: ["get"] },
];

/** Only in Veil's own namespace: the authority's keys, the controller's Lease, the roots by which agents know the controller, and tokens for the CNI plugin. */
export const INSIDE_RULES: Readonly<Record<InstalledRole, readonly AccessRule[]>> = {
  controller: [
    { apiGroups: [""], resources: ["secrets"], resourceNames: [AUTHORITY_SECRET], verbs: ["get", "update"] },
    { apiGroups: [""], resources: ["secrets"], verbs: ["create"] },
    { apiGroups: [""], resources: ["configmaps"], resourceNames: [OWN_TRUST_BUNDLE], verbs: [...FOLLOW, "patch"] },
    { apiGroups: [LEASES], resources: ["leases"], resourceNames: [LEASE], verbs: ["get", "update"] },
    { apiGroups: [LEASES], resources: ["leases"], verbs: ["create"] },
  ],
  agent: [
    {
      apiGroups: [""],
      resources: ["configmaps"],
      resourceNames: [DEFAULT_TRUST_BUNDLE, OWN_TRUST_BUNDLE],
      verbs: FOLLOW,
    },
    { apiGroups: ["apps"], resources: ["daemonsets"], resourceNames: [AGENTS], verbs: FOLLOW },
    { apiGroups: [""], resources: ["serviceaccounts/token"], resourceNames: [PLUGIN_ACCOUNT], verbs: ["create"] },
  ],
  proxy: [],
};
