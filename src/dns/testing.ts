import { decode, encode, RECURSION_DESIRED, type DecodedPacket, type Packet, type RecordType } from "dns-packet";
import { parseIp } from "#base/ip";
import { seededRandom } from "#base/random";
import type { Service, Workload } from "#model/workload";
import type { NameTable, Resolver } from "./resolve.ts";

/** A service of namespace `ns1` on network `nw1`, named and known by `hostname`. */
export function dnsService(hostname: string, vips: readonly string[], more: Partial<Service> = {}): Service {
  return {
    kind: "service",
    name: hostname.split(".")[0] ?? "",
    namespace: "ns1",
    hostname,
    addresses: vips.map((vip) => ({ network: "nw1", address: parseIp(vip), length: undefined })),
    ports: [{ servicePort: 80, targetPort: 80 }],
    subjectAltNames: [],
    waypoint: undefined,
    loadBalancing: { mode: "unspecified", routingPreference: [], allowUnhealthy: false },
    ipFamilies: "automatic",
    canonical: false,
    visibility: "public",
    ...more,
  } as Service; // fields that other components add do not matter to names
}

/** A service of the cluster; `where` is `name.namespace`. */
export function kubernetesService(where: string, vips: readonly string[], more: Partial<Service> = {}): Service {
  const [name = "", namespace = ""] = where.split(".");
  return dnsService(`${where}.svc.cluster.local`, vips, { name, namespace, ...more });
}

/** What names look at of an endpoint. */
export function dnsEndpoint(ips: readonly string[], more: Partial<Workload> = {}): Workload {
  return { kind: "workload", addresses: ips.map((ip) => parseIp(ip)), healthy: true, ...more } as Workload; // nothing else is read
}

/** A table of these services, with endpoints by hostname. */
export function dnsTable(
  services: readonly Service[],
  endpoints: Readonly<Record<string, readonly Workload[]>> = {},
): NameTable {
  return {
    servicesByHostname: (hostname) => services.filter((service) => service.hostname === hostname),
    endpoints: ({ hostname }) => endpoints[hostname] ?? [],
  };
}

/** A client of namespace `ns1` on network `nw1`. */
export function dnsResolver(table: NameTable, more: Partial<Resolver> = {}): Resolver {
  return {
    table,
    scope: { namespace: "ns1", clusterDomain: "cluster.local" },
    network: "nw1",
    preferredNamespace: "",
    ipv6: true,
    random: seededRandom(1),
    ...more,
  };
}

/** The bytes of a question, by another implementation. */
export function dnsQuestion(name: string, type: RecordType = "A", more: Partial<Packet> = {}): Buffer {
  return encode({ type: "query", id: 0x1234, flags: RECURSION_DESIRED, questions: [{ name, type }], ...more });
}

/** An answer as another implementation reads it. */
export function readAnswer(bytes: Buffer): { packet: DecodedPacket; texts: readonly string[] } {
  const packet = decode(bytes);
  const texts = (packet.answers ?? []).map((answer) => {
    const data: unknown = Reflect.get(answer, "data");
    return `${answer.name} ${answer.type} ${typeof data === "string" ? data : ""}`;
  });
  return { packet, texts };
}
