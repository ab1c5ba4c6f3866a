import type { IpAddress } from "#base/ip";
import {
  objectKey,
  type EndpointSlice,
  type Gateway,
  type GatewayClass,
  type Namespace,
  type Node,
  type Pod,
  type Service as KubeService,
} from "#kube";
import type { Address, ServicePort, Workload } from "#model/workload";
import { type Cluster, type Problem } from "./cluster.ts";
import { endpointPorts, endpointWorkload, sliceFacts, type SliceFacts } from "./endpoint.ts";
import { EntryAddresses } from "./entry-addresses.ts";
import { Entries } from "./entries.ts";
import { Multimap } from "./multimap.ts";
import { isLive, nodeLocality, podIps, podWorkload, selects } from "./pod.ts";
import { PolicyDiscovery, type PolicyUpdate } from "./policies.ts";
import { Publications, type PublishedAddress } from "./publication.ts";
import { meshService, serviceFacts, type ServiceFacts } from "./service.ts";
import { WaypointPolicies, type Behind } from "./waypoint-policies.ts";
import { Waypoints } from "./waypoints.ts";

/** What changed since the last time: only objects whose published content is different. */
export interface DiscoveryUpdate {
  /** Services first, then workloads. */
  readonly upserts: readonly PublishedAddress[];
  readonly removes: readonly string[];
  readonly policies: Pick<PolicyUpdate, "upserts" | "removes" | "verdicts">;
  readonly problems: readonly Problem[];
}

const DEFAULT_ROOT_NAMESPACE = "istio-system";

interface PodEntry {
  readonly pod: Pod;
  readonly ips: readonly IpAddress[];
  readonly node: string;
}

/**
 * Turns Kubernetes objects into workloads and services, incrementally: an object that changes marks what depends on it,
 * and `flush` computes that and nothing else. Holds one entry per object that it was given.
 *
 *     Pod ─────────────▶ its workload; hand-made slices with its addresses
 *     Service ─────────▶ itself; the pods that its old or new selector selects; its hand-made slices
 *     EndpointSlice ───▶ (service without selector) endpoints that are no pods; the pods at its addresses
 *     Node ────────────▶ the pods on it (their locality)
 *     Namespace ───────▶ its pods and services (their waypoint)
 *     ServiceEntry, WorkloadEntry: see {@link Entries}
 *     Gateway, GatewayClass, the Service of a Gateway ──▶ whatever names it as its waypoint
 *     policies ────────▶ themselves; the pods of their namespace, or of the mesh (the policies that they list)
 */
export class Discovery {
  /** Istio's entries. */
  readonly entries: Entries;
  /** Addresses for those that have none. */
  readonly addresses = new EntryAddresses();
  /** Policies, and which of them a workload lists. */
  readonly policies: PolicyDiscovery;
  readonly #cluster: Cluster;
  readonly #pods = new Map<string, PodEntry>();
  readonly #podsOfNamespace = new Multimap<string, string>();
  readonly #podsOfNode = new Multimap<string, string>();
  readonly #podsAt = new Multimap<IpAddress, string>();
  readonly #services = new Map<string, { service: KubeService; facts: ServiceFacts | undefined }>();
  readonly #servicesOfNamespace = new Multimap<string, string>();
  readonly #slices = new Map<string, SliceFacts>();
  readonly #slicesOfService = new Multimap<string, string>();
  readonly #slicesAt = new Multimap<IpAddress, string>();
  readonly #localities = new Map<string, Workload["locality"]>();
  readonly #waypoints: Waypoints;
  readonly #enforced: WaypointPolicies;

  readonly #dirtyPods = new Set<string>();
  readonly #dirtyServices = new Set<string>();
  readonly #dirtySlices = new Set<string>();
  readonly #publications = new Publications();
  #problems: Problem[] = [];

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#waypoints = new Waypoints(cluster.network);
    this.#enforced = new WaypointPolicies(cluster, this.#waypoints, (...of) => this.policies.setWaypointPolicy(...of));
    this.entries = new Entries({
      cluster,
      waypoints: this.#waypoints,
      findService: (hostname) => this.#findService(hostname),
      servicesOf: (namespace) =>
        [...this.#servicesOfNamespace.get(namespace)].flatMap((key) => this.#services.get(key)?.facts ?? []),
      policiesOf: (namespace, labels, behind) => this.#policiesOf(namespace, labels, behind),
      markPods: (facts) => this.#markSelected(facts),
      markService: ({ namespace, name }) => void this.#dirtyServices.add(`${namespace}/${name}`),
    });
    this.policies = new PolicyDiscovery(cluster.rootNamespace ?? DEFAULT_ROOT_NAMESPACE, (namespace) => {
      const keys = namespace === undefined ? this.#pods.keys() : this.#podsOfNamespace.get(namespace);
      for (const key of keys) this.#dirtyPods.add(key);
      this.entries.namespaceChanged(namespace);
    });
  }

  /** True when `flush` has something to do. */
  get dirty(): boolean {
    const own = this.#dirtyPods.size + this.#dirtyServices.size + this.#dirtySlices.size;
    return own > 0 || this.policies.dirty || this.entries.dirty;
  }

  upsertPod(pod: Pod): void {
    const key = objectKey(pod);
    this.#dropPod(key);
    const { ips, problems } = podIps(pod);
    this.#problems.push(...problems);
    const entry = { pod, ips, node: pod.spec?.nodeName ?? "" };
    this.#pods.set(key, entry);
    this.#podsOfNamespace.add(pod.metadata?.namespace ?? "", key);
    this.#podsOfNode.add(entry.node, key);
    if (standsBehind(entry)) for (const ip of ips) this.#podsAt.add(ip, key);
    this.#podMoved(key, ips);
    this.#waypoints.use(`Pod ${key}`, Waypoints.named(pod.metadata ?? {}));
    this.#enforced.setPod(key, pod);
  }

  removePod(pod: Pod): void {
    this.#dropPod(objectKey(pod));
    this.#waypoints.use(`Pod ${objectKey(pod)}`, []);
    this.#enforced.setPod(objectKey(pod), undefined);
  }

  upsertService(service: KubeService): void {
    const key = objectKey(service);
    const facts = serviceFacts(service, this.#cluster);
    const { service: before, facts: old } = this.#services.get(key) ?? {};
    this.#services.set(key, { service, facts });
    this.#servicesOfNamespace.add(service.metadata?.namespace ?? "", key);
    this.#serviceChanged(key, old, facts);
    this.#waypoints.use(`Service ${key}`, Waypoints.named(service.metadata ?? {}));
    if (before !== undefined) this.#gatewayService(before, false);
    this.#gatewayService(service, true);
  }

  removeService(service: KubeService): void {
    const key = objectKey(service);
    const old = this.#services.get(key)?.facts;
    this.#services.delete(key);
    this.#servicesOfNamespace.delete(service.metadata?.namespace ?? "", key);
    this.#serviceChanged(key, old, undefined);
    this.#waypoints.use(`Service ${key}`, []);
    this.#gatewayService(service, false);
  }

  upsertEndpointSlice(slice: EndpointSlice): void {
    const key = objectKey(slice);
    this.#dropSlice(key);
    const read = sliceFacts(slice);
    if (read === undefined) return;
    this.#problems.push(...read.problems);
    this.#slices.set(key, read.facts);
    this.#slicesOfService.add(read.facts.service, key);
    for (const { ip } of read.facts.endpoints) this.#slicesAt.add(ip, key);
    this.#sliceChanged(key, read.facts);
  }

  removeEndpointSlice(slice: EndpointSlice): void {
    this.#dropSlice(objectKey(slice));
  }

  upsertNode(node: Node): void {
    this.#setLocality(node.metadata?.name ?? "", nodeLocality(node));
  }

  removeNode(node: Node): void {
    this.#setLocality(node.metadata?.name ?? "", nodeLocality(undefined));
    this.#localities.delete(node.metadata?.name ?? "");
  }

  upsertNamespace(namespace: Namespace): void {
    const { name = "", labels = {}, annotations = {} } = namespace.metadata ?? {};
    this.#waypoints.use(`Namespace ${name}`, Waypoints.named({ labels, namespace: name }));
    if (this.#waypoints.setNamespace(name, { labels, annotations })) this.#namespaceChanged(name);
  }

  removeNamespace(namespace: Namespace): void {
    const { name = "" } = namespace.metadata ?? {};
    this.#waypoints.use(`Namespace ${name}`, []);
    if (this.#waypoints.setNamespace(name, undefined)) this.#namespaceChanged(name);
  }

  upsertGateway(gateway: Gateway): void {
    this.entries.setGateway(objectKey(gateway), gateway);
    if (this.#waypoints.upsertGateway(gateway)) this.#waypointChanged(objectKey(gateway));
  }

  removeGateway(gateway: Gateway): void {
    this.entries.setGateway(objectKey(gateway), undefined);
    if (this.#waypoints.removeGateway(gateway)) this.#waypointChanged(objectKey(gateway));
  }

  upsertGatewayClass(gatewayClass: GatewayClass): void {
    for (const key of this.#waypoints.setClass(gatewayClass.metadata?.name ?? "", gatewayClass))
      this.#waypointChanged(key);
  }

  removeGatewayClass(gatewayClass: GatewayClass): void {
    for (const key of this.#waypoints.setClass(gatewayClass.metadata?.name ?? "", undefined))
      this.#waypointChanged(key);
  }

  /** Computes what the objects given since the last time change. */
  flush(): DiscoveryUpdate {
    const settle = (kind: string, dirty: Set<string>, make: (key: string) => readonly Address[]): void => {
      for (const key of dirty) this.#problems.push(...this.#publications.settle(`${kind} ${key}`, () => make(key)));
      dirty.clear();
    };
    const tell = (problem: Problem): void => void this.#problems.push(problem);
    const { entries } = this;
    settle("Gateway", entries.dirtyGateways, (key) => entries.computeGateway(key));
    settle("ServiceEntry", entries.dirtyEntries, (key) => entries.computeServiceEntry(key, tell));
    settle("Service", this.#dirtyServices, (key) => this.#computeService(key));
    settle("Pod", this.#dirtyPods, (key) => this.#computePod(key));
    settle("EndpointSlice", this.#dirtySlices, (key) => this.#computeSlice(key));
    settle("WorkloadEntry", entries.dirtyWorkloads, (key) => entries.computeWorkloadEntry(key, tell));
    const { problems: unenforced, ...policies } = this.policies.flush();
    const problems = [...this.#problems, ...unenforced];
    this.#problems = [];
    return { ...this.#publications.take(), policies, problems };
  }

  #computeService(key: string): readonly Address[] {
    const entry = this.#services.get(key);
    const made =
      entry &&
      meshService(entry.service, this.#cluster, {
        waypoints: this.#waypoints.ofService(entry.service),
        annotations: this.#waypoints.namespace(entry.service.metadata?.namespace ?? "").annotations,
        far: entry.facts === undefined ? [] : this.entries.farIdentities(entry.facts),
      });
    if (made === undefined) return [];
    this.#problems.push(...made.problems);
    return [made.service];
  }

  #computePod(key: string): readonly Address[] {
    const entry = this.#pods.get(key);
    if (entry === undefined) return [];
    const namespace = entry.pod.metadata?.namespace ?? "";
    const services = [...this.#servicesOfNamespace.get(namespace)].flatMap((service) => {
      const facts = this.#services.get(service)?.facts;
      return facts !== undefined && selects(facts.selector, entry.pod) ? [facts] : [];
    });
    services.push(...this.entries.selecting(namespace, entry.pod.metadata?.labels ?? {}));
    const { keys, waypoint, tunnel, problem } = this.#waypoints.ofWorkload(entry.pod);
    if (problem !== undefined)
      this.#problems.push({ object: `Pod ${key}`, field: "metadata.labels", message: problem });
    const workload = podWorkload(entry.pod, {
      waypoint,
      tunnel,
      cluster: this.#cluster,
      services,
      endpointPorts: standsBehind(entry) ? this.#portsAt(entry.ips) : {},
      locality: this.#localities.get(entry.node) ?? nodeLocality(undefined),
      policies: this.#policiesOf(namespace, entry.pod.metadata?.labels ?? {}, { keys, services }),
    });
    return workload === undefined ? [] : [workload];
  }

  #policiesOf(namespace: string, labels: Readonly<Record<string, string>>, behind: Behind): readonly string[] {
    return [...this.policies.listOf(namespace, labels), ...this.#enforced.namesFor(behind)].toSorted();
  }

  /** The endpoints of a hand-made slice that no pod stands behind. */
  #computeSlice(key: string): readonly Address[] {
    const slice = this.#slices.get(key);
    const service = slice && this.#handMade(slice);
    if (slice === undefined || service === undefined) return [];
    const seen = new Map(slice.endpoints.map((endpoint) => [endpoint.ip, endpoint]));
    return [...seen.values()]
      .filter(({ ip }) => [...this.#podsAt.get(ip)].length === 0)
      .map((endpoint) => endpointWorkload(slice, endpoint, { cluster: this.#cluster, service }));
  }

  /** Ports that hand-made slices give to addresses, by service. */
  #portsAt(ips: readonly IpAddress[]): Record<string, readonly ServicePort[]> {
    const ports: Record<string, readonly ServicePort[]> = {};
    for (const key of ips.flatMap((ip) => [...this.#slicesAt.get(ip)]).toSorted()) {
      const slice = this.#slices.get(key);
      const service = slice && this.#handMade(slice);
      if (slice !== undefined && service !== undefined) ports[service.key] = endpointPorts(slice, service);
    }
    return ports;
  }

  /** The service of a slice, when its endpoints are not found by labels. */
  #handMade(slice: SliceFacts): ServiceFacts | undefined {
    const facts = this.#services.get(slice.service)?.facts;
    return facts?.selector === undefined ? facts : undefined;
  }

  #dropPod(key: string): void {
    const old = this.#pods.get(key);
    if (old === undefined) return;
    this.#pods.delete(key);
    this.#podsOfNamespace.delete(old.pod.metadata?.namespace ?? "", key);
    this.#podsOfNode.delete(old.node, key);
    for (const ip of old.ips) this.#podsAt.delete(ip, key);
    this.#podMoved(key, old.ips);
  }

  #podMoved(key: string, ips: readonly IpAddress[]): void {
    this.#dirtyPods.add(key);
    for (const ip of ips) for (const slice of this.#slicesAt.get(ip)) this.#dirtySlices.add(slice);
  }

  #serviceChanged(key: string, old: ServiceFacts | undefined, now: ServiceFacts | undefined): void {
    this.#dirtyServices.add(key);
    if (JSON.stringify(old) === JSON.stringify(now)) return;
    for (const slice of this.#slicesOfService.get(key)) {
      const facts = this.#slices.get(slice);
      if (facts !== undefined) this.#sliceChanged(slice, facts);
    }
    for (const facts of [old, now]) {
      if (facts === undefined) continue;
      this.#markSelected(facts);
      this.entries.serviceChanged(facts);
    }
  }

  /** The Service of a hostname of the cluster. */
  #findService(hostname: string): ServiceFacts | undefined {
    const [name = "", namespace = ""] = hostname.split(".");
    const facts = this.#services.get(`${namespace}/${name}`)?.facts;
    return facts?.hostname === hostname ? facts : undefined;
  }

  #markSelected({ namespace, selector }: ServiceFacts): void {
    for (const key of this.#podsOfNamespace.get(namespace)) {
      const entry = this.#pods.get(key);
      if (entry !== undefined && selects(selector, entry.pod)) this.#dirtyPods.add(key);
    }
  }

  #dropSlice(key: string): void {
    const old = this.#slices.get(key);
    if (old === undefined) return;
    this.#slices.delete(key);
    this.#slicesOfService.delete(old.service, key);
    for (const { ip } of old.endpoints) this.#slicesAt.delete(ip, key);
    this.#sliceChanged(key, old);
  }

  #sliceChanged(key: string, { endpoints }: SliceFacts): void {
    this.#dirtySlices.add(key);
    for (const { ip } of endpoints) for (const pod of this.#podsAt.get(ip)) this.#dirtyPods.add(pod);
  }

  #gatewayService(service: KubeService, isThere: boolean): void {
    const facts = serviceFacts(service, this.#cluster);
    if (facts === undefined) return;
    for (const key of this.#waypoints.setService(service, facts.hostname, isThere)) this.#waypointChanged(key);
  }

  #waypointChanged(waypoint: string): void {
    this.#enforced.waypointChanged(waypoint);
    for (const user of this.#waypoints.usersOf(waypoint)) {
      const [kind, key = ""] = user.split(" ");
      if (kind === "Pod") this.#dirtyPods.add(key);
      else if (kind === "Service") this.#serviceWaypointChanged(key);
      else if (kind === "ServiceEntry") this.entries.waypointChanged(key);
      else if (kind === "WorkloadEntry") this.entries.dirtyWorkloads.add(key);
      else this.#namespaceChanged(key);
    }
  }

  #serviceWaypointChanged(key: string): void {
    this.#dirtyServices.add(key);
    const facts = this.#services.get(key)?.facts;
    if (facts === undefined) return;
    this.#markSelected(facts);
    this.entries.serviceChanged(facts);
  }

  /** Whatever of its objects may depend on it is looked at again; only what comes out different is published. */
  #namespaceChanged(name: string): void {
    for (const key of this.#podsOfNamespace.get(name)) this.#dirtyPods.add(key);
    for (const key of this.#servicesOfNamespace.get(name)) this.#dirtyServices.add(key);
    this.entries.namespaceChanged(name);
  }

  #setLocality(node: string, locality: Workload["locality"]): void {
    if (JSON.stringify(this.#localities.get(node)) === JSON.stringify(locality)) return;
    this.#localities.set(node, locality);
    for (const pod of this.#podsOfNode.get(node)) this.#dirtyPods.add(pod);
  }
}

/** True when a connection to the pod's addresses reaches this pod and no other. */
function standsBehind({ pod }: PodEntry): boolean {
  return isLive(pod) && pod.spec?.hostNetwork !== true;
}
