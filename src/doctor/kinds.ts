import { resourceRef, type KubeObject, type LabelSelector } from "#kube";

/** Whom a rule of a NetworkPolicy is about. */
export interface PolicyPeer {
  readonly podSelector?: LabelSelector;
  readonly namespaceSelector?: LabelSelector;
  readonly ipBlock?: { readonly cidr: string; readonly except?: readonly string[] };
}

/** Ports of a rule; without `port`: all of the protocol. */
export interface PolicyPort {
  readonly protocol?: string;
  readonly port?: number | string;
  readonly endPort?: number;
}

/** A NetworkPolicy (networking.k8s.io/v1), as far as it is read. */
export interface NetworkPolicy extends KubeObject {
  readonly spec?: {
    readonly podSelector?: LabelSelector;
    readonly policyTypes?: readonly string[];
    readonly ingress?: readonly { readonly from?: readonly PolicyPeer[]; readonly ports?: readonly PolicyPort[] }[];
    readonly egress?: readonly { readonly to?: readonly PolicyPeer[]; readonly ports?: readonly PolicyPort[] }[];
  };
}

/** A ValidatingAdmissionPolicy (admissionregistration.k8s.io/v1), as far as it is read. */
export interface AdmissionPolicy extends KubeObject {
  readonly spec?: {
    readonly failurePolicy?: string;
    readonly matchConditions?: readonly { readonly expression?: string }[];
    readonly validations?: readonly { readonly expression?: string }[];
  };
}

/** A ValidatingAdmissionPolicyBinding. */
export interface AdmissionBinding extends KubeObject {
  readonly spec?: {
    readonly policyName?: string;
    readonly validationActions?: readonly string[];
    readonly matchResources?: object;
  };
}

/** A webhook of the API server, as far as it is read: mutating and validating ones alike. */
export interface WebhookConfiguration extends KubeObject {
  readonly webhooks?: readonly {
    readonly name?: string;
    readonly failurePolicy?: string;
    readonly namespaceSelector?: LabelSelector;
    readonly clientConfig?: { readonly service?: { readonly namespace: string; readonly name: string } };
    readonly rules?: readonly {
      readonly apiGroups?: readonly string[];
      readonly resources?: readonly string[];
      readonly operations?: readonly string[];
    }[];
  }[];
}

/** An object of somebody else, of which only name and text are looked at. */
export interface ForeignPolicy extends KubeObject {
  readonly spec?: unknown;
  readonly specs?: unknown;
}

/** Calico's settings (crd.projectcalico.org/v1), as far as they are read. */
export interface FelixConfiguration extends KubeObject {
  readonly spec?: { readonly bpfEnabled?: boolean };
}

/** What Calico says of itself. */
export interface ClusterInformation extends KubeObject {
  readonly spec?: { readonly calicoVersion?: string };
}

const admission = { group: "admissionregistration.k8s.io", version: "v1", namespaced: false } as const;
const cilium = { group: "cilium.io", version: "v2" } as const;
const calico = { group: "crd.projectcalico.org", version: "v1" } as const;
const admin = { group: "policy.networking.k8s.io", version: "v1alpha1", namespaced: false } as const;

/** Kinds that only the doctor reads. */
export const doctorKinds = {
  networkPolicies: resourceRef<NetworkPolicy>({
    group: "networking.k8s.io",
    version: "v1",
    plural: "networkpolicies",
    kind: "NetworkPolicy",
    namespaced: true,
  }),
  admissionPolicies: resourceRef<AdmissionPolicy>({
    ...admission,
    plural: "validatingadmissionpolicies",
    kind: "ValidatingAdmissionPolicy",
  }),
  admissionBindings: resourceRef<AdmissionBinding>({
    ...admission,
    plural: "validatingadmissionpolicybindings",
    kind: "ValidatingAdmissionPolicyBinding",
  }),
  mutatingWebhooks: resourceRef<WebhookConfiguration>({
    ...admission,
    plural: "mutatingwebhookconfigurations",
    kind: "MutatingWebhookConfiguration",
  }),
  validatingWebhooks: resourceRef<WebhookConfiguration>({
    ...admission,
    plural: "validatingwebhookconfigurations",
    kind: "ValidatingWebhookConfiguration",
  }),
  felixConfigurations: resourceRef<FelixConfiguration>({
    ...calico,
    plural: "felixconfigurations",
    kind: "FelixConfiguration",
    namespaced: false,
  }),
  calicoClusters: resourceRef<ClusterInformation>({
    ...calico,
    plural: "clusterinformations",
    kind: "ClusterInformation",
    namespaced: false,
  }),
} as const;

/** Policies of other network plugins: which of them hold ports back is theirs to say, so they are named and not judged. */
export const FOREIGN_POLICIES = [
  { ...cilium, plural: "ciliumnetworkpolicies", kind: "CiliumNetworkPolicy", namespaced: true },
  { ...cilium, plural: "ciliumclusterwidenetworkpolicies", kind: "CiliumClusterwideNetworkPolicy", namespaced: false },
  { ...calico, plural: "networkpolicies", kind: "NetworkPolicy", namespaced: true },
  { ...calico, plural: "globalnetworkpolicies", kind: "GlobalNetworkPolicy", namespaced: false },
  { ...admin, plural: "adminnetworkpolicies", kind: "AdminNetworkPolicy" },
  { ...admin, plural: "baselineadminnetworkpolicies", kind: "BaselineAdminNetworkPolicy" },
].map((ref) => resourceRef<ForeignPolicy>(ref));
