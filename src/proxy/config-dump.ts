/**
 * What the admin port's `/config_dump` shows, in the shape of upstream's proxy, so that the field's tools read it
 * (`istioctl ztunnel-config`; ztunnel's src/admin.rs and src/state). Pure functions from what is known to plain JSON
 * values; private keys are in none of them.
 */
import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Authorization, AuthorizationMatch } from "#model/authorization";
import type { SpiffeId } from "#model/spiffe-id";
import type { GatewayAddress, Service, ServicePort, Workload } from "#model/workload";
import type { TlsIdentity } from "#model/tls-identity";
import { parseCertificates, type Certificate } from "#x509";
import type { ProxyConfig } from "./config.ts";
import { streamJson } from "./json-stream.ts";
import type { OpenConnection } from "./record.ts";
import type { LocalPod } from "./route.ts";
import type { WorkloadTable } from "./table.ts";

/** A plain JSON object. Members that are undefined are left out of the text. */
type Json = Readonly<Record<string, unknown>>;

/** What a dump is made of. */
export interface DumpedState {
  readonly clock: Clock;
  readonly version: string;
  readonly config: ProxyConfig;
  readonly table: WorkloadTable;
  readonly policies: Iterable<Authorization>;
  readonly pods: readonly { readonly pod: LocalPod; readonly served: boolean }[];
  readonly connections: readonly OpenConnection[];
  readonly certificates: {
    get(id: SpiffeId): TlsIdentity | undefined;
    failure(id: SpiffeId): Error | undefined;
  };
  /** What only our own tools read. */
  readonly more: Json;
}

/** The whole state as one JSON object, in parts: see {@link streamJson}. What is walked may change meanwhile. */
export function dumpState({ table, policies, pods, certificates, ...state }: DumpedState): AsyncIterable<string> {
  const { version, config, more, clock } = state;
  const { workloads, services, staged } = table.all();
  const identities = [...new Set(pods.map(({ pod }) => pod.identity))].toSorted();
  const connections = Map.groupBy(state.connections, ({ podUid }) => podUid);
  const { node, openssl } = process.versions;
  const members: Parameters<typeof streamJson>[0] = [
    ["workloads", { list: mapped(workloads, dumpWorkload) }],
    ["services", { list: mapped(services, (service) => dumpService(service, table.walkEndpoints(service))) }],
    ["policies", { list: mapped(policies, dumpPolicy) }],
    ["stagedServices", { members: mapped(staged, ([name, endpoints]) => [name, dumpEndpoints(name, endpoints)]) }],
    [
      "certificates",
      { list: mapped(identities, (id) => dumpCertificate(id, certificates.get(id), certificates.failure(id))) },
    ],
    [
      "workloadState",
      {
        members: mapped(pods, (one) => {
          const { podUid } = one.pod;
          return [podUid, dumpPod(one, connections.get(podUid) ?? [], config.trustDomain)];
        }),
      },
    ],
    ["staticConfig", { value: {} }],
    ["version", { value: { version, runtime: `node ${node}`, cryptoProvider: `openssl ${openssl}` } }],
    ["config", { value: config }],
    ["veil", { value: more }],
  ];
  return streamJson(members, clock);
}

function* mapped<T, R>(items: Iterable<T>, map: (item: T) => R): Generator<R> {
  for (const item of items) yield map(item);
}

/** A workload. */
function dumpWorkload(workload: Workload): Json {
  const { addresses, waypoint, networkGateway, tunnelProtocol, hostNetwork, services, healthy } = workload;
  const { uid, name, namespace, trustDomain, serviceAccount, network, hostname, node, clusterId, capacity } = workload;
  const { workloadName, workloadType, canonicalName, canonicalRevision, nativeTunnel, locality } = workload;
  return {
    uid,
    name,
    namespace,
    workloadIps: addresses,
    hostname,
    protocol: tunnelProtocol === "hbone" ? "HBONE" : "TCP",
    networkMode: hostNetwork ? "HostNetwork" : "Standard",
    status: healthWord(healthy),
    waypoint: dumpGateway(waypoint),
    networkGateway: dumpGateway(networkGateway),
    trustDomain,
    serviceAccount,
    network,
    node,
    clusterId,
    capacity,
    workloadName,
    workloadType,
    canonicalName,
    canonicalRevision,
    nativeTunnel,
    locality,
    applicationTunnel: dumpTunnel(workload.applicationTunnel),
    authorizationPolicies: workload.authorizationPolicies,
    services: Object.keys(services),
  };
}

/** A service with its endpoints. */
function dumpService(service: Service, endpoints: Iterable<Workload>): Json {
  const { name, namespace, hostname, addresses, ports, subjectAltNames, canonical, visibility } = service;
  const { waypoint, weightedWaypoints, ipFamilies } = service;
  const prefixes = addresses.filter(({ length }) => length !== undefined);
  return {
    name,
    namespace,
    hostname,
    vips: addresses.filter(({ length }) => length === undefined).map(({ network, address }) => `${network}/${address}`),
    cidrVips:
      prefixes.length === 0
        ? undefined
        : prefixes.map(({ network, address, length }) => ({ network, cidr: `${address}/${length}` })),
    ports: dumpPorts(ports),
    endpoints: dumpEndpoints(`${namespace}/${hostname}`, endpoints),
    subjectAltNames,
    waypoint: dumpGateway(waypoint),
    weightedWaypoints:
      weightedWaypoints.length === 0
        ? undefined
        : weightedWaypoints.map((one) => ({ destination: dumpGateway(one.waypoint), weight: one.weight })),
    loadBalancer: dumpLoadBalancing(service.loadBalancing),
    ipFamilies: FAMILIES[ipFamilies],
    canonical,
    visibility: capitalised(visibility),
  };
}

/** Endpoints of a service, by workload. */
function dumpEndpoints(service: string, endpoints: Iterable<Workload>): Json {
  const dumped: Record<string, Json> = {};
  for (const { uid, services, healthy } of endpoints) {
    dumped[uid] = { workloadUid: uid, service, port: dumpPorts(services[service] ?? []), status: healthWord(healthy) };
  }
  return dumped;
}

const SCOPES = { global: "Global", namespace: "Namespace", workload: "WorkloadSelector" } as const;

/** A policy. */
function dumpPolicy({ name, namespace, scope, action, rules, dryRun }: Authorization): Json {
  return {
    name,
    namespace,
    scope: SCOPES[scope],
    action: capitalised(action),
    rules: rules.map((rule) => rule.map((clause) => clause.map(dumpMatch))),
    dryRun,
  };
}

function dumpMatch(match: AuthorizationMatch): Json {
  const dumped = Object.entries(match).map(([kind, values]): [string, unknown[]] => [kind, values.map(dumpCondition)]);
  return Object.fromEntries(dumped.filter(([, values]) => values.length > 0));
}

/** One value of a condition: a port, a service account, a range of addresses, or a pattern. */
function dumpCondition(value: AuthorizationMatch[keyof AuthorizationMatch][number]): unknown {
  if (typeof value === "number" || "serviceAccount" in value) return value;
  if ("address" in value) return `${value.address}/${value.length}`;
  return value.kind === "presence" ? { Presence: [] } : { [capitalised(value.kind)]: value.value };
}

/** The certificate of an identity of this node, or why there is none. */
function dumpCertificate(id: string, identity: TlsIdentity | undefined, failure: Error | undefined): Json {
  const certChain = dumpChain(identity?.chainPem);
  const rootCerts = dumpChain(identity?.rootsPem);
  const reason = failure === undefined ? "Initializing" : `Unavailable: ${messageOf(failure)}`;
  return { identity: id, state: identity === undefined ? reason : "Available", certChain, rootCerts };
}

/** A pod of this node, with its open connections. */
function dumpPod(
  { pod, served }: { readonly pod: LocalPod; readonly served: boolean },
  connections: readonly OpenConnection[],
  trustDomain: string,
): Json {
  const { name, namespace, serviceAccount } = pod;
  return {
    state: served ? "Up" : "Pending",
    connections: {
      inbound: connections.filter(({ direction }) => direction === "inbound").map(dumpConnection),
      outbound: connections.filter(({ direction }) => direction === "outbound").map(dumpConnection),
    },
    info: { name, namespace, trustDomain, serviceAccount },
  };
}

function dumpConnection({ source, original, actual, encryption }: OpenConnection): Json {
  return {
    src: source,
    originalDst: original ?? null,
    actualDst: actual,
    protocol: encryption === "mutual_tls" ? "HBONE" : "TCP",
  };
}

function dumpChain(pem: string | undefined): readonly Json[] {
  return pem === undefined ? [] : parseCertificates(pem, "a certificate in use").map(dumpX509);
}

function dumpX509({ pem, openssl, notBeforeMs, notAfterMs }: Certificate): Json {
  return {
    pem: Buffer.from(pem).toString("base64"),
    serialNumber: BigInt(`0x${openssl.serialNumber}`).toString(),
    validFrom: formatSeconds(notBeforeMs),
    expirationTime: formatSeconds(notAfterMs),
  };
}

/** RFC 3339 without fractions. */
function formatSeconds(timeMs: number): string {
  return new Date(timeMs).toISOString().replace(/\.\d+Z$/, "Z");
}

function dumpGateway(gateway: GatewayAddress | undefined): Json | undefined {
  if (gateway === undefined) return undefined;
  const { destination, hboneMtlsPort } = gateway;
  const text =
    destination.kind === "hostname"
      ? `${destination.namespace}/${destination.hostname}`
      : `${destination.network}/${destination.address}`;
  return { destination: text, hboneMtlsPort };
}

function dumpTunnel(tunnel: Workload["applicationTunnel"]): Json | undefined {
  return tunnel && { protocol: tunnel.protocol.toUpperCase(), port: tunnel.port === 0 ? null : tunnel.port };
}

function dumpPorts(ports: readonly ServicePort[]): Json {
  return Object.fromEntries(ports.map(({ servicePort, targetPort }) => [servicePort, targetPort]));
}

function dumpLoadBalancing({ mode, routingPreference, allowUnhealthy }: Service["loadBalancing"]): Json | undefined {
  if (mode === "unspecified" && routingPreference.length === 0 && !allowUnhealthy) return undefined;
  return {
    mode: mode === "unspecified" ? "Standard" : capitalised(mode),
    routingPreferences: routingPreference.map(capitalised),
    healthPolicy: allowUnhealthy ? "AllowAll" : "OnlyHealthy",
  };
}

const FAMILIES = { automatic: undefined, ipv4: "IPv4", ipv6: "IPv6", dual: "Dual" } as const;

function healthWord(healthy: boolean): string {
  return healthy ? "Healthy" : "Unhealthy";
}

function capitalised(word: string): string {
  return `${word.slice(0, 1).toUpperCase()}${word.slice(1)}`;
}
