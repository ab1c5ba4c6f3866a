import { decideEligibility, misreadLabels, type Eligibility } from "#enrolment";
import type { Pod } from "#kube";
import type { FlowRecord } from "#model/flow";
import { REDIRECTION_ANNOTATION } from "#model/redirection";
import type { Explanation } from "#proxy";

/** What is known about both ends. */
export interface WhyFacts {
  /** Where Veil is installed. */
  readonly namespace: string;
  readonly source: Pod;
  /** Labels of its namespace. */
  readonly sourceNamespace: Readonly<Record<string, string>>;
  /** Undefined: no pod has the address. */
  readonly destination: Pod | undefined;
  readonly destinationNamespace: Readonly<Record<string, string>> | undefined;
  /** `ip:port`. */
  readonly address: string;
  /** What the proxy of the source's node says, or why it could not be asked. */
  readonly proxy: Explanation | string;
}

/** One end, as the cluster has it. */
interface WhyEnd {
  /** `namespace/pod`, or an address. */
  readonly name: string;
  readonly node: string | undefined;
  /** Why it is (not) to be enrolled. */
  readonly labels: Eligibility["reason"] | "no_pod";
  readonly wanted: boolean;
  /** Labels of it or of its namespace that were meant to enrol and mean nothing. */
  readonly misread: readonly string[];
  /** True when its connections are redirected. */
  readonly enrolled: boolean;
}

/** The answer of `veil why -o json`. */
export interface WhyAnswer {
  readonly encrypted: boolean;
  /** One sentence. */
  readonly because: string;
  /** What to type to change it, if something can be. */
  readonly remedy: string | undefined;
  readonly source: WhyEnd;
  readonly destination: WhyEnd & { readonly address: string };
  /** The decision of the source's proxy; undefined when it could not be asked. */
  readonly proxy: Omit<Explanation, "connections"> | undefined;
  /** Newest first. */
  readonly connections: readonly FlowRecord[];
}

const WORDS: Readonly<Record<WhyEnd["labels"], string>> = {
  pod_label: "is enrolled by its own label",
  namespace_label: "is enrolled by its namespace's label",
  leaving: "is not enrolled any more: Veil leaves the cluster",
  not_labelled: "has no label that enrols it, and neither has its namespace",
  pod_opts_out: "opts out by its own label",
  host_network: "uses its node's network and cannot be enrolled",
  sidecar: "has a sidecar of its own and is left alone",
  namespace_excluded: "is in a namespace that is never enrolled",
  ended: "has ended",
  no_pod: "is no pod of this cluster",
};

/** Puts the facts together. Pure. */
export function answerWhy(facts: WhyFacts): WhyAnswer {
  const ends = {
    source: endOf(facts.source, facts.sourceNamespace, facts.namespace),
    destination: { ...destinationOf(facts), address: facts.address },
  };
  if (typeof facts.proxy === "string") {
    const because = reasonOf(ends) ?? facts.proxy;
    return { encrypted: false, because, remedy: remedyOf(ends), ...ends, proxy: undefined, connections: [] };
  }
  const { connections, ...proxy } = facts.proxy;
  const { encrypted, because } = proxy;
  const answer = { ...ends, proxy, connections };
  if (encrypted) return { encrypted, because, remedy: undefined, ...answer };
  return { encrypted, because: reasonOf(ends) ?? because, remedy: remedyOf(ends), ...answer };
}

/** The answer for people. */
export function formatAnswer(answer: WhyAnswer): string {
  const { source, destination, connections } = answer;
  const lines = [
    `${source.name} -> ${destination.name}: ${answer.encrypted ? "encrypted (mutual TLS)" : "NOT encrypted"}`,
    `  because ${answer.because}`,
    ...describePolicy(answer.proxy?.policy),
    ...(answer.remedy === undefined ? [] : [`  to change it: ${answer.remedy}`]),
    "",
    describeEnd("source", source),
    describeEnd("destination", destination),
    ...(answer.proxy?.acceptedIdentities ?? []).map((identity) => `  the proxy accepts only ${identity}`),
    ...(connections.length === 0
      ? ["  no connection between them has ended yet on the source's node"]
      : ["  last connections, newest first:"]),
    ...connections.map(describeConnection),
  ];
  return `${lines.join("\n")}\n`;
}

interface Ends {
  readonly source: WhyEnd;
  readonly destination: WhyEnd;
}

function destinationOf({ namespace, destination, destinationNamespace, address }: WhyFacts): WhyEnd {
  if (destination !== undefined) return endOf(destination, destinationNamespace ?? {}, namespace);
  return { name: address, node: undefined, labels: "no_pod", wanted: false, misread: [], enrolled: false };
}

function endOf(pod: Pod, namespaceLabels: Readonly<Record<string, string>>, veilNamespace: string): WhyEnd {
  const { labels = {}, annotations = {}, namespace = "", name = "", uid = "" } = pod.metadata ?? {};
  const where = { hostNetwork: pod.spec?.hostNetwork === true, phase: pod.status?.phase ?? "" };
  const facts = { uid, name, namespace, labels, annotations, serviceAccount: "", ...where };
  const { eligible, reason } = decideEligibility(facts, namespaceLabels, veilNamespace);
  const enrolled = annotations[REDIRECTION_ANNOTATION] === "enabled";
  const misread = [...misreadLabels(labels), ...misreadLabels(namespaceLabels)];
  return {
    name: `${namespace}/${name}`,
    node: pod.spec?.nodeName,
    labels: reason,
    wanted: eligible,
    misread,
    enrolled,
  };
}

/** What the cluster's objects alone say against encryption; undefined when nothing does. */
function reasonOf({ source, destination }: Ends): string | undefined {
  const ends = [source, destination];
  const unwanted = ends.find(({ wanted }) => !wanted);
  if (unwanted !== undefined) {
    const misread = unwanted.misread.map((label) => `; label ${label} means nothing`).join("");
    return `${unwanted.name} ${WORDS[unwanted.labels]}${misread}`;
  }
  const waiting = ends.find(({ enrolled }) => !enrolled);
  if (waiting === undefined) return undefined;
  return `${waiting.name} ${WORDS[waiting.labels]}, but its connections are not redirected yet: see its node's agent`;
}

function remedyOf({ source, destination }: Ends): string | undefined {
  const unlabelled = [source, destination].filter(({ labels }) => labels === "not_labelled");
  const names = new Set(unlabelled.map(({ name }) => name.split("/")[0] ?? ""));
  if (names.size === 0) return undefined;
  return `kubectl label namespace ${[...names].join(" ")} io.cilium/mtls-enabled=true`;
}

function describeEnd(which: string, end: WhyEnd): string {
  const node = end.node === undefined ? "" : ` on ${end.node}`;
  return `  ${which} ${end.name}${node} ${WORDS[end.labels]}; ${end.enrolled ? "its connections are redirected" : "its connections are not redirected"}`;
}

function describePolicy(policy: Explanation["policy"]): string[] {
  if (policy === undefined) return [];
  return [`  the destination's policies ${policy.allowed ? "let it in" : "REFUSE it"}: ${policy.because}`];
}

function describeConnection(record: FlowRecord): string {
  const when = new Date(record.timeMs).toISOString();
  const detail = record.detail === "" ? "" : `: ${record.detail}`;
  return `    ${when} ${record.direction} ${record.verdict} ${record.encryption} ${record.reason}${detail}`;
}
