import { isLive, NEIGHBOURS, type Neighbour } from "#discovery";
import type { ConfigMap, Namespace } from "#kube";
import { DATAPLANE_MODE_LABEL, MTLS_LABEL } from "#model/enrol-labels";
import { PROBE_SOURCES } from "#enrolment";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";
import type { ClusterInformation, FelixConfiguration } from "./kinds.ts";
import type { JudgedPod } from "./pods.ts";

const voice = voiceOf("neighbours");

/** What runs beside Veil. */
export interface Neighbourhood {
  /** Where Veil is installed. */
  readonly namespace: string;
  readonly pods: readonly Pick<JudgedPod, "pod" | "namespace">[];
  readonly namespaces: readonly Namespace[];
  /** `kube-system/cilium-config`. */
  readonly ciliumConfig: ConfigMap | undefined;
  /** Calico's, none where it is not. */
  readonly felix: readonly FelixConfiguration[];
  readonly calico: readonly ClusterInformation[];
}

/** Others that would enrol the same pods, or undo what Veil does on a node. */
export function checkNeighbours(around: Neighbourhood): readonly Finding[] {
  const findings = [...otherVeils(around), ...istio(around), ...cilium(around), ...calico(around)];
  return findings.length > 0
    ? findings
    : [voice.ok("no other Veil, no Istio, and no Cilium that would act on the same pods")];
}

/** The namespaces where pods of theirs are. */
function placesOf({ pods, namespace }: Neighbourhood, neighbour: Neighbour): string[] {
  const theirs = pods.filter(({ pod }) => isLive(pod) && neighbour.isPod(pod, namespace));
  return [...new Set(theirs.map((pod) => pod.namespace))];
}

function otherVeils(around: Neighbourhood): Finding[] {
  const places = placesOf(around, NEIGHBOURS.veil);
  if (places.length === 0) return [];
  return [
    voice.problem(
      `Veil is installed in ${someOf(places)}, too: two agents of a node enrol the same pods, under two authorities`,
      "uninstall one of them (helm uninstall, docs/upgrade.md)",
    ),
  ];
}

function labelled(namespaces: readonly Namespace[], label: string, value: string): string[] {
  return namespaces
    .filter(({ metadata }) => metadata?.labels?.[label] === value)
    .map(({ metadata }) => metadata?.name ?? "");
}

/** Istio's own agents act on `istio.io/dataplane-mode=ambient`, its webhook on `istio-injection`. */
function istio(around: Neighbourhood): Finding[] {
  const agents = placesOf(around, NEIGHBOURS.ambient);
  const places = [...new Set([...agents, ...placesOf(around, NEIGHBOURS.istio)])];
  if (places.length === 0) return [];
  const shared = labelled(around.namespaces, DATAPLANE_MODE_LABEL, "ambient");
  if (agents.length > 0 && shared.length > 0) {
    return [
      voice.problem(
        `Istio's agents (${someOf(places)}) and Veil's both enrol ${count(shared.length, "namespace")} labelled istio.io/dataplane-mode=ambient: ${someOf(shared)}`,
        "label for Veil with io.cilium/mtls-enabled=true, and leave istio.io/dataplane-mode to Istio, or uninstall one of them",
      ),
    ];
  }
  return [
    voice.warning(
      `Istio is installed (${someOf(places)}): where its agents are, they enrol what is labelled istio.io/dataplane-mode=ambient, too`,
      "label for Veil with io.cilium/mtls-enabled=true",
    ),
  ];
}

function cilium(around: Neighbourhood): Finding[] {
  const { namespaces, ciliumConfig } = around;
  const findings: Finding[] = [];
  if (ciliumConfig?.data?.["cni-exclusive"] === "true") {
    findings.push(
      voice.problem(
        "Cilium removes other programs' CNI configuration (cni-exclusive of kube-system/cilium-config): new pods start without Veil",
        "set cni.exclusive=false in Cilium's values",
      ),
    );
  }
  if (ciliumConfig?.data?.["enable-bpf-masquerade"] === "true") {
    findings.push(
      voice.problem(
        `Cilium masquerades by BPF (enable-bpf-masquerade of kube-system/cilium-config): answers to kubelets' probes of enrolled pods, whose source is ${PROBE_SOURCES.v4}, do not come back`,
        "set bpf.masquerade=false in Cilium's values: it masquerades by iptables then (docs/platforms.md)",
      ),
    );
  }
  const shared = labelled(namespaces, MTLS_LABEL, "true");
  const ztunnel =
    placesOf(around, NEIGHBOURS.ciliumMtls).length > 0 || ciliumConfig?.data?.["enable-ztunnel"] === "true";
  if (ztunnel && shared.length > 0) {
    findings.push(
      voice.problem(
        `Cilium's own mutual TLS (ztunnel-cilium) and Veil both enrol ${count(shared.length, "namespace")} labelled io.cilium/mtls-enabled=true: ${someOf(shared)}`,
        "use one of the two, or label for Veil with istio.io/dataplane-mode=ambient",
      ),
    );
  }
  return findings;
}

/** The first minor version of Calico whose BPF programs let link-local sources through (its release notes). */
const CALICO_MINOR = 29;

function calico({ felix, calico: clusters }: Neighbourhood): Finding[] {
  const isBpf = felix.some(({ spec }) => spec?.bpfEnabled === true);
  const version = clusters.map(({ spec }) => spec?.calicoVersion ?? "").join("");
  const minor = /^v?3[.](\d+)[.]/.exec(version)?.[1];
  if (!isBpf || minor === undefined || Number(minor) >= CALICO_MINOR) return [];
  return [
    voice.problem(
      `Calico ${version} judges packets by BPF: it drops kubelets' probes of enrolled pods, whose source is ${PROBE_SOURCES.v4}`,
      `upgrade Calico to 3.${CALICO_MINOR}, or turn its eBPF mode off (docs/platforms.md)`,
    ),
  ];
}
