import { findIp } from "#base/ip";
import { objectKey, selectsLabels, type Gateway, type GatewayClass, type KubeObject, type LabelSelector } from "#kube";
import type { ApplicationTunnel, GatewayAddress, Service } from "#model/workload";
import { Multimap } from "./multimap.ts";

/** Which traffic a waypoint takes. */
type TrafficType = "service" | "workload" | "all" | "none";

/** A Gateway that may be used as a waypoint. */
interface Waypoint {
  readonly namespace: string;
  readonly address: GatewayAddress;
  readonly takes: TrafficType;
  readonly tunnel: ApplicationTunnel | undefined;
  /** Whose objects may use it: those of its own namespace, all, or those of the namespaces that the selector selects. */
  readonly from: "Same" | "All" | LabelSelector;
}

/** Waypoints in front of a service or a workload. */
export interface WaypointChoice {
  /** `namespace/name` of the Gateways that are used. */
  readonly keys: readonly string[];
  readonly waypoint: GatewayAddress | undefined;
  readonly weighted: Service["weightedWaypoints"];
  /** Why the waypoint that was asked for is not used. */
  readonly problem: string | undefined;
}

/** What of a namespace its objects depend on. */
export interface NamespaceFacts {
  readonly labels: Labels;
  readonly annotations: Labels;
}

type Labels = Readonly<Record<string, string>>;

const USE = "istio.io/use-waypoint";
const CANARY = "istio.io/use-waypoint-canary";
const CANARY_WEIGHT = "istio.io/use-waypoint-canary-weight";
const WAYPOINT_FOR = "istio.io/waypoint-for";
const BINDING = "ambient.istio.io/waypoint-inbound-binding";
const GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name";
const MANAGED = "gateway.istio.io/managed";
/** Gateways themselves: nothing stands in front of them. */
const GATEWAY_CONTROLLERS: ReadonlySet<string | undefined> = new Set([
  "istio.io-mesh-controller",
  "istio.io-eastwest-controller",
]);
const HBONE_PORT = 15008;
const NONE: WaypointChoice = { keys: [], waypoint: undefined, weighted: [], problem: undefined };
const NO_FACTS: NamespaceFacts = { labels: {}, annotations: {} };

/**
 * Which waypoint stands in front of what, as Istio's labels say: on the object, else on its namespace; `none` opts out.
 * Gateways, their classes and services, and namespaces go in; what changed comes out as the names of waypoints.
 *
 *     Gateway, its class, its Service ──▶ Waypoint ◀── istio.io/use-waypoint on a pod, a service or a namespace
 */
export class Waypoints {
  readonly #gateways = new Map<string, Gateway>();
  readonly #classes = new Map<string, GatewayClass>();
  readonly #gatewaysOfClass = new Multimap<string, string>();
  readonly #namespaces = new Map<string, NamespaceFacts>();
  /** Hostnames of the services in front of gateways' pods, by `namespace/name` of the gateway. */
  readonly #hostnames = new Multimap<string, string>();
  readonly #waypoints = new Map<string, Waypoint>();
  readonly #network: string;
  /** What names a waypoint, by the waypoint's name: `Pod shop/cart`, `Service shop/cart`, `Namespace shop`. */
  readonly #users = new Multimap<string, string>();
  readonly #usedBy = new Map<string, readonly string[]>();

  /** `network`: where the addresses of gateways are. */
  constructor(network: string) {
    this.#network = network;
  }

  /** Takes a Gateway. True when its waypoint changed. */
  upsertGateway(gateway: Gateway): boolean {
    const key = objectKey(gateway);
    this.#forgetClass(key);
    this.#gateways.set(key, gateway);
    this.#gatewaysOfClass.add(classOf(gateway), key);
    return this.#refresh(key);
  }

  /** A Gateway is gone. True when it was a waypoint. */
  removeGateway(gateway: Gateway): boolean {
    const key = objectKey(gateway);
    this.#forgetClass(key);
    this.#gateways.delete(key);
    return this.#refresh(key);
  }

  /** Takes a GatewayClass, or its end. Returns the names of the waypoints that changed. */
  setClass(name: string, gatewayClass: GatewayClass | undefined): readonly string[] {
    if (gatewayClass === undefined) this.#classes.delete(name);
    else this.#classes.set(name, gatewayClass);
    return [...this.#gatewaysOfClass.get(name)].filter((key) => this.#refresh(key));
  }

  /** A service is in front of a gateway's pods (`true`), or not any more. Returns the names of the waypoints that changed. */
  setService(service: KubeObject, hostname: string, isThere: boolean): readonly string[] {
    const { name = "", namespace = "", labels = {} } = service.metadata ?? {};
    const key = `${namespace}/${labels[GATEWAY_NAME] ?? name}`;
    if (isThere) this.#hostnames.add(key, hostname);
    else this.#hostnames.delete(key, hostname);
    return this.#refresh(key) ? [key] : [];
  }

  /** Takes a namespace, or its end. True when something that its objects depend on changed. */
  setNamespace(name: string, facts: NamespaceFacts | undefined): boolean {
    const before = this.#namespaces.get(name);
    if (facts === undefined) this.#namespaces.delete(name);
    else this.#namespaces.set(name, facts);
    return JSON.stringify(before) !== JSON.stringify(facts);
  }

  /** Remembers which waypoints an object names now, so that it is looked at again when one of them changes. */
  use(user: string, waypoints: readonly string[]): void {
    for (const key of this.#usedBy.get(user) ?? []) this.#users.delete(key, user);
    for (const key of waypoints) this.#users.add(key, user);
    if (waypoints.length === 0) this.#usedBy.delete(user);
    else this.#usedBy.set(user, waypoints);
  }

  /** What names a waypoint. */
  usersOf(waypoint: string): Iterable<string> {
    return this.#users.get(waypoint);
  }

  /** True for a Gateway that is known as a waypoint. */
  has(key: string): boolean {
    return this.#waypoints.has(key);
  }

  /** The Gateway of which an object says that it is an instance. */
  static instanceOf({ metadata = {} }: KubeObject): string | undefined {
    const name = metadata.labels?.[GATEWAY_NAME];
    return name === undefined ? undefined : `${metadata.namespace ?? ""}/${name}`;
  }

  /** What is known of a namespace; nothing yet is no labels. */
  namespace(name: string): NamespaceFacts {
    return this.#namespaces.get(name) ?? NO_FACTS;
  }

  /** The names of the waypoints that an object or a namespace names: when one of them changes, look again. */
  static named({ labels = {}, namespace = "" }: { labels?: Labels; namespace?: string }): readonly string[] {
    const instance = labels[GATEWAY_NAME];
    const named = [reference(labels, USE, namespace), reference(labels, CANARY, namespace)];
    return [...named, instance && `${namespace}/${instance}`].flatMap((key) => key ?? []);
  }

  /** Of an object's labels those that decide about its waypoint. */
  static labelsFor(labels: Labels = {}): Labels {
    return Object.fromEntries(Object.entries(labels).filter(([name]) => name.startsWith(USE) || name === MANAGED));
  }

  /** The waypoints in front of a service. */
  ofService(service: KubeObject): WaypointChoice {
    const { labels = {} } = service.metadata ?? {};
    if (GATEWAY_CONTROLLERS.has(labels[MANAGED])) return NONE;
    return this.#choose(service, "service");
  }

  /** The waypoint in front of a workload, or how it takes tunnels when it is a waypoint itself. */
  ofWorkload(pod: KubeObject): WaypointChoice & { readonly tunnel: ApplicationTunnel | undefined } {
    const { labels = {}, namespace = "" } = pod.metadata ?? {};
    const instance = labels[GATEWAY_NAME];
    const own = instance === undefined ? undefined : this.#waypoints.get(`${namespace}/${instance}`);
    return own === undefined
      ? { ...this.#choose(pod, "workload"), tunnel: undefined }
      : { ...NONE, tunnel: own.tunnel };
  }

  #choose(object: KubeObject, kind: "service" | "workload"): WaypointChoice {
    const metadata = metadataOf(object);
    const { labels, namespace } = metadata;
    const isInherited = labels[USE] === undefined;
    const key = reference(isInherited ? this.namespace(namespace).labels : labels, USE, namespace);
    if (key === undefined) return NONE;
    const waypoint = this.#usable(key, namespace, kind);
    // A namespace's waypoint for the other kind of traffic is no mistake of each of its objects.
    if (typeof waypoint === "string") return { ...NONE, problem: isInherited ? undefined : waypoint };
    const chosen = { ...NONE, keys: [key], waypoint: waypoint.address };
    return kind === "workload" ? chosen : { ...chosen, ...this.#weigh(metadata, isInherited, { key, waypoint }) };
  }

  /** The canary that takes a share of a service's connections. */
  #weigh(
    { labels, annotations, namespace }: ReturnType<typeof metadataOf>,
    isInherited: boolean,
    primary: { readonly key: string; readonly waypoint: Waypoint },
  ): Partial<WaypointChoice> {
    const around = isInherited ? this.namespace(namespace) : NO_FACTS;
    const key = reference(labels[CANARY] === undefined ? around.labels : labels, CANARY, namespace);
    if (key === undefined) return {};
    if (key === primary.key) return { problem: `the canary ${key} is the waypoint itself` };
    const share = annotations[CANARY_WEIGHT] ?? around.annotations[CANARY_WEIGHT] ?? "0";
    if (!/^(?:100|\d{1,2})$/.test(share)) return { problem: `${CANARY_WEIGHT} must be a whole number from 0 to 100` };
    const weight = Number(share);
    const canary = this.#usable(key, namespace, "service");
    if (typeof canary === "string") return { problem: canary };
    return {
      keys: [primary.key, key],
      weighted: [
        { waypoint: primary.waypoint.address, weight: 100 - weight },
        { waypoint: canary.address, weight },
      ],
    };
  }

  /** The waypoint of this name; a string says why it cannot be used. */
  #usable(key: string, namespace: string, kind: "service" | "workload"): Waypoint | string {
    const waypoint = this.#waypoints.get(key);
    if (waypoint === undefined) return `the waypoint ${key} is not there or has no address yet`;
    const { from } = waypoint;
    const isLetIn =
      from === "All" ||
      (from === "Same" ? waypoint.namespace === namespace : selectsLabels(from, this.namespace(namespace).labels));
    if (!isLetIn) return `the waypoint ${key} takes nothing from namespace ${namespace}`;
    const takes = waypoint.takes === "all" || waypoint.takes === kind;
    return takes ? waypoint : `the waypoint ${key} is for ${waypoint.takes} traffic (${WAYPOINT_FOR}), not ${kind}`;
  }

  #refresh(key: string): boolean {
    const before = this.#waypoints.get(key);
    const gateway = this.#gateways.get(key);
    const [hostname] = [...this.#hostnames.get(key)].toSorted();
    const gatewayClass = gateway && this.#classes.get(classOf(gateway));
    const now = gateway && readWaypoint(gateway, gatewayClass, { hostname, network: this.#network });
    if (now === undefined) this.#waypoints.delete(key);
    else this.#waypoints.set(key, now);
    return JSON.stringify(before) !== JSON.stringify(now);
  }

  #forgetClass(key: string): void {
    const old = this.#gateways.get(key);
    if (old !== undefined) this.#gatewaysOfClass.delete(classOf(old), key);
  }
}

/** `namespace/name` of what a label names, where its `-namespace` may name another namespace. `none` and nothing name nobody. */
function reference(labels: Labels, label: string, namespace: string): string | undefined {
  const name = labels[label];
  if (name === undefined || name === "" || name === "none") return undefined;
  return `${labels[`${label}-namespace`] ?? namespace}/${name}`;
}

function classOf(gateway: Gateway): string {
  return gateway.spec?.gatewayClassName ?? "";
}

/** A Gateway as a waypoint; undefined while it has no address, neither of its own nor a Service's. */
function readWaypoint(
  gateway: Gateway,
  gatewayClass: GatewayClass | undefined,
  place: { readonly hostname: string | undefined; readonly network: string },
): Waypoint | undefined {
  const address = addressOf(gateway, place);
  if (address === undefined) return undefined;
  const { namespace, labels, annotations } = metadataOf(gateway);
  const inherited = metadataOf(gatewayClass);
  const tunnel = readBinding(annotations[BINDING] ?? inherited.annotations[BINDING]);
  const takes = trafficType(labels[WAYPOINT_FOR] ?? inherited.labels[WAYPOINT_FOR]);
  return { namespace, address, takes, tunnel, from: admission(gateway, tunnel) };
}

function metadataOf(object: KubeObject | undefined): NamespaceFacts & { readonly namespace: string } {
  const { namespace = "", labels = {}, annotations = {} } = object?.metadata ?? {};
  return { namespace, labels, annotations };
}

/** A hostname is preferred: a service has it for good, and it may have several addresses. */
function addressOf(
  gateway: Gateway,
  { hostname, network }: { readonly hostname: string | undefined; readonly network: string },
): GatewayAddress | undefined {
  const { namespace = "" } = gateway.metadata ?? {};
  const addresses = gateway.status?.addresses ?? [];
  const named = addresses.find(({ type }) => type === "Hostname")?.value ?? hostname;
  if (named !== undefined) {
    return { destination: { kind: "hostname", namespace, hostname: named }, hboneMtlsPort: HBONE_PORT };
  }
  const [ip] = addresses.flatMap(({ type = "IPAddress", value = "" }) =>
    type === "IPAddress" ? (findIp(value) ?? []) : [],
  );
  return ip && { destination: { kind: "address", network, address: ip }, hboneMtlsPort: HBONE_PORT };
}

/** What is not known takes nothing. */
function trafficType(text = "service"): TrafficType {
  return text === "service" || text === "workload" || text === "all" ? text : "none";
}

/** `PROTOCOL` or `PROTOCOL/port`; a missing or wrong port is 0. */
function readBinding(text: string | undefined): ApplicationTunnel | undefined {
  const [, protocol, port = "0"] = /^(NONE|PROXY)(?:\/(.*))?$/.exec(text ?? "") ?? [];
  if (protocol === undefined) return undefined;
  const number = /^\d{1,5}$/.test(port) ? Number(port) : 0;
  return { protocol: protocol === "PROXY" ? "proxy" : "none", port: number > 65_535 ? 0 : number };
}

/** Who may use it: as the listener says that its binding names, else its HBONE listener. */
function admission(gateway: Gateway, tunnel: ApplicationTunnel | undefined): Waypoint["from"] {
  const listeners = gateway.spec?.listeners ?? [];
  const bound = listeners.find(({ port, protocol }) => {
    if (tunnel === undefined) return false;
    return tunnel.port > 0 ? port === tunnel.port : tunnel.protocol === "proxy" && protocol === PROXY_LISTENER;
  });
  const listener = bound ?? listeners.find(({ port, protocol }) => protocol === "HBONE" && port === HBONE_PORT);
  const { from = "Same", selector = {} } = listener?.allowedRoutes?.namespaces ?? {};
  if (from === "Selector") return selector;
  return from === "All" ? "All" : "Same";
}

const PROXY_LISTENER = "istio.io/PROXY";
