import { findHostPort, findIp, formatHostPort } from "#base/ip";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import type { TlsIdentity } from "#model/tls-identity";
import type { Workload } from "#model/workload";
import type { Records } from "./records.ts";
import { explainPolicies, type PolicyExplanation } from "./why-policy.ts";
import { decideOutbound, type LocalPod, type Route, type View } from "./route.ts";

/** The answer to "why is a connection from this pod to there (not) encrypted?", as this node's proxy sees it. */
export interface Explanation {
  readonly source: string;
  /** `ip:port`. */
  readonly destination: string;
  /** True when the source is served by this node's proxy: only then its decision counts. */
  readonly sourceServedHere: boolean;
  readonly decision: "tunnel" | "plain" | "ask" | "wait" | "refuse";
  readonly encrypted: boolean;
  /** A stable word: a reason of flow records, or `unknown_destination`, `named_destination`, `no_snapshot`, `source_not_enrolled`. */
  readonly reason: string;
  /** One sentence for people. */
  readonly because: string;
  readonly destinationWorkload: string | undefined;
  readonly destinationService: string | undefined;
  readonly acceptedIdentities: readonly string[];
  /** Whether the destination lets it in; undefined where no policies are enforced. */
  readonly policy: PolicyExplanation | undefined;
  /** The newest connections between the two, newest first. */
  readonly connections: readonly FlowRecord[];
}

/** What an explanation looks at. */
export interface WhyParts {
  readonly view: () => View;
  readonly findPod: (name: string) => LocalPod | undefined;
  readonly certificate: (pod: LocalPod) => TlsIdentity | undefined;
  readonly records: Pick<Records, "newest">;
}

const SHOWN_CONNECTIONS = 5;

/** Explains; a string says what is wrong with the question. */
export function explain(parts: WhyParts, source: string, destination: string): Explanation | string {
  if (!/^[^/\s]+\/[^/\s]+$/.test(source)) return `source must be <namespace>/<pod>, not "${source}"`;
  const target = findHostPort(destination);
  const ip = target === undefined ? undefined : findIp(target.host);
  if (target === undefined || ip === undefined) return `destination must be <ip>:<port>, not "${destination}"`;
  const view = parts.view();
  const pod = parts.findPod(source);
  const [namespace = "", name = ""] = source.split("/");
  const to = { ip, port: target.port };
  const about = {
    source,
    destination: formatHostPort(ip, target.port),
    sourceServedHere: pod !== undefined,
    connections: lastConnections(parts, { namespace, name, destination: formatHostPort(ip, target.port) }),
  };
  if (pod === undefined) {
    const because = `${source} is not enrolled on this node, so its connections do not pass this proxy: they go in clear`;
    const workload = view.table.findWorkloadByIp(view.network, ip);
    return {
      ...about,
      policy: explainPolicies({ source, pod, to, route: undefined }, view),
      decision: "plain",
      encrypted: false,
      reason: "source_not_enrolled",
      because,
      destinationWorkload: workload?.uid,
      destinationService: undefined,
      acceptedIdentities: [],
    };
  }
  const route = decideOutbound(pod, to, view);
  const missing = route.kind === "tunnel" && parts.certificate(pod) === undefined;
  const policy = explainPolicies({ source, pod, to, route }, view);
  return { ...about, policy, ...(missing ? uncertified(pod, route) : describe(route)) };
}

type Described = Omit<Explanation, "source" | "destination" | "sourceServedHere" | "policy" | "connections">;

function describe(route: Route): Described {
  const nobody = {
    destinationWorkload: undefined,
    destinationService: undefined,
    acceptedIdentities: [],
    encrypted: false,
  };
  if (route.kind === "wait") {
    const because = "the control plane has not said yet who is where: connections are held, then refused";
    return { ...nobody, decision: "wait", reason: "no_snapshot", because };
  }
  if (route.kind === "ask") {
    const because =
      "the address is inside the cluster and unknown here: each connection is held while the control plane is asked";
    return { ...nobody, decision: "ask", reason: "unknown_destination", because };
  }
  if (route.kind === "resolve") {
    const because = `the destination is known by its name ${route.hostname}, which is looked up for each connection`;
    return { ...nobody, decision: "ask", reason: "named_destination", because };
  }
  const { workload, service } = route.destination;
  const known = { ...nobody, destinationWorkload: workload?.uid, destinationService: service?.hostname };
  if (route.kind === "refuse") return { ...known, decision: "refuse", reason: route.reason, because: route.detail };
  if (route.kind === "plain")
    return { ...known, decision: "plain", reason: route.reason, because: plainBecause(route.reason, workload) };
  const { target, inner, accepted } = route;
  const there = formatHostPort(target.ip, target.port);
  const because =
    inner === undefined
      ? `both ends are enrolled: mutual TLS to ${there}`
      : `the destination is on another network: mutual TLS to it inside mutual TLS to its gateway ${there}`;
  return {
    ...known,
    decision: "tunnel",
    encrypted: true,
    reason: "ok",
    because,
    acceptedIdentities: (inner ?? { accepted }).accepted,
  };
}

function plainBecause(reason: string, workload: Workload | undefined): string {
  if (reason === "destination_outside")
    return "the address is outside the cluster: there is nobody to speak mutual TLS with";
  if (workload === undefined) return "the control plane knows no workload at this address";
  return `${workload.namespace}/${workload.name} is not enrolled`;
}

function uncertified(pod: LocalPod, route: Extract<Route, { kind: "tunnel" }>): Described {
  const because = `there is no valid certificate for ${pod.identity} on this node: connections are held, then refused`;
  return { ...describe(route), decision: "refuse", encrypted: false, reason: "no_certificate", because };
}

function lastConnections(
  { records }: WhyParts,
  { namespace, name, destination }: { namespace: string; name: string; destination: string },
): readonly FlowRecord[] {
  const lines = records.newest([name, namespace, destination], 4 * SHOWN_CONNECTIONS);
  return lines
    .flatMap((line) => findAccessRecord(line) ?? [])
    .filter(({ source }) => source.workload === name && source.namespace === namespace)
    .slice(0, SHOWN_CONNECTIONS);
}
