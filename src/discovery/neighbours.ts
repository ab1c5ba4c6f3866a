import type { Pod } from "#kube";

/** Another that encrypts, enrols or routes on the same cluster. */
export interface Neighbour {
  readonly name: string;
  readonly isPod: (pod: Pod, ownNamespace: string) => boolean;
  /** What it means for both, and what to do. */
  readonly advice: string;
}

const hasLabel =
  (label: string, value: string) =>
  ({ metadata }: Pod): boolean =>
    metadata?.labels?.[label] === value;

const VEIL = ["veil-agent", "veil-controller"];

/** By the labels that their charts give to their pods, whatever the namespace. */
export const NEIGHBOURS = {
  istio: {
    name: "Istio",
    isPod: hasLabel("app", "istiod"),
    advice:
      "pods with its sidecar are left to it; AuthorizationPolicies and PeerAuthentications count for both; ConfigMap istio-ca-root-cert is left to it: Veil's own parts use veil-ca-root-cert; pods that mount Veil's roots need another name (chart value trustBundle)",
  },
  ambient: {
    name: "Istio's ambient mode",
    isPod: hasLabel("k8s-app", "istio-cni-node"),
    advice:
      "it enrols what carries istio.io/dataplane-mode=ambient, too: let Veil enrol by io.cilium/mtls-enabled alone (chart value enrolLabels)",
  },
  cilium: {
    name: "Cilium",
    isPod: hasLabel("k8s-app", "cilium"),
    advice: "its network policies are enforced by it alone; they must let in TCP 15008 between enrolled pods",
  },
  ciliumMtls: {
    name: "Cilium's mutual TLS",
    isPod: ({ metadata }) =>
      metadata?.namespace === "kube-system" && metadata.name?.startsWith("ztunnel-cilium-") === true,
    advice:
      "it enrols what carries io.cilium/mtls-enabled=true, too: let Veil enrol by istio.io/dataplane-mode alone (chart value enrolLabels)",
  },
  veil: {
    name: "another Veil",
    isPod: (pod, own) => pod.metadata?.namespace !== own && VEIL.some((app) => hasLabel("app", app)(pod)),
    advice: "both enrol the same pods: uninstall one of the two",
  },
} as const satisfies Readonly<Record<string, Neighbour>>;
