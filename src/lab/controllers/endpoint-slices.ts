import { isKubeError, isReadyPod, objectKey, resources, type EndpointSlice, type Pod, type Service } from "#kube";
import { controllerReference, meetsSelector, sameJson, splitKey, type Cluster, type Controller } from "./cluster.ts";
import { WorkQueue } from "./work-queue.ts";

const SERVICE_LABEL = "kubernetes.io/service-name";
const MANAGER_LABEL = "endpointslice.kubernetes.io/managed-by";
const MANAGER = "veil-lab-controllers";
/** As Kubernetes: a larger service has several slices. */
const MAX_ENDPOINTS = 100;

type SlicePort = NonNullable<EndpointSlice["ports"]>[number];
type Endpoint = NonNullable<EndpointSlice["endpoints"]>[number];

/** What a slice says, without its metadata. */
export interface SliceContent {
  readonly ports: readonly SlicePort[];
  readonly endpoints: readonly Endpoint[];
}

/**
 * The slices of a service: one per set of port numbers (named ports may differ from pod to pod), each of at most 100
 * endpoints, in a fixed order. A service without a selector has none: somebody else writes its slices.
 */
export function planSlices(service: Service, pods: readonly Pod[]): SliceContent[] {
  const selector = service.spec?.selector;
  if (selector === undefined || Object.keys(selector).length === 0) return [];
  const groups = new Map<string, { ports: SlicePort[]; endpoints: Endpoint[] }>();
  const chosen = pods.filter(
    (pod) => isEndpoint(pod) && meetsSelector({ matchLabels: selector }, pod.metadata?.labels ?? {}),
  );
  for (const pod of chosen.toSorted((a, b) => (objectKey(a) < objectKey(b) ? -1 : 1))) {
    const ports = portsOf(service, pod);
    const key = JSON.stringify(ports);
    const group = groups.get(key) ?? { ports, endpoints: [] };
    group.endpoints.push(endpointOf(service, pod));
    groups.set(key, group);
  }
  return [...groups.values()].flatMap(({ ports, endpoints }) =>
    Array.from({ length: Math.ceil(endpoints.length / MAX_ENDPOINTS) }, (_, index) => ({
      ports,
      endpoints: endpoints.slice(index * MAX_ENDPOINTS, (index + 1) * MAX_ENDPOINTS),
    })),
  );
}

function isEndpoint(pod: Pod): boolean {
  const { phase, podIP } = pod.status ?? {};
  return podIP !== undefined && podIP !== "" && phase !== "Succeeded" && phase !== "Failed";
}

function portsOf(service: Service, pod: Pod): SlicePort[] {
  return (service.spec?.ports ?? []).flatMap(({ name = "", protocol = "TCP", port, targetPort }): SlicePort[] => {
    const number = targetNumber(pod, targetPort ?? port);
    return number === undefined ? [] : [{ name, protocol, port: number }];
  });
}

function targetNumber(pod: Pod, target: number | string): number | undefined {
  if (typeof target === "number") return target;
  const containers = pod.spec?.containers ?? [];
  return containers.flatMap(({ ports = [] }) => ports).find(({ name }) => name === target)?.containerPort;
}

function endpointOf(service: Service, pod: Pod): Endpoint {
  const { name = "", namespace = "", uid = "", deletionTimestamp } = pod.metadata ?? {};
  const { nodeName = "" } = pod.spec ?? {};
  const terminating = deletionTimestamp !== undefined;
  const serving = isReadyPod(pod);
  const published = service.spec?.publishNotReadyAddresses === true;
  return {
    addresses: [pod.status?.podIP ?? ""],
    conditions: { ready: published || (serving && !terminating), serving, terminating },
    nodeName,
    targetRef: { kind: "Pod", name, namespace, uid },
    ...hostnameOf(service, pod),
  };
}

/** A pod that names the service as its subdomain has a name of its own below it. */
function hostnameOf(service: Service, pod: Pod): { hostname?: string } {
  const { hostname, subdomain } = pod.spec ?? {};
  return hostname !== undefined && subdomain === service.metadata?.name ? { hostname } : {};
}

/** Keeps the EndpointSlices of services with a selector. */
export class EndpointSlices implements Controller {
  readonly #cluster: Cluster;
  readonly #queue: WorkQueue;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#queue = new WorkQueue((key) => this.#reconcile(key), { name: "endpointslices", ...cluster });
    cluster.services.on({
      upserted: (service) => this.#queue.add(objectKey(service)),
      deleted: (service) => this.#queue.add(objectKey(service)),
    });
    cluster.pods.on({
      upserted: (pod, old) => this.#addServicesOf(pod, old),
      deleted: (pod) => this.#addServicesOf(pod, undefined),
    });
    const addService = (slice: EndpointSlice): void => {
      const name = slice.metadata?.labels?.[SERVICE_LABEL];
      if (name !== undefined && isOwn(slice)) this.#queue.add(`${slice.metadata?.namespace ?? ""}/${name}`);
    };
    cluster.slices.on({ upserted: addService, deleted: addService });
  }

  stop(): void {
    this.#queue.stop();
  }

  #addServicesOf(pod: Pod, old: Pod | undefined): void {
    for (const service of this.#cluster.services.list()) {
      if (service.metadata?.namespace !== pod.metadata?.namespace) continue;
      const selector = { matchLabels: service.spec?.selector ?? {} };
      const isChosen = [pod, old].some(
        (one) => one !== undefined && meetsSelector(selector, one.metadata?.labels ?? {}),
      );
      if (isChosen) this.#queue.add(objectKey(service));
    }
  }

  async #reconcile(key: string): Promise<void> {
    const { namespace, name } = splitKey(key);
    const { services, pods, slices } = this.#cluster;
    const service = services.get(name, namespace);
    const own = slices.list().filter((slice) => isOwn(slice) && belongsTo(slice, namespace, name));
    const inNamespace = pods.list().filter((pod) => pod.metadata?.namespace === namespace);
    const plan = service === undefined ? [] : planSlices(service, inNamespace);
    const names = plan.map((_, index) => (index === 0 ? `${name}-lab` : `${name}-lab-${index}`));
    for (const [index, content] of plan.entries()) {
      if (service !== undefined) await this.#write(service, names[index] ?? "", content);
    }
    for (const slice of own.filter((one) => !names.includes(one.metadata?.name ?? ""))) await this.#delete(slice);
  }

  async #write(service: Service, name: string, content: SliceContent): Promise<void> {
    const { client, slices } = this.#cluster;
    const { namespace = "", name: serviceName = "" } = service.metadata ?? {};
    const known = slices.get(name, namespace);
    const { ports, endpoints } = content;
    if (known !== undefined && sameJson([known.ports ?? [], known.endpoints ?? []], [ports, endpoints])) return;
    const slice: EndpointSlice = {
      metadata: {
        name,
        namespace,
        labels: { [SERVICE_LABEL]: serviceName, [MANAGER_LABEL]: MANAGER },
        ownerReferences: controllerReference(service),
        ...(known?.metadata?.resourceVersion === undefined ? {} : { resourceVersion: known.metadata.resourceVersion }),
      },
      addressType: "IPv4",
      ports: [...ports],
      endpoints: [...endpoints],
    };
    if (known === undefined) await client.create(resources.endpointSlices, slice);
    else await client.replace(resources.endpointSlices, slice);
  }

  async #delete(slice: EndpointSlice): Promise<void> {
    const { name = "", namespace } = slice.metadata ?? {};
    try {
      await this.#cluster.client.delete(resources.endpointSlices, { name, namespace });
    } catch (error) {
      if (!isKubeError(error, "KUBE_NOT_FOUND")) throw error;
    }
  }
}

function isOwn(slice: EndpointSlice): boolean {
  return slice.metadata?.labels?.[MANAGER_LABEL] === MANAGER;
}

function belongsTo(slice: EndpointSlice, namespace: string, service: string): boolean {
  return slice.metadata?.namespace === namespace && slice.metadata.labels?.[SERVICE_LABEL] === service;
}
