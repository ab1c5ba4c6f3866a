import type { EndpointSlice, Service } from "#kube";

/** One port of a service's address, and who answers there. */
export interface VirtualPort {
  readonly ip: string;
  readonly protocol: "tcp" | "udp";
  readonly port: number;
  /** `ip:port` apart, in a fixed order. */
  readonly endpoints: readonly { readonly ip: string; readonly port: number }[];
}

type Endpoint = NonNullable<EndpointSlice["endpoints"]>[number];

/** The label that says whose slice it is. */
const SERVICE_NAME = "kubernetes.io/service-name";

/** Slices by `namespace/name` of their service. */
export function slicesByService(slices: readonly EndpointSlice[]): Map<string, EndpointSlice[]> {
  const groups = new Map<string, EndpointSlice[]>();
  for (const slice of slices) {
    const name = slice.metadata?.labels?.[SERVICE_NAME];
    if (name === undefined || slice.addressType !== "IPv4") continue;
    const key = `${slice.metadata?.namespace ?? ""}/${name}`;
    groups.set(key, [...(groups.get(key) ?? []), slice]);
  }
  return groups;
}

/** An endpoint may be used when it is ready; one that does not say counts as ready. */
export function isReadyEndpoint(endpoint: Endpoint): boolean {
  return endpoint.conditions?.ready ?? true;
}

/** All ports of all services with an address of their own, with their ready endpoints. */
export function virtualPorts(services: readonly Service[], slices: readonly EndpointSlice[]): VirtualPort[] {
  const groups = slicesByService(slices);
  return services.flatMap((service) => {
    const { clusterIP = "", type, ports = [] } = service.spec ?? {};
    if (!/^\d+\./.test(clusterIP) || type === "ExternalName") return [];
    const own = groups.get(`${service.metadata?.namespace ?? ""}/${service.metadata?.name ?? ""}`) ?? [];
    return ports.flatMap(({ name = "", protocol = "TCP", port }): VirtualPort[] => {
      const lower = protocol.toLowerCase();
      if (lower !== "tcp" && lower !== "udp") return [];
      return [{ ip: clusterIP, protocol: lower, port, endpoints: endpointsOf(own, name) }];
    });
  });
}

function endpointsOf(slices: readonly EndpointSlice[], portName: string): { ip: string; port: number }[] {
  const found = slices.flatMap((slice) => {
    const port = slice.ports?.find(({ name = "" }) => name === portName)?.port;
    if (port === undefined) return [];
    const ready = (slice.endpoints ?? []).filter(isReadyEndpoint);
    return ready.flatMap(({ addresses }) => addresses.slice(0, 1).map((ip) => ({ ip, port })));
  });
  const unique = new Map(found.map((endpoint) => [`${endpoint.ip}:${endpoint.port}`, endpoint]));
  return [...unique].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, endpoint]) => endpoint);
}
