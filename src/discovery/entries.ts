import { objectKey, type Gateway, type ServiceEntry, type WorkloadEntry, type WorkloadEntrySpec } from "#kube";
import { formatSpiffeId } from "#model/spiffe-id";
import type { Address } from "#model/workload";
import { entryEndpointUid, workloadEntryUid, type Cluster, type Problem } from "./cluster.ts";
import { Multimap } from "./multimap.ts";
import { NetworkGateways } from "./network-gateways.ts";
import { selects } from "./pod.ts";
import {
  entryFacts,
  entryProblems,
  entryService,
  isExported,
  isOlder,
  isReachable,
  type EntryFacts,
} from "./service-entry.ts";
import type { ServiceFacts } from "./service.ts";
import type { Behind } from "./waypoint-policies.ts";
import { Waypoints } from "./waypoints.ts";
import { entryLabels, entryWorkload } from "./workload-entry.ts";

const API_VERSION = "networking.istio.io/v1";

/** What Istio's entries look at, and tell, of the other objects. */
export interface EntryWorld {
  readonly cluster: Cluster;
  readonly waypoints: Waypoints;
  /** The Kubernetes Service of a hostname. */
  findService(hostname: string): ServiceFacts | undefined;
  /** The Kubernetes Services of a namespace. */
  servicesOf(namespace: string): readonly ServiceFacts[];
  /** The policies that a workload lists. */
  policiesOf(namespace: string, labels: Readonly<Record<string, string>>, behind: Behind): readonly string[];
  /** The pods that these services select are to be looked at again. */
  markPods(facts: ServiceFacts): void;
  /** A Kubernetes Service is to be looked at again. */
  markService(facts: ServiceFacts): void;
}

/**
 * ServiceEntries and WorkloadEntries, as far as they depend on each other and on Kubernetes' Services:
 *
 *     ServiceEntry ───▶ a service for each host; its own endpoints; the pods and WorkloadEntries that it selects;
 *                       other entries of the same host (who is canonical, who has the name in its namespace)
 *     WorkloadEntry ──▶ its workload
 *                       (on another network) the services that select it: who answers for them there
 *     Service ────────▶ the entries of its hostname; the WorkloadEntries of its namespace
 *     Gateway ────────▶ what is on the networks that it enters
 */
export class Entries {
  readonly #world: EntryWorld;
  readonly #entries = new Map<string, { readonly entry: ServiceEntry; readonly facts: EntryFacts }>();
  readonly #entriesOfNamespace = new Multimap<string, string>();
  readonly #entriesOfHost = new Multimap<string, string>();
  readonly #workloads = new Map<string, WorkloadEntry>();
  readonly #workloadsOfNamespace = new Multimap<string, string>();
  readonly #networks: NetworkGateways;
  readonly dirtyGateways = new Set<string>();
  readonly dirtyEntries = new Set<string>();
  readonly dirtyWorkloads = new Set<string>();

  constructor(world: EntryWorld) {
    this.#world = world;
    this.#networks = new NetworkGateways(world.cluster);
  }

  /** Takes a Gateway, which may be the entrance of another network; undefined: it is gone. */
  setGateway(key: string, gateway: Gateway | undefined): void {
    const changed = this.#networks.set(key, gateway);
    if (changed.size === 0) return;
    this.dirtyGateways.add(key);
    for (const [entry, { spec }] of this.#workloads) {
      if (changed.has(spec?.network ?? "")) this.dirtyWorkloads.add(entry);
    }
    for (const [key, { entry }] of this.#entries) {
      if (entry.spec?.endpoints?.some(({ network = "" }) => changed.has(network))) this.dirtyEntries.add(key);
    }
  }

  /** Takes a ServiceEntry; undefined: it is gone. */
  setServiceEntry(key: string, entry: ServiceEntry | undefined): void {
    const old = this.#entries.get(key)?.facts;
    if (old !== undefined) this.#forget(key, old);
    const now = entry !== undefined && isExported(entry) ? entryFacts(entry) : undefined;
    if (entry !== undefined && now !== undefined) this.#remember(key, entry, now);
    this.dirtyEntries.add(key);
    this.#world.waypoints.use(`ServiceEntry ${key}`, now === undefined ? [] : Waypoints.named(entry?.metadata ?? {}));
    if (old !== undefined) this.#markAround(old);
    if (now !== undefined) this.#markAround(now);
  }

  /** Takes a WorkloadEntry; undefined: it is gone. */
  setWorkloadEntry(key: string, entry: WorkloadEntry | undefined): void {
    const [namespace = ""] = key.split("/");
    for (const one of [this.#workloads.get(key), entry]) if (one !== undefined) this.#markServicesOf(namespace, one);
    if (entry === undefined) {
      this.#workloads.delete(key);
      this.#workloadsOfNamespace.delete(namespace, key);
    } else {
      this.#workloads.set(key, entry);
      this.#workloadsOfNamespace.add(namespace, key);
    }
    this.dirtyWorkloads.add(key);
    const named = entry === undefined ? [] : Waypoints.named({ namespace, labels: entryLabels(entry) });
    this.#world.waypoints.use(`WorkloadEntry ${key}`, named);
  }

  /** True when something is to be computed. */
  get dirty(): boolean {
    return this.dirtyGateways.size + this.dirtyEntries.size + this.dirtyWorkloads.size > 0;
  }

  /** The waypoint of a ServiceEntry has changed. */
  waypointChanged(key: string): void {
    this.dirtyEntries.add(key);
    const facts = this.#entries.get(key)?.facts;
    if (facts !== undefined) this.#markSelected(facts);
  }

  /** Who has a host may have changed. */
  hostChanged(hostname: string): void {
    for (const key of this.#entriesOfHost.get(hostname)) {
      this.dirtyEntries.add(key);
      const facts = this.#entries.get(key)?.facts;
      if (facts !== undefined) this.#markSelected(facts);
    }
  }

  /** A Service of a namespace has changed. */
  serviceChanged({ namespace, hostname }: ServiceFacts): void {
    this.hostChanged(hostname);
    for (const key of this.#workloadsOfNamespace.get(namespace)) this.dirtyWorkloads.add(key);
  }

  /** Policies, labels or annotations of a namespace have changed, or policies of the mesh. */
  namespaceChanged(namespace: string | undefined): void {
    if (namespace === undefined) {
      for (const key of this.#entries.keys()) this.dirtyEntries.add(key);
      for (const key of this.#workloads.keys()) this.dirtyWorkloads.add(key);
      return;
    }
    for (const key of this.#entriesOfNamespace.get(namespace)) this.dirtyEntries.add(key);
    for (const key of this.#workloadsOfNamespace.get(namespace)) this.dirtyWorkloads.add(key);
  }

  /** The services of entries that select an object of a namespace by its labels. */
  selecting(namespace: string, labels: Readonly<Record<string, string>>): readonly ServiceFacts[] {
    return [...this.#entriesOfNamespace.get(namespace)].flatMap((key) => {
      const facts = this.#entries.get(key)?.facts;
      if (facts === undefined || !selects(facts.hosts[0]?.selector, { metadata: { labels } })) return [];
      return this.#owned(facts);
    });
  }

  /**
   * Who answers for a service on other networks, where nobody can tell which of its endpoints does: the accounts that the
   * WorkloadEntries name which it selects there. Source: istio pilot/pkg/serviceregistry/ambient/multicluster.go.
   */
  farIdentities({ namespace, selector }: ServiceFacts): readonly string[] {
    const far = [...this.#workloadsOfNamespace.get(namespace)].flatMap((key) => {
      const entry = this.#workloads.get(key);
      if (entry === undefined || !selects(selector, { metadata: { labels: entryLabels(entry) } })) return [];
      return this.#farIdentity(entry.spec ?? {}, namespace);
    });
    return [...new Set(far)].toSorted();
  }

  /** What a Gateway makes that is the entrance of another network. */
  computeGateway(key: string): readonly Address[] {
    return this.#networks.workloads(key);
  }

  /** What a ServiceEntry makes. */
  computeServiceEntry(key: string, tell: (problem: Problem) => void): readonly Address[] {
    const found = this.#entries.get(key);
    if (found === undefined) return [];
    const { entry, facts } = found;
    const about = { apiVersion: API_VERSION, kind: "ServiceEntry", metadata: entry.metadata ?? {} };
    const problem = (one: Problem): void => tell({ ...one, about });
    const { cluster, waypoints } = this.#world;
    const choice = waypoints.ofService(entry);
    const object = `ServiceEntry ${key}`;
    if (choice.problem !== undefined) problem({ object, field: "metadata.labels", message: choice.problem });
    for (const one of entryProblems(entry, choice.waypoint)) problem(one);
    for (const [i, spec] of (entry.spec?.endpoints ?? []).entries()) {
      this.#checkAccount(spec, facts.namespace, (message) => {
        problem({ object, field: `spec.endpoints[${i}].serviceAccount`, message });
      });
    }
    const owned = this.#owned(facts);
    for (const { hostname } of facts.hosts) {
      if (owned.some((host) => host.hostname === hostname)) continue;
      const message = `"${hostname}" is another object's of this namespace already`;
      problem({ object, field: "spec.hosts", message });
    }
    const { annotations } = waypoints.namespace(facts.namespace);
    const services = owned.map((host) => {
      const canonical = this.#isCanonical(host.hostname, facts);
      const inline = (entry.spec?.endpoints ?? []).flatMap((spec) => this.#farIdentity(spec, facts.namespace));
      const far = [...inline, ...this.farIdentities(host)];
      return entryService(entry, host, { cluster, waypoints: choice, annotations, canonical, far });
    });
    return [...services, ...this.#endpoints(entry, facts, owned)];
  }

  /** What a WorkloadEntry makes. */
  computeWorkloadEntry(key: string, tell: (problem: Problem) => void): readonly Address[] {
    const entry = this.#workloads.get(key);
    if (entry === undefined) return [];
    const about = { apiVersion: API_VERSION, kind: "WorkloadEntry", metadata: entry.metadata ?? {} };
    const problem = (one: Problem): void => tell({ ...one, about });
    const { cluster, waypoints } = this.#world;
    const object = `WorkloadEntry ${key}`;
    const address = entry.spec?.address ?? "";
    if (!isReachable(address)) {
      problem({ object, field: "spec.address", message: `"${address}" cannot be reached` });
      return [];
    }
    const { namespace = "" } = entry.metadata ?? {};
    this.#checkAccount(entry.spec ?? {}, namespace, (message) => {
      problem({ object, field: "spec.serviceAccount", message });
    });
    const labels = entryLabels(entry);
    const owner = { metadata: { ...entry.metadata, labels } };
    const chosen = waypoints.ofWorkload(owner);
    if (chosen.problem !== undefined) problem({ object, field: "metadata.labels", message: chosen.problem });
    const services = [
      ...this.#world.servicesOf(namespace).filter(({ selector }) => selects(selector, owner)),
      ...this.selecting(namespace, labels),
    ];
    const uid = workloadEntryUid(cluster, key);
    const policies = this.#world.policiesOf(namespace, labels, { keys: chosen.keys, services });
    const entrance = this.#networks.entranceOf(entry.spec?.network);
    return [entryWorkload(entry.spec ?? {}, { cluster, uid, owner, services, waypoints: chosen, policies, entrance })];
  }

  /** The endpoints that are written into an entry; of one that is resolved by DNS and has none, its hosts themselves. */
  #endpoints(entry: ServiceEntry, facts: EntryFacts, owned: readonly ServiceFacts[]): readonly Address[] {
    const { cluster, waypoints } = this.#world;
    const key = objectKey(entry);
    const { endpoints = [] } = entry.spec ?? {};
    const { namespace } = facts;
    const { labels = {} } = entry.metadata ?? {};
    const isImplicit = endpoints.length === 0 && facts.resolution === "dns" && facts.hosts[0]?.selector === undefined;
    const own = isImplicit
      ? owned.map((host) => ({
          spec: { address: host.hostname },
          services: [host],
          waypoints: { keys: [], waypoint: undefined },
          entrance: undefined,
        }))
      : endpoints.map((spec) => {
          const labels = spec.labels ?? {};
          const metadata = { namespace: facts.namespace, name: facts.name, labels };
          const entrance = this.#networks.entranceOf(spec.network);
          return { spec, services: owned, waypoints: waypoints.ofWorkload({ metadata }), entrance };
        });
    const made = own
      .filter(({ spec }) => owned.length > 0 && isReachable(spec.address ?? "") && !spec.address?.startsWith("*"))
      .map(({ spec, ...rest }) => {
        const uid = entryEndpointUid(cluster, key, spec.address ?? "");
        const policies = this.#world.policiesOf(namespace, labels, {
          keys: rest.waypoints.keys,
          services: rest.services,
        });
        return entryWorkload(spec, { cluster, uid, owner: entry, policies, ...rest });
      });
    return [...new Map(made.map((workload) => [workload.uid, workload])).values()];
  }

  /** The hosts whose name in the entry's namespace is the entry's: no Service has it, and no older entry. */
  #owned(facts: EntryFacts): readonly ServiceFacts[] {
    return facts.hosts.filter(
      ({ hostname, namespace }) =>
        this.#world.findService(hostname)?.namespace !== namespace &&
        !this.#othersOf(hostname).some((other) => other.namespace === namespace && isOlder(other, facts)),
    );
  }

  /** True when neither a Service nor an older entry of any namespace has the host. */
  #isCanonical(hostname: string, facts: EntryFacts): boolean {
    if (this.#world.findService(hostname) !== undefined) return false;
    return !this.#othersOf(hostname).some((other) => isOlder(other, facts));
  }

  /** The identity that an endpoint names, when it is on another network. */
  #farIdentity(spec: WorkloadEntrySpec, namespace: string): readonly string[] {
    const { network = "" } = spec;
    const identity = network === "" || network === this.#world.cluster.network ? "" : this.#identity(spec, namespace);
    return identity === "" || identity === undefined ? [] : [identity];
  }

  /** The identity that an endpoint names: empty when it names none, undefined when nobody can have it. */
  #identity({ serviceAccount = "" }: WorkloadEntrySpec, namespace: string): string | undefined {
    if (serviceAccount === "") return "";
    try {
      return formatSpiffeId({ trustDomain: this.#world.cluster.trustDomain, namespace, serviceAccount });
    } catch {
      return undefined;
    }
  }

  /** Tells when nobody can have the account of an endpoint. */
  #checkAccount(spec: WorkloadEntrySpec, namespace: string, tell: (message: string) => void): void {
    if (this.#identity(spec, namespace) !== undefined) return;
    tell(`"${spec.serviceAccount}" cannot be the account of an identity: nobody is let in for it`);
  }

  /** The services that select an endpoint on another network name its identity. */
  #markServicesOf(namespace: string, entry: WorkloadEntry): void {
    if (this.#farIdentity(entry.spec ?? {}, namespace).length === 0) return;
    const object = { metadata: { labels: entryLabels(entry) } };
    for (const facts of this.#world.servicesOf(namespace)) {
      if (selects(facts.selector, object)) this.#world.markService(facts);
    }
    for (const key of this.#entriesOfNamespace.get(namespace)) {
      if (selects(this.#entries.get(key)?.facts.hosts[0]?.selector, object)) this.dirtyEntries.add(key);
    }
  }

  #othersOf(hostname: string): readonly EntryFacts[] {
    return [...this.#entriesOfHost.get(hostname)].flatMap((key) => this.#entries.get(key)?.facts ?? []);
  }

  #forget(key: string, facts: EntryFacts): void {
    this.#entries.delete(key);
    this.#entriesOfNamespace.delete(facts.namespace, key);
    for (const { hostname } of facts.hosts) this.#entriesOfHost.delete(hostname, key);
  }

  #remember(key: string, entry: ServiceEntry, facts: EntryFacts): void {
    this.#entries.set(key, { entry, facts });
    this.#entriesOfNamespace.add(facts.namespace, key);
    for (const { hostname } of facts.hosts) this.#entriesOfHost.add(hostname, key);
  }

  #markAround(facts: EntryFacts): void {
    this.#markSelected(facts);
    for (const { hostname } of facts.hosts) this.hostChanged(hostname);
  }

  #markSelected(facts: EntryFacts): void {
    const [host] = facts.hosts;
    if (host?.selector === undefined) return;
    this.#world.markPods(host);
    for (const key of this.#workloadsOfNamespace.get(facts.namespace)) this.dirtyWorkloads.add(key);
  }
}
