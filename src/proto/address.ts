import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { defineErrors, messageOf } from "#base/errors";
import { bytesToIp, ipToBytes, isV6, type IpAddress } from "#base/ip";
import { formatSpiffeId, parseWorkloadIdentity } from "#model/spiffe-id";
import type {
  Address,
  ApplicationTunnel,
  GatewayAddress,
  NetworkAddress,
  Service,
  ServicePort,
  Workload,
} from "#model/workload";
import {
  AddressSchema,
  ApplicationTunnelSchema,
  GatewayAddressSchema,
  IPFamilies,
  LoadBalancing_HealthPolicy,
  LoadBalancing_Mode,
  LoadBalancing_Scope,
  LoadBalancingSchema,
  LocalitySchema,
  NetworkAddressSchema,
  NetworkMode,
  PortListSchema,
  PortSchema,
  Service_Visibility,
  ServiceSchema,
  TunnelProtocol,
  WeightedWaypointSchema,
  WorkloadSchema,
  WorkloadStatus,
  type ApplicationTunnel as WireApplicationTunnel,
  type GatewayAddress as WireGateway,
  type NetworkAddress as WireNetworkAddress,
  type Port as WirePort,
  type Service as WireService,
  type Workload as WireWorkload,
} from "./gen/istio/workload/workload_pb.js";

const fail = defineErrors("address", {
  ADDRESS_TOO_LARGE: { when: "an address resource is larger than 1 MiB", hint: "see which object the name belongs to" },
  ADDRESS_MALFORMED: {
    when: "an address resource is no protobuf message",
    hint: "check the version of the controller",
  },
  ADDRESS_EMPTY: {
    when: "an address resource holds neither a workload nor a service",
    hint: "check the version of the controller: it may send a kind that this version does not know",
  },
  ADDRESS_NAME: { when: "a workload has no uid, or a service no namespace or hostname", hint: "check the controller" },
  ADDRESS_IP: { when: "an address has neither 4 nor 16 bytes", hint: "check the addresses of the named object" },
  ADDRESS_PREFIX: { when: "a prefix is longer than its address", hint: "check the addresses of the named service" },
  ADDRESS_PORT: { when: "a port is above 65535, or a service port is 0", hint: "check the ports of the named object" },
  ADDRESS_SERVICE_KEY: {
    when: "a workload names a service that is not in the form namespace/hostname",
    hint: "check the version of the controller",
  },
  ADDRESS_IDENTITY: {
    when: "namespace, service account and trust domain of an enrolled workload make no SPIFFE ID",
    hint: "correct the trust domain or the names; without an identity nobody can verify this workload",
  },
  ADDRESS_GATEWAY: {
    when: "a waypoint or network gateway has no destination",
    hint: "check the waypoint of the named object",
  },
  ADDRESS_ENUM: {
    when: "a field has a value that this version does not know",
    hint: "update Veil on the node, or use the controller of the same version",
  },
  ADDRESS_LEGACY_TUNNEL: {
    when: "a workload asks for LEGACY_ISTIO_MTLS, which no node proxy speaks",
    hint: "the controller must not send such workloads to nodes",
  },
});

/** Larger resources are refused before they are read. */
export const MAX_ADDRESS_BYTES = 1024 * 1024;

const DEFAULT_TRUST_DOMAIN = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT = "default";

const WORKLOAD_TYPES: readonly Workload["workloadType"][] = ["deployment", "cronjob", "pod", "job"];
const MODES: readonly Service["loadBalancing"]["mode"][] = ["unspecified", "strict", "failover", "passthrough"];
const TUNNELS = ["none", "proxy"] as const;
const FAMILIES: readonly Service["ipFamilies"][] = ["automatic", "ipv4", "ipv6", "dual"];
const SCOPES = ["region", "zone", "subzone", "node", "cluster", "network"] as const;
const FIRST_SCOPE: number = LoadBalancing_Scope.REGION;

/**
 * The `istio.workload.Address` message of a workload or service. Equal values give equal bytes, whatever the order of
 * keys. The trust domain `cluster.local` is left out, as istiod does.
 */
export function encodeAddress(address: Address): Uint8Array {
  const type =
    address.kind === "workload"
      ? { case: "workload" as const, value: wireWorkload(address) }
      : { case: "service" as const, value: wireService(address) };
  return toBinary(AddressSchema, create(AddressSchema, { type }));
}

/**
 * Reads an `istio.workload.Address` message. What the model has no field for is ignored. Values that this version does
 * not know are refused, never guessed: a tunnel that is taken for plaintext would be a leak.
 * Throws one of the `ADDRESS_*` codes, with the field in `details`.
 */
export function decodeAddress(bytes: Uint8Array): Address {
  if (bytes.length > MAX_ADDRESS_BYTES) {
    throw fail("ADDRESS_TOO_LARGE", `an address of ${bytes.length} bytes, at most ${MAX_ADDRESS_BYTES} are allowed`);
  }
  const { type } = parse(bytes);
  if (type.case === "workload") return modelWorkload(type.value);
  if (type.case === "service") return modelService(type.value);
  throw fail("ADDRESS_EMPTY", "an address holds neither a workload nor a service");
}

function parse(bytes: Uint8Array): ReturnType<typeof create<typeof AddressSchema>> {
  try {
    return fromBinary(AddressSchema, bytes);
  } catch (error) {
    throw fail("ADDRESS_MALFORMED", `an address cannot be read: ${messageOf(error)}`, { cause: error });
  }
}

function wireWorkload(workload: Workload): WireWorkload {
  const services = Object.entries(workload.services).sort(([a], [b]) => (a < b ? -1 : 1));
  return create(WorkloadSchema, {
    uid: workload.uid,
    name: workload.name,
    namespace: workload.namespace,
    addresses: workload.addresses.map(ipToBytes),
    hostname: workload.hostname,
    network: workload.network,
    tunnelProtocol: workload.tunnelProtocol === "hbone" ? TunnelProtocol.HBONE : TunnelProtocol.NONE,
    trustDomain: workload.trustDomain === DEFAULT_TRUST_DOMAIN ? "" : workload.trustDomain,
    serviceAccount: workload.serviceAccount,
    ...(workload.waypoint && { waypoint: wireGateway(workload.waypoint) }),
    ...(workload.networkGateway && { networkGateway: wireGateway(workload.networkGateway) }),
    node: workload.node,
    canonicalName: workload.canonicalName,
    canonicalRevision: workload.canonicalRevision,
    workloadType: WORKLOAD_TYPES.indexOf(workload.workloadType),
    workloadName: workload.workloadName,
    nativeTunnel: workload.nativeTunnel,
    services: Object.fromEntries(
      services.map(([key, ports]) => [key, create(PortListSchema, { ports: ports.map(wirePort) })]),
    ),
    authorizationPolicies: [...workload.authorizationPolicies],
    status: workload.healthy ? WorkloadStatus.HEALTHY : WorkloadStatus.UNHEALTHY,
    clusterId: workload.clusterId,
    ...(hasLocality(workload) && { locality: create(LocalitySchema, workload.locality) }),
    networkMode: workload.hostNetwork ? NetworkMode.HOST_NETWORK : NetworkMode.STANDARD,
    ...(workload.capacity !== 1 && { capacity: workload.capacity }),
    ...(workload.applicationTunnel && {
      applicationTunnel: create(ApplicationTunnelSchema, {
        protocol: TUNNELS.indexOf(workload.applicationTunnel.protocol),
        port: workload.applicationTunnel.port,
      }),
    }),
  });
}

function hasLocality({ locality }: Workload): boolean {
  return locality.region !== "" || locality.zone !== "" || locality.subzone !== "";
}

function wireService(service: Service): WireService {
  const { mode, routingPreference, allowUnhealthy } = service.loadBalancing;
  const plain = mode === "unspecified" && routingPreference.length === 0 && !allowUnhealthy;
  return create(ServiceSchema, {
    name: service.name,
    namespace: service.namespace,
    hostname: service.hostname,
    addresses: service.addresses.map(wireNetworkAddress),
    ports: service.ports.map(wirePort),
    subjectAltNames: [...service.subjectAltNames],
    ...(service.waypoint && { waypoint: wireGateway(service.waypoint) }),
    weightedWaypoints: service.weightedWaypoints.map(({ waypoint, weight }) =>
      create(WeightedWaypointSchema, { destination: wireGateway(waypoint), weight }),
    ),
    ...(!plain && {
      loadBalancing: create(LoadBalancingSchema, {
        mode: MODES.indexOf(mode),
        routingPreference: routingPreference.map((scope) => SCOPES.indexOf(scope) + FIRST_SCOPE),
        healthPolicy: allowUnhealthy ? LoadBalancing_HealthPolicy.ALLOW_ALL : LoadBalancing_HealthPolicy.ONLY_HEALTHY,
      }),
    }),
    ipFamilies: FAMILIES.indexOf(service.ipFamilies),
    canonical: service.canonical,
    visibility: service.visibility === "namespace" ? Service_Visibility.NAMESPACE : Service_Visibility.PUBLIC,
  });
}

function wirePort({ servicePort, targetPort }: ServicePort): WirePort {
  return create(PortSchema, { servicePort, targetPort });
}

function wireNetworkAddress({ network, address, length }: NetworkAddress): WireNetworkAddress {
  const bytes = ipToBytes(address);
  return create(NetworkAddressSchema, { network, address: bytes, ...(length !== undefined && { length }) });
}

function wireGateway({ destination, hboneMtlsPort }: GatewayAddress): WireGateway {
  if (destination.kind === "hostname") {
    const { namespace, hostname } = destination;
    return create(GatewayAddressSchema, {
      destination: { case: "hostname", value: { namespace, hostname } },
      hboneMtlsPort,
    });
  }
  const { network, address } = destination;
  const value = { network, address: ipToBytes(address) };
  return create(GatewayAddressSchema, { destination: { case: "address", value }, hboneMtlsPort });
}

function modelWorkload(wire: WireWorkload): Workload {
  if (wire.uid === "") throw fail("ADDRESS_NAME", `workload "${wire.namespace}/${wire.name}" has no uid`);
  const at = `workload "${wire.uid}"`;
  const workload: Workload = {
    kind: "workload",
    uid: wire.uid,
    name: wire.name,
    namespace: wire.namespace,
    addresses: wire.addresses.map((bytes, i) => modelIp(bytes, `${at}: addresses[${i}]`)),
    hostname: wire.hostname,
    network: wire.network,
    tunnelProtocol: modelTunnel(wire.tunnelProtocol, at),
    trustDomain: wire.trustDomain || DEFAULT_TRUST_DOMAIN,
    serviceAccount: wire.serviceAccount || DEFAULT_SERVICE_ACCOUNT,
    waypoint: findGateway(wire.waypoint, `${at}: waypoint`),
    networkGateway: findGateway(wire.networkGateway, `${at}: network_gateway`),
    node: wire.node,
    canonicalName: wire.canonicalName,
    canonicalRevision: wire.canonicalRevision,
    workloadType: pick(WORKLOAD_TYPES, wire.workloadType, `${at}: workload_type`),
    workloadName: wire.workloadName,
    nativeTunnel: wire.nativeTunnel,
    services: modelServices(wire, at),
    authorizationPolicies: wire.authorizationPolicies,
    healthy: pick([true, false], wire.status, `${at}: status`),
    clusterId: wire.clusterId,
    locality: modelLocality(wire),
    hostNetwork: pick([false, true], wire.networkMode, `${at}: network_mode`),
    capacity: wire.capacity ?? 1,
    applicationTunnel:
      wire.applicationTunnel && modelApplicationTunnel(wire.applicationTunnel, `${at}: application_tunnel`),
  };
  if (workload.tunnelProtocol === "hbone") checkIdentity(workload, at);
  return workload;
}

function checkIdentity(workload: Workload, at: string): void {
  try {
    parseWorkloadIdentity(formatSpiffeId(workload)); // a name with a slash would make another form of ID
  } catch (error) {
    throw fail("ADDRESS_IDENTITY", `${at} has no usable identity: ${messageOf(error)}`, { cause: error });
  }
}

function modelApplicationTunnel({ protocol, port }: WireApplicationTunnel, at: string): ApplicationTunnel {
  return { protocol: pick(TUNNELS, protocol, `${at}.protocol`), port: checkPort(port, `${at}.port`) };
}

function modelLocality({ locality }: WireWorkload): Workload["locality"] {
  return { region: locality?.region ?? "", zone: locality?.zone ?? "", subzone: locality?.subzone ?? "" };
}

function modelServices(wire: WireWorkload, at: string): Workload["services"] {
  const entries = Object.entries(wire.services).map(([key, list]): [string, ServicePort[]] => {
    if (!/^[^/]+\/[^/]+$/.test(key)) throw fail("ADDRESS_SERVICE_KEY", `${at}: services has the key "${key}"`);
    return [key, list.ports.map((port) => modelPort(port, `${at}: services["${key}"]`))];
  });
  return Object.fromEntries(entries);
}

function modelTunnel(protocol: TunnelProtocol, at: string): Workload["tunnelProtocol"] {
  if (protocol === TunnelProtocol.LEGACY_ISTIO_MTLS) {
    throw fail("ADDRESS_LEGACY_TUNNEL", `${at} asks for LEGACY_ISTIO_MTLS`, { details: { field: "tunnel_protocol" } });
  }
  return pick(["none", "hbone"], protocol, `${at}: tunnel_protocol`);
}

function modelService(wire: WireService): Service {
  if (wire.namespace === "" || wire.hostname === "") {
    throw fail("ADDRESS_NAME", `service "${wire.namespace}/${wire.hostname}" has no namespace or no hostname`);
  }
  const at = `service "${wire.namespace}/${wire.hostname}"`;
  const balancing = wire.loadBalancing;
  return {
    kind: "service",
    name: wire.name,
    namespace: wire.namespace,
    hostname: wire.hostname,
    addresses: wire.addresses.map((address, i) => modelNetworkAddress(address, `${at}: addresses[${i}]`)),
    ports: wire.ports.map((port) => modelPort(port, `${at}: ports`)),
    subjectAltNames: wire.subjectAltNames,
    waypoint: findGateway(wire.waypoint, `${at}: waypoint`),
    weightedWaypoints: wire.weightedWaypoints.map(({ destination = create(GatewayAddressSchema), weight }, i) => ({
      waypoint: modelGateway(destination, `${at}: weighted_waypoints[${i}]`),
      weight,
    })),
    loadBalancing: {
      mode: pick(MODES, balancing?.mode ?? LoadBalancing_Mode.UNSPECIFIED_MODE, `${at}: load_balancing.mode`),
      routingPreference: (balancing?.routingPreference ?? []).map((scope) =>
        pick(SCOPES, scope - FIRST_SCOPE, `${at}: load_balancing.routing_preference`),
      ),
      allowUnhealthy: pick([false, true], balancing?.healthPolicy ?? 0, `${at}: load_balancing.health_policy`),
    },
    ipFamilies: pick(FAMILIES, wire.ipFamilies ?? IPFamilies.AUTOMATIC, `${at}: ip_families`),
    canonical: wire.canonical,
    visibility: pick(["public", "namespace"], wire.visibility, `${at}: visibility`),
  };
}

function modelNetworkAddress(wire: WireNetworkAddress, at: string): NetworkAddress {
  const address = modelIp(wire.address, at);
  const { length } = wire;
  if (length !== undefined && length > (isV6(address) ? 128 : 32)) {
    throw fail("ADDRESS_PREFIX", `${at} has the prefix length ${length}`, { details: { field: at } });
  }
  return { network: wire.network, address, length };
}

function findGateway(wire: WireGateway | undefined, at: string): GatewayAddress | undefined {
  return wire && modelGateway(wire, at);
}

function modelGateway(wire: WireGateway, at: string): GatewayAddress {
  const { destination } = wire;
  const hboneMtlsPort = checkPort(wire.hboneMtlsPort, `${at}.hbone_mtls_port`);
  if (destination.case === "hostname") {
    const { namespace, hostname } = destination.value;
    return { destination: { kind: "hostname", namespace, hostname }, hboneMtlsPort };
  }
  if (destination.case === "address") {
    const address = modelIp(destination.value.address, `${at}.address`);
    return { destination: { kind: "address", network: destination.value.network, address }, hboneMtlsPort };
  }
  throw fail("ADDRESS_GATEWAY", `${at} has no destination`, { details: { field: at } });
}

function modelPort(wire: WirePort, at: string): ServicePort {
  if (wire.servicePort === 0) throw fail("ADDRESS_PORT", `${at} has the service port 0`, { details: { field: at } });
  return { servicePort: checkPort(wire.servicePort, at), targetPort: checkPort(wire.targetPort, at) };
}

function checkPort(port: number, at: string): number {
  if (port > 65535) throw fail("ADDRESS_PORT", `${at} has the port ${port}`, { details: { field: at } });
  return port;
}

function modelIp(bytes: Uint8Array, at: string): IpAddress {
  if (bytes.length !== 4 && bytes.length !== 16) {
    throw fail("ADDRESS_IP", `${at} has ${bytes.length} bytes, an IP address has 4 or 16`, { details: { field: at } });
  }
  return bytesToIp(bytes);
}

function pick<T>(values: readonly T[], index: number, at: string): T {
  const value = values[index];
  if (value === undefined) {
    throw fail("ADDRESS_ENUM", `${at} has a value that is not known: ${index}`, { details: { field: at } });
  }
  return value;
}
