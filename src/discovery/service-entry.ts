import { findIp, ipToBytes, bytesToIp, parseCidr, type IpAddress } from "#base/ip";
import type { ServiceEntry } from "#kube";
import type { NetworkAddress, Service } from "#model/workload";
import type { Cluster, Problem } from "./cluster.ts";
import {
  DISTRIBUTION,
  readPreference,
  type ServiceFacts,
  type ServiceSurroundings,
  type TargetedPort,
} from "./service.ts";
import { Waypoints } from "./waypoints.ts";

const AUTOALLOCATE = "networking.istio.io/enable-autoallocate-ip";

/** How the endpoints of a ServiceEntry are found: `none`: not at all, connections go where they wanted to. */
type Resolution = "none" | "static" | "dns" | "dynamic_dns";

/** What of a ServiceEntry other objects depend on. */
export interface EntryFacts {
  readonly namespace: string;
  readonly name: string;
  /** For {@link isOlder}. */
  readonly created: string;
  readonly resolution: Resolution;
  /** One service for each host. */
  readonly hosts: readonly ServiceFacts[];
}

/** Reads what endpoints need to know of a ServiceEntry. */
export function entryFacts({ metadata = {}, spec = {} }: ServiceEntry): EntryFacts {
  const { name = "", namespace = "", creationTimestamp = "" } = metadata;
  const { hosts = [], ports = [], workloadSelector, resolution = "NONE" } = spec;
  const targeted = ports.flatMap(({ number, name: port = "", protocol = "", targetPort }): TargetedPort[] => {
    if (number === undefined || protocol === "UDP") return [];
    return [{ name: port, servicePort: number, target: targetPort || number, byName: true }];
  });
  const labels = workloadSelector?.labels ?? {};
  const selector = Object.keys(labels).length > 0 ? labels : undefined;
  const waypointLabels = Waypoints.labelsFor(metadata.labels);
  return {
    namespace,
    name,
    created: creationTimestamp,
    resolution: resolutionOf(resolution),
    hosts: [...new Set(hosts)].map((hostname) => {
      return { namespace, name, hostname, key: `${namespace}/${hostname}`, selector, ports: targeted, waypointLabels };
    }),
  };
}

function resolutionOf(text: string): Resolution {
  if (text === "STATIC") return "static";
  if (text === "DYNAMIC_DNS") return "dynamic_dns";
  return text === "DNS" || text === "DNS_ROUND_ROBIN" ? "dns" : "none";
}

/** True when `a` was made before `b`; their names decide when that was in the same second. */
export function isOlder(a: EntryFacts, b: EntryFacts): boolean {
  if (a.created !== b.created) return a.created < b.created;
  return `${a.namespace}/${a.name}` < `${b.namespace}/${b.name}`;
}

/** False for a ServiceEntry that is exported to nobody (`~`): it is as if it were not there. */
export function isExported({ spec }: ServiceEntry): boolean {
  return spec?.exportTo?.includes("~") !== true;
}

/** The mesh's view of one host of a ServiceEntry. `canonical`: no Kubernetes Service and no older entry has the host. */
export function entryService(
  entry: ServiceEntry,
  host: ServiceFacts,
  around: ServiceSurroundings & { readonly cluster: Cluster; readonly canonical: boolean },
): Service {
  const { waypoint, weighted } = around.waypoints;
  return {
    kind: "service",
    name: host.name,
    namespace: host.namespace,
    hostname: host.hostname,
    addresses: addressesOf(entry, host.hostname, around.cluster.network),
    ports: host.ports.map(({ servicePort, target }) => ({ servicePort, targetPort: Number(target) })),
    subjectAltNames: [...new Set([...(entry.spec?.subjectAltNames ?? []), ...around.far])],
    waypoint,
    weightedWaypoints: weighted,
    loadBalancing: loadBalancing(entry, around.annotations),
    ipFamilies: "automatic",
    canonical: around.canonical,
    visibility: exportsToOwn(entry) ? "namespace" : "public",
  };
}

function exportsToOwn({ metadata, spec }: ServiceEntry): boolean {
  const exportTo = spec?.exportTo ?? [];
  return exportTo.length > 0 && exportTo.every((to) => to === "." || to === metadata?.namespace);
}

function loadBalancing(entry: ServiceEntry, inherited: Readonly<Record<string, string>>): Service["loadBalancing"] {
  const passthrough = { mode: "passthrough", routingPreference: [], allowUnhealthy: true } as const;
  if (resolutionOf(entry.spec?.resolution ?? "NONE") === "none") return passthrough;
  const own = entry.metadata?.annotations?.[DISTRIBUTION];
  return { ...readPreference([own, inherited[DISTRIBUTION]]), allowUnhealthy: false };
}

/**
 * The hosts of an entry to which a control plane gives addresses: those of one without addresses of its own, unless connections
 * to them go where they wanted to anyway, or its author wants none. Wildcards only where names are asked for by a waypoint.
 */
export function hostsToAddress({ metadata, spec = {} }: ServiceEntry): readonly string[] {
  const { addresses = [], hosts = [], resolution = "NONE" } = spec;
  const isUnwanted = metadata?.labels?.[AUTOALLOCATE]?.toLowerCase() === "false";
  if (addresses.length > 0 || isUnwanted || resolutionOf(resolution) === "none") return [];
  return [...new Set(hosts)].filter((host) => !host.startsWith("*") || resolution === "DYNAMIC_DNS");
}

/** The addresses that the entry names, or else those that a control plane has given to this host. */
function addressesOf(entry: ServiceEntry, hostname: string, network: string): readonly NetworkAddress[] {
  const named = (entry.spec?.addresses ?? []).flatMap((text) => findNetworkAddress(text, network) ?? []);
  if (!hostsToAddress(entry).includes(hostname)) return named;
  return (entry.status?.addresses ?? []).flatMap(({ value = "", host }) => {
    const address = host === hostname ? findIp(value) : undefined;
    return address === undefined ? [] : [{ network, address, length: undefined }];
  });
}

/** An address, or a prefix without the bits behind it; undefined when it is neither. */
function findNetworkAddress(text: string, network: string): NetworkAddress | undefined {
  const ip = findIp(text);
  if (ip !== undefined) return { network, address: ip, length: undefined };
  try {
    const { address, length } = parseCidr(text);
    const isHost = length === (address.includes(":") ? 128 : 32);
    return { network, address: masked(address, length), length: isHost ? undefined : length };
  } catch {
    return undefined;
  }
}

function masked(address: IpAddress, length: number): IpAddress {
  return bytesToIp(
    ipToBytes(address).map((byte, i) => {
      const bits = Math.min(8, Math.max(0, length - 8 * i));
      return byte & (0xff << (8 - bits));
    }),
  );
}

/** What of a ServiceEntry is not carried, so that its author hears of it. */
export function entryProblems(entry: ServiceEntry, waypoint: unknown): readonly Problem[] {
  const { name = "", namespace = "" } = entry.metadata ?? {};
  const { exportTo = [], resolution } = entry.spec ?? {};
  const found = listProblems(entry.spec ?? {});
  if (!exportTo.every((to) => ["*", ".", "~", namespace].includes(to)))
    found.push(["spec.exportTo", "single other namespaces cannot be named: it is visible to all"]);
  if (resolution === "DYNAMIC_DNS" && waypoint === undefined)
    found.push(["spec.resolution", "DYNAMIC_DNS needs a waypoint: connections are refused"]);
  return found.map(([field, message]) => ({ object: `ServiceEntry ${namespace}/${name}`, field, message }));
}

function listProblems({ addresses = [], ports = [], endpoints = [] }: NonNullable<ServiceEntry["spec"]>) {
  const found: [field: string, message: string][] = [];
  for (const [i, text] of addresses.entries()) {
    if (findNetworkAddress(text, "") !== undefined) continue;
    found.push([`spec.addresses[${i}]`, `"${text}" is neither an IP address nor a prefix`]);
  }
  for (const [i, { protocol }] of ports.entries()) {
    if (protocol === "UDP") found.push([`spec.ports[${i}].protocol`, "UDP is not carried"]);
  }
  for (const [i, { address = "" }] of endpoints.entries()) {
    if (!isReachable(address)) found.push([`spec.endpoints[${i}].address`, `"${address}" cannot be reached`]);
  }
  return found;
}

/** True for an IP address or a hostname; a socket on a file system is nobody's but its machine's. */
export function isReachable(address: string): boolean {
  return findIp(address) !== undefined || /^[\w*][\w.-]*$/.test(address);
}
