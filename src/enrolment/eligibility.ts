import { DATAPLANE_MODE_LABEL, ENROL_LABELS, MTLS_LABEL } from "#model/enrol-labels";
import type { CaptureOptions } from "./redirection.ts";

/** The parts of a pod (and of its namespace) that decide on its enrolment. */
export interface PodFacts {
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly hostNetwork: boolean;
  readonly phase: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  /** Ports at which the kubelet asks whether the pod is well; they decide nothing. Default: none. */
  readonly probePorts?: readonly number[];
}

/** Says whether a pod is to be enrolled, and in one word why. */
export interface Eligibility {
  readonly eligible: boolean;
  readonly reason:
    | "pod_label"
    | "namespace_label"
    | "not_labelled"
    | "pod_opts_out"
    | "host_network"
    | "sidecar"
    | "namespace_excluded"
    | "leaving"
    | "ended";
}

/** Where Veil is installed, unless it is said. */
const VEIL_NAMESPACE = "veil-system";

const SIDECAR_ANNOTATION = "sidecar.istio.io/status";
const DNS_CAPTURE_ANNOTATION = "ambient.istio.io/dns-capture";
const BYPASS_INBOUND_ANNOTATION = "ambient.istio.io/bypass-inbound-capture";
const VIRTUAL_INTERFACES_ANNOTATION = "istio.io/reroute-virtual-interfaces";
/** What the kernel takes as a name (15 bytes), without what nft reads as syntax. */
const INTERFACE_NAME = /^[A-Za-z0-9_.:-]{1,15}$/;
/** Interfaces of virtual machines in one pod; further ones are left out. */
const MAX_VIRTUAL_INTERFACES = 16;

/**
 * Decides whether a pod is to be enrolled. What a pod says for itself comes before what its namespace says, and an opt-out before
 * an opt-in; values that mean nothing to us are as if they were not there. `veilNamespace`: where Veil is installed.
 */
export function decideEligibility(
  pod: PodFacts,
  namespaceLabels: Readonly<Record<string, string>>,
  veilNamespace?: string,
): Eligibility {
  if (pod.phase === "Succeeded" || pod.phase === "Failed") return { eligible: false, reason: "ended" };
  if (pod.hostNetwork) return { eligible: false, reason: "host_network" };
  if (pod.annotations[SIDECAR_ANNOTATION] !== undefined) return { eligible: false, reason: "sidecar" };
  if (isExcluded(pod.namespace, veilNamespace)) return { eligible: false, reason: "namespace_excluded" };
  const own = readLabels(pod.labels);
  if (own === "out") return { eligible: false, reason: "pod_opts_out" };
  if (own === "in") return { eligible: true, reason: "pod_label" };
  if (readLabels(namespaceLabels) === "in") return { eligible: true, reason: "namespace_label" };
  return { eligible: false, reason: "not_labelled" };
}

/** Whether no pod of that namespace is ever enrolled: Kubernetes' own, and Veil's, without which nothing would come back. */
export function isExcluded(namespace: string, veilNamespace = VEIL_NAMESPACE): boolean {
  return namespace === "kube-system" || namespace === veilNamespace;
}

/**
 * What a pod's annotations say about the capture of its connections; `dns` is whether DNS is captured of a pod that does not say. Names
 * that no interface can have are left out.
 */
export function captureOptions({ annotations }: PodFacts, dns: boolean): Required<CaptureOptions> {
  const ownDns = annotations[DNS_CAPTURE_ANNOTATION];
  const names = (annotations[VIRTUAL_INTERFACES_ANNOTATION] ?? "").split(",").map((name) => name.trim());
  return {
    inbound: annotations[BYPASS_INBOUND_ANNOTATION] !== "true",
    dns: ownDns === "true" || (ownDns !== "false" && dns),
    virtualInterfaces: [...new Set(names.filter((name) => INTERFACE_NAME.test(name)))].slice(0, MAX_VIRTUAL_INTERFACES),
  };
}

/** Labels without those of {@link ENROL_LABELS} that are not `heeded`: they are somebody else's. */
export function heededLabels(
  labels: Readonly<Record<string, string>>,
  heeded: readonly string[],
): Readonly<Record<string, string>> {
  const ignored = ENROL_LABELS.filter((label) => label in labels && !heeded.includes(label));
  if (ignored.length === 0) return labels;
  return Object.fromEntries(Object.entries(labels).filter(([label]) => !ignored.includes(label)));
}

/**
 * Enrolment labels whose value means nothing, each as `label=value (what it can be)`: they enrol nobody, and somebody thinks that they
 * do.
 */
export function misreadLabels(labels: Readonly<Record<string, string>>): string[] {
  const meanings = { [DATAPLANE_MODE_LABEL]: ["ambient", "none"], [MTLS_LABEL]: ["true", "false"] };
  return Object.entries(meanings).flatMap(([label, values]) => {
    const value = labels[label];
    if (value === undefined || values.includes(value)) return [];
    return [`${label}=${value} (it can be ${values.join(" or ")})`];
  });
}

function readLabels(labels: Readonly<Record<string, string>>): "in" | "out" | undefined {
  const mode = labels[DATAPLANE_MODE_LABEL];
  const mtls = labels[MTLS_LABEL];
  if (mode === "none" || mtls === "false") return "out";
  return mode === "ambient" || mtls === "true" ? "in" : undefined;
}
