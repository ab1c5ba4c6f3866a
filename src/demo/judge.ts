import type { V1ContainerStatus, V1Pod } from "@kubernetes/client-node";
import type { FlowRecord } from "#model/flow";
import { firstEncryptedUs, observePath, openedInClear, type Captures, type Pair } from "./evidence.ts";
import { CAST, ENROLLED, wordsBetween, type Cast } from "./manifest.ts";
import type { DemoCheck, DemoIdentities, DemoPath, DemoPod, DemoReport } from "./report.ts";

/** What was gathered while the demo played. Pods and logs are keyed `namespace/pod`. */
export interface Story {
  readonly podsBefore: ReadonlyMap<string, V1Pod>;
  readonly podsAfter: ReadonlyMap<string, V1Pod>;
  /** The lines that each client printed, one per request, each beginning with its time (RFC 3339). */
  readonly clientLogs: ReadonlyMap<string, readonly string[]>;
  readonly captures: Captures;
  readonly records: readonly FlowRecord[];
  /** Microseconds since the epoch. */
  readonly moments: { readonly beforeUs: number; readonly labelUs: number; readonly endUs: number };
}

/** The part of the report that follows from what was gathered. */
export type Judgement = Pick<DemoReport, "before" | "after" | "identities" | "pods" | "labelToEncryptedMs" | "checks">;

/** Says what the wire, the records and the pods showed. Pure. */
export function judge(story: Story): Judgement {
  const { captures, moments } = story;
  const pairs = CAST.filter(({ calls }) => calls !== undefined).map((client) => pairOf(client, story.podsBefore));
  const inMesh = pairs.filter(({ from }) => isEnrolled(from));
  const switched = inMesh.map((pair) => firstEncryptedUs(pair, captures.underlay) ?? Number.POSITIVE_INFINITY);
  const switchedUs = Math.max(...switched);
  const phase = { fromUs: Math.min(switchedUs, moments.endUs), toUs: moments.endUs };
  const facts = {
    before: pairs.map((pair) => observePath(pair, captures, { fromUs: moments.beforeUs, toUs: moments.labelUs })),
    after: pairs.map((pair) => observePath(pair, captures, phase)),
    identities: CAST.filter(({ calls }) => calls !== undefined).map((client) => identitiesOf(client, story.records)),
    pods: [...story.podsBefore.keys()].map((name) => describePod(name, story)),
  };
  const lateConnections = inMesh.flatMap((pair) => openedInClear(pair, captures.underlay, switchedUs)).length;
  const packetCount = captures.underlay.length + captures.pods.length;
  return {
    ...facts,
    labelToEncryptedMs: Math.round((switchedUs - moments.labelUs) / 1000),
    checks: [...wireChecks(facts, { lateConnections, packetCount }), ...peopleChecks(facts)],
  };
}

type Facts = Pick<Judgement, "before" | "after" | "identities" | "pods">;

function wireChecks(facts: Facts, counts: { lateConnections: number; packetCount: number }): DemoCheck[] {
  const labelled = facts.after.filter(({ from }) => isEnrolled(from));
  const visitors = facts.after.filter(({ from }) => !isEnrolled(from));
  const wordCount = (paths: readonly DemoPath[]): number =>
    paths.reduce((sum, path) => sum + path.readableWords.length, 0);
  return [
    {
      claim: "before the label, the words of every pair can be read on the wire",
      seen: facts.before.every((path) => path.readableWords.length === 2),
      detail: `${wordCount(facts.before)} of ${2 * facts.before.length} words found`,
    },
    {
      claim: "after it, every connection of the labelled pairs is TLS 1.3 on port 15008",
      seen:
        labelled.every(({ protocol, port }) => protocol === "TLS 1.3" && port === 15008) &&
        counts.lateConnections === 0,
      detail: `${counts.lateConnections} connections opened in clear after the switch`,
    },
    {
      claim: "not one of their words can be read any more",
      seen: wordCount(labelled) === 0,
      detail: `${counts.packetCount} packets searched`,
    },
    {
      claim: "the same capture still finds the visitor's words, so it would have found theirs",
      seen: visitors.every((path) => path.readableWords.length === 2),
      detail: `${wordCount(visitors)} of ${2 * visitors.length} words found`,
    },
  ];
}

function peopleChecks({ identities, pods }: Facts): DemoCheck[] {
  const labelled = identities.filter(({ from }) => isEnrolled(from));
  const visitors = identities.filter(({ from }) => !isEnrolled(from));
  const known = labelled.filter(
    ({ sourceIdentity, destinationIdentity }) => sourceIdentity !== undefined && destinationIdentity !== undefined,
  );
  const failed = pods.reduce((sum, pod) => sum + pod.failedRequests, 0);
  return [
    {
      claim: "both ends of the labelled pairs are known by their SPIFFE identities",
      seen: known.length === labelled.length && labelled.every(({ encryption }) => encryption === "mutual_tls"),
      detail: `${known.length} of ${labelled.length} pairs`,
    },
    {
      claim: "the visitor is still served, in clear, and its connections are marked so",
      seen: visitors.every(({ encryption }) => encryption === "plaintext"),
      detail: visitors.map(({ reason }) => reason).join(", "),
    },
    {
      claim: "the same processes run as before, and no request failed",
      seen: pods.every(({ unchanged }) => unchanged) && failed === 0,
      detail: `${pods.reduce((sum, pod) => sum + pod.requests, 0)} requests, ${failed} failed`,
    },
  ];
}

/** True for `namespace/pod` in a labelled namespace. */
function isEnrolled(name: string): boolean {
  return ENROLLED.some((namespace) => name.startsWith(`${namespace}/`));
}

function pairOf(client: Cast, pods: ReadonlyMap<string, V1Pod>): Pair {
  const from = `${client.namespace}/${client.name}`;
  const to = `${client.calls?.namespace}/${client.calls?.name}`;
  const ip = (name: string): string => pods.get(name)?.status?.podIP ?? "";
  return { from, to, clientIp: ip(from), serverIp: ip(to), words: wordsBetween(client) };
}

/** The last record of a client's path, preferably the destination's: that is the side that saw the caller. */
export function identitiesOf(client: Cast, records: readonly FlowRecord[]): DemoIdentities {
  const own = records.filter(
    ({ source, destination }) =>
      source.workload === client.name &&
      source.namespace === client.namespace &&
      destination.workload === client.calls?.name,
  );
  const record = own.findLast(({ direction }) => direction === "inbound") ?? own.at(-1);
  return {
    from: `${client.namespace}/${client.name}`,
    to: `${client.calls?.namespace}/${client.calls?.name}`,
    encryption: record?.encryption ?? "no record",
    sourceIdentity: record?.source.identity,
    destinationIdentity: record?.destination.identity,
    reason: record?.reason ?? "no record",
  };
}

function describePod(name: string, story: Story): DemoPod {
  const was = processOf(story.podsBefore.get(name));
  const is = processOf(story.podsAfter.get(name));
  const sinceWatched = new Date(story.moments.beforeUs / 1000).toISOString();
  const lines = (story.clientLogs.get(name) ?? []).filter((line) => line > sinceWatched);
  return {
    name,
    ...is,
    unchanged: is.startedAt !== "" && is.startedAt === was.startedAt && is.uid === was.uid && is.restarts === 0,
    requests: lines.length,
    failedRequests: lines.filter((line) => !isSuccess(line)).length,
  };
}

/** True for a line of the periodic client that tells of an answer. */
export function isSuccess(line: string): boolean {
  return line.includes(" ok ");
}

/** What tells a pod's process from another; `startedAt` is empty when none runs. */
function processOf(pod: V1Pod | undefined): Pick<DemoPod, "uid" | "node" | "startedAt" | "restarts"> {
  const [container] = pod?.status?.containerStatuses ?? [];
  const uid = pod?.metadata?.uid ?? "";
  const node = pod?.spec?.nodeName ?? "";
  return { uid, node, startedAt: startOf(container), restarts: container?.restartCount ?? 0 };
}

function startOf(container: V1ContainerStatus | undefined): string {
  const startedAt = container?.state?.running?.startedAt;
  return startedAt === undefined ? "" : String(startedAt);
}
