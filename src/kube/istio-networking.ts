import { resourceRef, type KubeObject } from "./object.ts";

/** An endpoint: the spec of a WorkloadEntry, or one written into a ServiceEntry (istio api networking/v1). */
export interface WorkloadEntrySpec {
  /** An IP address, a hostname, or `unix://…`. */
  readonly address?: string;
  /** By the name of the service's port. */
  readonly ports?: Readonly<Record<string, number>>;
  readonly labels?: Readonly<Record<string, string>>;
  readonly network?: string;
  /** `region/zone/subzone`. */
  readonly locality?: string;
  readonly weight?: number;
  readonly serviceAccount?: string;
}

/** A workload that is no pod, for example a virtual machine. */
export interface WorkloadEntry extends KubeObject {
  readonly spec?: WorkloadEntrySpec;
}

/** A service that is no Kubernetes Service. */
export interface ServiceEntry extends KubeObject {
  readonly spec?: {
    readonly hosts?: readonly string[];
    /** IP addresses or prefixes. */
    readonly addresses?: readonly string[];
    readonly ports?: readonly {
      readonly number?: number;
      readonly name?: string;
      readonly protocol?: string;
      readonly targetPort?: number;
    }[];
    readonly location?: string;
    /** `NONE` (the default), `STATIC`, `DNS`, `DNS_ROUND_ROBIN` or `DYNAMIC_DNS`. */
    readonly resolution?: string;
    readonly endpoints?: readonly WorkloadEntrySpec[];
    readonly workloadSelector?: { readonly labels?: Readonly<Record<string, string>> };
    readonly exportTo?: readonly string[];
    readonly subjectAltNames?: readonly string[];
  };
  /** Addresses that a control plane has given to hosts without any. */
  readonly status?: { readonly addresses?: readonly { readonly value?: string; readonly host?: string }[] };
}

const group = "networking.istio.io";

/** The kinds of Istio's networking API that Veil reads. A cluster may be without them: see `optional` of {@link InformerOptions}. */
export const istioNetworkingResources = {
  serviceEntries: resourceRef<ServiceEntry>({
    group,
    version: "v1",
    plural: "serviceentries",
    kind: "ServiceEntry",
    namespaced: true,
  }),
  workloadEntries: resourceRef<WorkloadEntry>({
    group,
    version: "v1",
    plural: "workloadentries",
    kind: "WorkloadEntry",
    namespaced: true,
  }),
} as const;
