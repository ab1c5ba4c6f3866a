import { findIp, type IpAddress } from "#base/ip";
import { isReadyPod, type KubeObject, type Node, type Pod } from "#kube";
import { REDIRECTION_ANNOTATION } from "#model/redirection";
import type { ApplicationTunnel, GatewayAddress, ServicePort, Workload } from "#model/workload";
import { podUid, type Cluster, type Problem } from "./cluster.ts";
import type { ServiceFacts } from "./service.ts";

const CANONICAL_NAME_LABELS = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
const CANONICAL_REVISION_LABELS = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/** `http` on a pod that speaks HBONE itself, as waypoints do. */
export const TUNNEL_LABEL = "networking.istio.io/tunnel";

const NO_METADATA: { name: string; namespace: string; labels: Labels; annotations: Labels } = {
  name: "",
  namespace: "",
  labels: {},
  annotations: {},
};

type Labels = Readonly<Record<string, string>>;

/** What a pod's workload takes from other objects. */
export interface PodSurroundings {
  readonly cluster: Cluster;
  /** The services that select the pod. */
  readonly services: readonly ServiceFacts[];
  /** Ports that hand-made EndpointSlices give to the pod's addresses, by service key. */
  readonly endpointPorts: Readonly<Record<string, readonly ServicePort[]>>;
  readonly locality: Workload["locality"];
  readonly waypoint: GatewayAddress | undefined;
  /** How it takes tunnels, when it is a waypoint itself. */
  readonly tunnel: ApplicationTunnel | undefined;
  /** Names of the policies that apply to it alone. */
  readonly policies: readonly string[];
}

/** True when an object is selected by its labels. No selector selects nothing. */
export function selects(selector: Labels | undefined, object: KubeObject): boolean {
  const labels = object.metadata?.labels ?? {};
  return selector !== undefined && Object.entries(selector).every(([name, value]) => labels[name] === value);
}

/** A pod that has ended is no workload any more. */
export function isLive(pod: Pod): boolean {
  return pod.status?.phase !== "Succeeded" && pod.status?.phase !== "Failed";
}

/** The addresses of a pod, and what is wrong with the others. */
export function podIps(pod: Pod): { ips: readonly IpAddress[]; problems: readonly Problem[] } {
  const { podIP, podIPs } = pod.status ?? {};
  const texts = podIPs?.map(({ ip }) => ip ?? "") ?? [];
  if (texts.length === 0 && podIP !== undefined && podIP !== "") texts.push(podIP);
  const problems: Problem[] = [];
  const ips = texts.flatMap((text, i) => {
    const ip = findIp(text);
    if (ip === undefined) {
      problems.push({ object: podName(pod), field: `status.podIPs[${i}]`, message: `"${text}" is no IP address` });
    }
    return ip === undefined ? [] : [ip];
  });
  return { ips: [...new Set(ips)], problems };
}

/** The mesh's view of a pod. Undefined while it has no address, and when it has ended. */
export function podWorkload(pod: Pod, around: PodSurroundings): Workload | undefined {
  const { ips } = podIps(pod);
  if (!isLive(pod) || ips.length === 0) return undefined;
  const { name, namespace, labels, annotations } = { ...NO_METADATA, ...pod.metadata };
  const { cluster } = around;
  const isNative = labels[TUNNEL_LABEL] === "http";
  const workloadName = ownerName(pod);
  return {
    kind: "workload",
    uid: podUid(cluster, namespace, name),
    name,
    namespace,
    addresses: ips,
    hostname: "",
    network: cluster.network,
    tunnelProtocol: isNative || annotations[REDIRECTION_ANNOTATION] === "enabled" ? "hbone" : "none",
    trustDomain: cluster.trustDomain,
    serviceAccount: pod.spec?.serviceAccountName || "default",
    waypoint: around.waypoint,
    networkGateway: undefined,
    node: pod.spec?.nodeName ?? "",
    ...canonicalLabels(labels, workloadName),
    workloadType: "pod", // as istiod does, whatever the owner
    workloadName,
    nativeTunnel: isNative,
    services: { ...around.endpointPorts, ...selectedPorts(pod, around.services) },
    authorizationPolicies: around.policies,
    healthy: pod.metadata?.deletionTimestamp === undefined && isReadyPod(pod),
    clusterId: cluster.clusterId,
    locality: around.locality,
    hostNetwork: pod.spec?.hostNetwork === true,
    capacity: 1,
    applicationTunnel: around.tunnel,
  };
}

/** How a workload is named in telemetry. */
export function canonicalLabels(
  labels: Labels,
  workloadName: string,
): Pick<Workload, "canonicalName" | "canonicalRevision"> {
  return {
    canonicalName: firstOf(labels, CANONICAL_NAME_LABELS) ?? workloadName,
    canonicalRevision: firstOf(labels, CANONICAL_REVISION_LABELS) ?? "latest",
  };
}

/** Region, zone and subzone of a node, from its labels. */
export function nodeLocality(node: Node | undefined): Workload["locality"] {
  const labels = node?.metadata?.labels ?? {};
  return {
    region: labels["topology.kubernetes.io/region"] ?? "",
    zone: labels["topology.kubernetes.io/zone"] ?? "",
    subzone: labels["topology.istio.io/subzone"] ?? "",
  };
}

/** For messages. */
function podName(pod: Pod): string {
  return `Pod ${pod.metadata?.namespace ?? ""}/${pod.metadata?.name ?? ""}`;
}

function selectedPorts(pod: Pod, services: readonly ServiceFacts[]): Record<string, ServicePort[]> {
  return Object.fromEntries(
    services.map(({ key, ports }) => [
      key,
      ports.flatMap(({ name, servicePort, target, byName }) => {
        const named = byName === true && name !== "" ? containerPort(pod, name) : undefined;
        const targetPort = named ?? (typeof target === "number" ? target : containerPort(pod, target));
        return targetPort === undefined ? [] : [{ servicePort, targetPort }];
      }),
    ]),
  );
}

/** The number of a named TCP port, from the containers and from the init containers that keep running. */
function containerPort(pod: Pod, name: string): number | undefined {
  const { containers = [], initContainers = [] } = pod.spec ?? {};
  const sidecars = initContainers.filter(({ restartPolicy }) => restartPolicy === "Always");
  const ports = [...containers, ...sidecars].flatMap((container) => container.ports ?? []);
  return ports.find((port) => port.name === name && (port.protocol ?? "TCP") === "TCP")?.containerPort;
}

/** The name of what made the pod: the Deployment rather than its ReplicaSet, the CronJob rather than its Job. */
function ownerName(pod: Pod): string {
  const { name = "", labels = {}, ownerReferences = [] } = pod.metadata ?? {};
  const owner = ownerReferences.find(({ controller }) => controller === true);
  if (owner === undefined) return name;
  const hash = labels["pod-template-hash"];
  if (owner.kind === "ReplicaSet" && hash !== undefined && owner.name.endsWith(`-${hash}`)) {
    return owner.name.slice(0, -hash.length - 1);
  }
  return owner.kind === "Job" ? owner.name.replace(/-\d{8,10}$/, "") : owner.name;
}

function firstOf(labels: Readonly<Record<string, string>>, names: readonly string[]): string | undefined {
  return names.map((name) => labels[name]).find((value) => value !== undefined && value !== "");
}
