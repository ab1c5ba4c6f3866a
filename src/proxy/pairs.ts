import type { Cell, CellSet } from "#base/metrics";
import { AccessLines, type AccessFormat } from "#model/access-log";
import type { Encryption, FlowPeer, FlowReason, FlowRecord } from "#model/flow";
import type { SpiffeId } from "#model/spiffe-id";
import type { Service, Workload } from "#model/workload";
import { responseFlags } from "./flags.ts";
import type { Baggage } from "./headers.ts";
import type { LocalPod, SocketAddress } from "./route.ts";

/** One end of a connection, for its record and its metrics. */
export interface Party {
  readonly address: SocketAddress;
  readonly workload: Workload | undefined;
  /** What is known without the control plane: the pod that the agent handed over. */
  readonly pod?: Pick<LocalPod, "podUid" | "name" | "namespace"> | undefined;
  /** What it says of itself, where nothing else is known of it. */
  readonly described?: Baggage | undefined;
  /** Only what TLS has proved, or will present. */
  readonly identity: SpiffeId | undefined;
}

/** What is known once a connection has been decided. */
export interface Facts {
  readonly source: Party;
  readonly destination: Party;
  readonly service: Service | undefined;
  /** The real target behind a tunnel. */
  readonly hboneTarget: string | undefined;
  readonly encryption: Encryption;
  readonly reason: FlowReason;
  readonly detail?: string;
  /** What policies in dry run would have changed. */
  readonly dryRun?: string | undefined;
  /** 32 hex digits; see {@link FlowRecord.traceId}. */
  readonly traceId?: string | undefined;
  /** Outbound: where the application wanted to go, before a route was chosen. */
  readonly asked?: SocketAddress;
  /** Inbound: where the application of the pod listens. */
  readonly application?: SocketAddress | undefined;
}

/** What connections between the same two ends have in common. */
export interface Pair {
  readonly lines: AccessLines;
  readonly opened: Cell;
  readonly closed: Cell;
  readonly sent: Cell;
  readonly received: Cell;
}

/** Pairs that are remembered; beyond that the memory starts anew. */
const MAX_PAIRS = 4096;
/** Of those, the ones of a workload that are found without its names. */
const MAX_PAIRS_OF_WORKLOAD = 64;

/** The pairs of ends of a data thread's connections: found again at once, as most connections have been there before. */
export class Pairs {
  readonly #cells: CellSet;
  readonly #format: AccessFormat;
  readonly #named = new Map<string, Pair>();
  /** The same without names, by the workload at the far end, with the first connection of each. */
  readonly #ofWorkloads = new WeakMap<Workload, { direction: FlowRecord["direction"]; facts: Facts; pair: Pair }[]>();

  /** `cells` are those that connections are counted in. */
  constructor(cells: CellSet, format: AccessFormat) {
    this.#cells = cells;
    this.#format = format;
  }

  /** The access log's lines of connections between these ends. */
  linesOf(direction: FlowRecord["direction"], { source, destination, service }: Facts): AccessLines {
    const to = { ...peerOf(destination), service: service?.hostname };
    return new AccessLines(this.#format, { direction, source: peerOf(source), destination: to });
  }

  /** The pair of a connection. */
  of(direction: FlowRecord["direction"], facts: Facts): Pair {
    const [far, near] =
      direction === "outbound" ? [facts.destination, facts.source] : [facts.source, facts.destination];
    if (far.workload === undefined || near.workload === undefined) return this.#byName(direction, facts);
    let known = this.#ofWorkloads.get(far.workload);
    if (known === undefined || known.length >= MAX_PAIRS_OF_WORKLOAD) this.#ofWorkloads.set(far.workload, (known = []));
    for (const one of known) if (one.direction === direction && isSame(one.facts, facts)) return one.pair;
    const pair = this.#byName(direction, facts);
    known.push({ direction, facts, pair });
    return pair;
  }

  #byName(direction: FlowRecord["direction"], facts: Facts): Pair {
    const { source, destination, service } = facts;
    const key = `${direction}\0${facts.encryption}\0${partyKey(source)}\0${partyKey(destination)}\0${service?.hostname}`;
    const known = this.#named.get(key);
    if (known !== undefined) return known;
    if (this.#named.size >= MAX_PAIRS) this.#named.clear();
    const labels = trafficLabels(direction, facts);
    const pair = {
      lines: this.linesOf(direction, facts),
      opened: this.#cells.bind("istio_tcp_connections_opened_total", labels),
      closed: this.#cells.bind("istio_tcp_connections_closed_total", labels),
      sent: this.#cells.bind("istio_tcp_sent_bytes_total", labels),
      received: this.#cells.bind("istio_tcp_received_bytes_total", labels),
    };
    this.#named.set(key, pair);
    return pair;
  }
}

/** Whether two connections of the same direction have the same ends, in all that a {@link Pair} says of them. */
function isSame(a: Facts, b: Facts): boolean {
  return (
    a.source.workload === b.source.workload &&
    a.destination.workload === b.destination.workload &&
    a.service === b.service &&
    a.encryption === b.encryption &&
    a.source.identity === b.source.identity &&
    a.destination.identity === b.destination.identity
  );
}

function peerOf(party: Party): Omit<FlowPeer, "address"> {
  const { workload, identity } = party;
  const { workloadName, namespace, cluster } = knownOf(party);
  return { workload: workload?.name ?? workloadName, namespace, cluster, identity };
}

/** What is known of one end: of its workload, else what it says of itself, else what the agent has said of the pod. */
function knownOf({ workload, pod, described }: Party): Omit<Baggage, "workloadType"> {
  if (workload === undefined) return described ?? { ...NOTHING, namespace: pod?.namespace, workloadName: pod?.name };
  const { clusterId: cluster, namespace, workloadName, canonicalName: service, canonicalRevision: revision } = workload;
  return { cluster, namespace, workloadName, service, revision };
}

const NOTHING = { cluster: undefined, service: undefined, revision: undefined } as const;

/** What upstream calls the side of the proxy that counts. */
export function reporterOf(direction: FlowRecord["direction"]): string {
  return direction === "outbound" ? "source" : "destination";
}

/** The labels of the traffic metrics, as upstream has them. */
export function trafficLabels(direction: FlowRecord["direction"], facts: Facts): Record<string, string> {
  const { service } = facts;
  return {
    reporter: reporterOf(direction),
    ...partyLabels("source", facts.source),
    ...partyLabels("destination", facts.destination),
    destination_service: service?.hostname ?? "unknown",
    destination_service_namespace: service?.namespace ?? "unknown",
    destination_service_name: service?.name ?? "unknown",
    request_protocol: "tcp",
    response_flags: responseFlags(facts.reason),
    connection_security_policy: facts.encryption === "mutual_tls" ? "mutual_tls" : "unknown",
  };
}

function partyLabels(side: string, party: Party): Record<string, string> {
  const { cluster, namespace, workloadName, service, revision } = knownOf(party);
  return {
    [`${side}_workload`]: nonEmpty(workloadName),
    [`${side}_canonical_service`]: nonEmpty(service),
    [`${side}_canonical_revision`]: nonEmpty(revision),
    [`${side}_workload_namespace`]: nonEmpty(namespace),
    [`${side}_principal`]: nonEmpty(party.identity),
    [`${side}_app`]: nonEmpty(service),
    [`${side}_version`]: nonEmpty(revision),
    [`${side}_cluster`]: nonEmpty(cluster),
  };
}

function partyKey(party: Party): string {
  const { workload, identity } = party;
  if (workload !== undefined) return `${workload.uid}\0${identity}`;
  return [identity, ...Object.values(knownOf(party))].join("\0");
}

function nonEmpty(text: string | undefined): string {
  return text === undefined || text === "" ? "unknown" : text;
}
