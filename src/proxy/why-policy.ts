import { findHostPort, findIp, isV6, type IpAddress } from "#base/ip";
import { explainDecision } from "./authorize.ts";
import type { LocalPod, Route, SocketAddress, View } from "./route.ts";

/** What the policies at the destination say, as far as this node knows them: the destination's proxy decides. */
export interface PolicyExplanation {
  readonly allowed: boolean;
  /** One line that names the policy. */
  readonly because: string;
}

/** A connection that is asked about. */
interface Question {
  /** `namespace/pod`. */
  readonly source: string;
  /** Undefined: it is not served here, and proves no identity. */
  readonly pod: LocalPod | undefined;
  readonly to: SocketAddress;
  readonly route: Route | undefined;
}

/** Undefined where nobody enforces policies, or the source or the destination is not known as a workload. */
export function explainPolicies({ source, pod, to, route }: Question, view: View): PolicyExplanation | undefined {
  const { table, policies, network } = view;
  const target = route?.kind === "tunnel" ? targetOf(route) : to;
  const destination = target && table.findWorkloadByIp(network, target.ip);
  if (target === undefined || destination?.tunnelProtocol !== "hbone") return undefined;
  const sourceIp = addressOf(source, target.ip, view);
  if (sourceIp === undefined) return undefined;
  const decision = policies.decide({
    identity: route?.kind === "tunnel" ? pod?.identity : undefined,
    sourceIp,
    destinationIp: target.ip,
    destinationPort: target.port,
    namespace: destination.namespace,
    policyNames: destination.authorizationPolicies,
  });
  return { allowed: decision.allowed, because: explainDecision(decision) };
}

/** What the tunnel's end is asked for; undefined for a name. */
function targetOf({ authority }: Extract<Route, { kind: "tunnel" }>): SocketAddress | undefined {
  const target = findHostPort(authority);
  const ip = target && findIp(target.host);
  return target === undefined || ip === undefined ? undefined : { ip, port: target.port };
}

function addressOf(source: string, like: IpAddress, { table }: View): IpAddress | undefined {
  for (const { namespace, name, addresses } of table.all().workloads) {
    if (`${namespace}/${name}` === source) return addresses.find((ip) => isV6(ip) === isV6(like));
  }
  return undefined;
}
