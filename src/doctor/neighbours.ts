import { INSTALLED } from "#install";
import type { ConfigMap, DaemonSet, Deployment, Namespace } from "#kube";
import { DATAPLANE_MODE_LABEL, MTLS_LABEL } from "#model/enrol-labels";
import { count, someOf, voiceOf, type Finding } from "./finding.ts";

const voice = voiceOf("neighbours");

/** What runs beside Veil. */
export interface Neighbourhood {
  /** Where Veil is installed. */
  readonly namespace: string;
  readonly daemonSets: readonly DaemonSet[];
  readonly deployments: readonly Deployment[];
  readonly namespaces: readonly Namespace[];
  /** `kube-system/cilium-config`. */
  readonly ciliumConfig: ConfigMap | undefined;
}

/** Others that would enrol the same pods, or undo what Veil does on a node. */
export function checkNeighbours(around: Neighbourhood): readonly Finding[] {
  const findings = [...otherVeils(around), ...istio(around), ...cilium(around)];
  return findings.length > 0
    ? findings
    : [voice.ok("no other Veil, no Istio, and no Cilium that would act on the same pods")];
}

function placesOf(objects: readonly (DaemonSet | Deployment)[], name: string): string[] {
  return objects.filter(({ metadata }) => metadata?.name === name).map(({ metadata }) => metadata?.namespace ?? "");
}

function otherVeils({ namespace, daemonSets, deployments }: Neighbourhood): Finding[] {
  const agents = placesOf(daemonSets, INSTALLED.agent.app);
  const places = new Set([...agents, ...placesOf(deployments, INSTALLED.controller.app)]);
  places.delete(namespace);
  if (places.size === 0) return [];
  return [
    voice.problem(
      `Veil is installed in ${someOf([...places])}, too: two agents of a node enrol the same pods, under two authorities`,
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
function istio({ namespace, daemonSets, deployments, namespaces }: Neighbourhood): Finding[] {
  const agents = placesOf(daemonSets, "istio-cni-node");
  const ztunnels = placesOf(daemonSets, INSTALLED.proxy.app).filter((place) => place !== namespace);
  const control = placesOf(deployments, "istiod");
  const places = [...new Set([...agents, ...ztunnels, ...control])];
  if (places.length === 0) return [];
  const shared = labelled(namespaces, DATAPLANE_MODE_LABEL, "ambient");
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

function cilium({ daemonSets, namespaces, ciliumConfig }: Neighbourhood): Finding[] {
  const findings: Finding[] = [];
  if (ciliumConfig?.data?.["cni-exclusive"] === "true") {
    findings.push(
      voice.problem(
        "Cilium removes other programs' CNI configuration (cni-exclusive of kube-system/cilium-config): new pods start without Veil",
        "set cni.exclusive=false in Cilium's values",
      ),
    );
  }
  const shared = labelled(namespaces, MTLS_LABEL, "true");
  const ztunnel =
    daemonSets.some(({ metadata }) => metadata?.name === "ztunnel-cilium") ||
    ciliumConfig?.data?.["enable-ztunnel"] === "true";
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
