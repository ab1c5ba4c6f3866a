import { findIp, type IpAddress } from "#base/ip";
import type { EndpointSlice } from "#kube";
import type { ServicePort, Workload } from "#model/workload";
import { bareWorkload } from "./bare-workload.ts";
import { endpointUid, type Cluster, type Problem } from "./cluster.ts";
import type { ServiceFacts } from "./service.ts";

const SERVICE_LABEL = "kubernetes.io/service-name";

/** What of an EndpointSlice matters: which service, which addresses, which ports. */
export interface SliceFacts {
  readonly namespace: string;
  readonly name: string;
  /** `namespace/name` of the Service. */
  readonly service: string;
  readonly endpoints: readonly { readonly ip: IpAddress; readonly ready: boolean }[];
  /** TCP ports by the name that the Service has for them. */
  readonly ports: ReadonlyMap<string, number>;
}

/** Reads an EndpointSlice of addresses. Undefined when it belongs to no service or lists names (FQDN). */
export function sliceFacts(slice: EndpointSlice): { facts: SliceFacts; problems: readonly Problem[] } | undefined {
  const { name = "", namespace = "", labels = {} } = slice.metadata ?? {};
  const service = labels[SERVICE_LABEL];
  if (service === undefined || slice.addressType === "FQDN") return undefined;
  const problems: Problem[] = [];
  const endpoints = (slice.endpoints ?? []).flatMap(({ addresses, conditions }, i) =>
    addresses.flatMap((text) => {
      const ip = findIp(text);
      if (ip !== undefined) return [{ ip, ready: conditions?.ready !== false }];
      const object = `EndpointSlice ${namespace}/${name}`;
      problems.push({ object, field: `endpoints[${i}].addresses`, message: `"${text}" is no IP address` });
      return [];
    }),
  );
  const ports = (slice.ports ?? []).flatMap(({ name: port = "", port: number, protocol = "TCP" }): [string, number][] =>
    number === undefined || protocol !== "TCP" ? [] : [[port, number]],
  );
  return {
    facts: { namespace, name, service: `${namespace}/${service}`, endpoints, ports: new Map(ports) },
    problems,
  };
}

/** The ports of a service at the endpoints of one of its slices. */
export function endpointPorts(slice: SliceFacts, service: ServiceFacts): readonly ServicePort[] {
  return service.ports.flatMap(({ name, servicePort }) => {
    const targetPort = slice.ports.get(name);
    return targetPort === undefined ? [] : [{ servicePort, targetPort }];
  });
}

/**
 * The workload of an endpoint that is no pod: somebody else's address, reached in clear. Not found by its address,
 * because such addresses may be those of nodes.
 */
export function endpointWorkload(
  slice: SliceFacts,
  endpoint: SliceFacts["endpoints"][number],
  around: { readonly cluster: Cluster; readonly service: ServiceFacts },
): Workload {
  const { cluster, service } = around;
  return {
    ...bareWorkload(cluster, endpointUid(cluster, slice, endpoint.ip)),
    name: slice.name,
    namespace: slice.namespace,
    addresses: [endpoint.ip],
    services: { [service.key]: endpointPorts(slice, service) },
    healthy: endpoint.ready,
    hostNetwork: true,
  };
}
