import { findIp } from "#base/ip";
import type { Workload } from "#model/workload";
import type { Cluster } from "./cluster.ts";

/** A workload of which nothing is known: no pod stands behind it, and whoever makes it says what it is. */
export function bareWorkload({ network, trustDomain, clusterId }: Cluster, uid: string): Workload {
  return {
    kind: "workload",
    uid,
    name: "",
    namespace: "",
    addresses: [],
    hostname: "",
    network,
    tunnelProtocol: "none",
    trustDomain,
    serviceAccount: "",
    waypoint: undefined,
    networkGateway: undefined,
    node: "",
    canonicalName: "",
    canonicalRevision: "",
    workloadType: "pod", // as istiod says of all that are not made by anything else
    workloadName: "",
    nativeTunnel: false,
    services: {},
    authorizationPolicies: [],
    healthy: true,
    clusterId,
    locality: { region: "", zone: "", subzone: "" },
    hostNetwork: false,
    capacity: 1,
    applicationTunnel: undefined,
  };
}

/** An IP address, or else a hostname, which the proxy looks up when it is needed. */
export function targetOf(address: string): Pick<Workload, "addresses" | "hostname"> {
  const ip = findIp(address);
  return ip === undefined ? { addresses: [], hostname: address } : { addresses: [ip], hostname: "" };
}
