import type { Clock } from "#base/clock";
import { formatHostPort } from "#base/ip";
import { CellSet, type Cell } from "#base/metrics";
import { dnsMetrics } from "#dns";
import {
  accessLevel,
  accessPasses,
  formatAccess,
  formatDns,
  formatOpened,
  type AccessFormat,
  type AccessLevel,
  type DnsRecord,
} from "#model/access-log";
import type { Encryption, FlowReason, FlowRecord } from "#model/flow";
import type { SpiffeId } from "#model/spiffe-id";
import type { Service, Workload } from "#model/workload";
import { responseFlags } from "./flags.ts";
import type { Baggage } from "./headers.ts";
import { proxyMetrics } from "./metrics.ts";
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
  readonly application?: SocketAddress;
}

/** An open connection, for operators. */
export interface OpenConnection {
  readonly podUid: string;
  readonly direction: FlowRecord["direction"];
  /** `ip:port`s: who opened it, where to, and where it really goes. */
  readonly source: string;
  readonly original: string | undefined;
  readonly actual: string;
  readonly encryption: Encryption;
  readonly service: string | undefined;
  readonly hboneTarget: string | undefined;
  readonly sourceIdentity: SpiffeId | undefined;
  readonly destinationIdentity: SpiffeId | undefined;
  readonly traceId: string | undefined;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly ageMs: number;
}

/** Bytes as the pod sees them: `sent` left it, `received` came to it. */
export interface Bytes {
  readonly sent: number;
  readonly received: number;
}

interface Cells {
  readonly opened: Cell;
  readonly closed: Cell;
  readonly sent: Cell;
  readonly received: Cell;
}

/** Label sets that are remembered with their cells; beyond that the memory starts anew. */
const MAX_BOUND_LABELS = 4096;

/**
 * The access records and traffic metrics of one data thread. Each connection has one {@link ConnectionRecord}; this holds
 * those that are open, so that a scrape sees the bytes of long connections while they flow.
 */
export class FlowLog {
  readonly cells: CellSet;
  readonly #clock: Clock;
  readonly #write: (line: string, isOwed: boolean) => void;
  readonly #format: AccessFormat;
  #level: AccessLevel = "info";
  readonly #open = new Set<ConnectionRecord>();
  readonly #bound = new Map<string, Cells>();
  readonly #sockets: Readonly<Record<FlowRecord["direction"], Cell>>;

  /** `write` gets each record as one line of the access log, without the line's end; that of what was forwarded is owed. */
  constructor(clock: Clock, write: (line: string, isOwed: boolean) => void, format: AccessFormat = "plain") {
    this.#clock = clock;
    this.#write = write;
    this.#format = format;
    this.cells = new CellSet({ ...proxyMetrics, ...dnsMetrics });
    const sockets = (direction: FlowRecord["direction"]): Cell =>
      this.cells.bind("istio_tcp_sockets_open", { reporter: reporterOf(direction) });
    this.#sockets = { inbound: sockets("inbound"), outbound: sockets("outbound") };
  }

  /** Begins the record of a connection that was just accepted. */
  begin(direction: FlowRecord["direction"]): ConnectionRecord {
    return new ConnectionRecord(this, direction, this.#clock.monotonic());
  }

  /** How many forwarded connections are open. */
  get open(): number {
    return this.#open.size;
  }

  /** Everything that was counted, with the bytes of open connections up to now. */
  snapshot(): ReturnType<CellSet["snapshot"]> {
    for (const record of this.#open) record.count();
    return this.cells.snapshot();
  }

  /** A pod has asked for a name. Written at level debug, and counted elsewhere. */
  asked(pod: DnsRecord["pod"], question: Omit<DnsRecord, "pod" | "timeMs">): void {
    if (this.#level === "debug")
      this.#write(formatDns(this.#format, { ...question, pod, timeMs: this.#clock.now() }), false);
  }

  /** For {@link ConnectionRecord} only. */
  opened(record: ConnectionRecord): void {
    this.#open.add(record);
    this.#sockets[record.direction].value++;
  }

  /** For {@link ConnectionRecord} only. */
  closed(record: ConnectionRecord): void {
    if (this.#open.delete(record)) this.#sockets[record.direction].value--;
  }

  /** The forwarded connections that are open. They may come and go while this is walked. */
  *connections(): Generator<OpenConnection> {
    const monotonicMs = this.#clock.monotonic();
    for (const record of this.#open) {
      const seen = record.describe(monotonicMs);
      if (seen !== undefined) yield seen;
    }
  }

  /** Adds what open connections have carried to their counters, one connection a step. */
  *counting(): Generator<undefined> {
    for (const record of this.#open) {
      record.count();
      yield;
    }
  }

  /** How loud a line must be to be written; the default is `info`: one line for each connection. */
  set level(level: AccessLevel) {
    this.#level = level;
  }

  /** For {@link ConnectionRecord} only: finishes and writes the record. */
  write(started: Omit<FlowRecord, "timeMs" | "durationMs">, startMs: number): void {
    const durationMs = this.#clock.monotonic() - startMs;
    const record: FlowRecord = { ...started, timeMs: this.#clock.now(), durationMs };
    if (accessPasses(this.#level, accessLevel(record))) {
      this.#write(formatAccess(this.#format, record), record.verdict === "forwarded");
    }
  }

  /** For {@link ConnectionRecord} only: says that a connection is forwarded from now on, when somebody wants to know. */
  announce(direction: FlowRecord["direction"], facts: Facts): void {
    if (this.#level !== "debug") return;
    const started = toRecord(direction, facts, { verdict: "forwarded", bytes: { sent: 0, received: 0 } });
    this.#write(formatOpened(this.#format, { ...started, timeMs: this.#clock.now(), durationMs: 0 }), false);
  }

  /** The cells of a forwarded connection; sets of labels that come again are looked up once. */
  bind(direction: FlowRecord["direction"], facts: Facts): Cells {
    const { source, destination, service } = facts;
    const key = `${direction}\0${facts.encryption}\0${partyKey(source)}\0${partyKey(destination)}\0${service?.hostname}`;
    const known = this.#bound.get(key);
    if (known !== undefined) return known;
    if (this.#bound.size >= MAX_BOUND_LABELS) this.#bound.clear();
    const labels = trafficLabels(direction, facts);
    const cells = {
      opened: this.cells.bind("istio_tcp_connections_opened_total", labels),
      closed: this.cells.bind("istio_tcp_connections_closed_total", labels),
      sent: this.cells.bind("istio_tcp_sent_bytes_total", labels),
      received: this.cells.bind("istio_tcp_received_bytes_total", labels),
    };
    this.#bound.set(key, cells);
    return cells;
  }
}

/**
 * The record of one connection. It is opened at most once and closed exactly once; refusing is closing without opening.
 */
export class ConnectionRecord {
  readonly direction: FlowRecord["direction"];
  readonly #log: FlowLog;
  readonly #startMs: number;
  #facts: Facts | undefined;
  #cells: Cells | undefined;
  #readBytes: () => Bytes = () => ({ sent: 0, received: 0 });
  #counted: Bytes = { sent: 0, received: 0 };
  #isClosed = false;

  /** Made by {@link FlowLog.begin}. */
  constructor(log: FlowLog, direction: FlowRecord["direction"], startMs: number) {
    this.direction = direction;
    this.#log = log;
    this.#startMs = startMs;
  }

  /** The connection is forwarded. `readBytes` tells how far it is, at any time until `close`. */
  open(facts: Facts, readBytes: () => Bytes): void {
    this.#facts = facts;
    this.#readBytes = readBytes;
    this.#cells = this.#log.bind(this.direction, facts);
    this.#cells.opened.value++;
    this.#log.opened(this);
    this.#log.announce(this.direction, facts);
    if (facts.encryption === "plaintext") {
      const labels = { direction: this.direction, reason: facts.reason };
      this.#log.cells.bind("veil_proxy_plaintext_total", labels).value++;
    }
  }

  /** Adds what flowed since the last time. */
  count(): void {
    const bytes = this.#readBytes();
    if (this.#cells === undefined) return;
    // Upstream counts from the destination's side: "sent" is the response, whoever reports it.
    const out = this.direction === "outbound";
    this.#cells.sent.value += (out ? bytes.received : bytes.sent) - (out ? this.#counted.received : this.#counted.sent);
    this.#cells.received.value +=
      (out ? bytes.sent : bytes.received) - (out ? this.#counted.sent : this.#counted.received);
    this.#counted = bytes;
  }

  /** What it is, while it is forwarded. */
  describe(monotonicMs: number): OpenConnection | undefined {
    const facts = this.#facts;
    if (facts === undefined) return undefined;
    const { source, destination, service, encryption, hboneTarget, traceId } = facts;
    const isOutbound = this.direction === "outbound";
    const { sent, received } = this.#readBytes();
    return {
      podUid: (isOutbound ? source : destination).pod?.podUid ?? "",
      direction: this.direction,
      source: formatAddress(source.address),
      original: isOutbound ? formatAddress(facts.asked ?? destination.address) : service?.hostname,
      actual: formatAddress(facts.application ?? destination.address),
      encryption,
      service: service?.hostname,
      hboneTarget,
      sourceIdentity: source.identity,
      destinationIdentity: destination.identity,
      traceId,
      bytesSent: sent,
      bytesReceived: received,
      ageMs: Math.round(monotonicMs - this.#startMs),
    };
  }

  /** A forwarded connection has ended, after these bytes. `cause` replaces the reason when the end was not an ordinary one. */
  close(end: Bytes, cause?: { readonly reason: FlowReason; readonly detail: string }): void {
    const facts = this.#facts;
    if (facts === undefined || this.#isClosed) return;
    this.#isClosed = true;
    this.#readBytes = () => end;
    this.count();
    this.#log.closed(this);
    if (this.#cells !== undefined) this.#cells.closed.value++;
    if (cause?.reason === "drained") {
      this.#log.cells.bind("veil_proxy_drained_total", { direction: this.direction }).value++;
    }
    this.#log.write(
      toRecord(this.direction, { ...facts, ...cause }, { verdict: "forwarded", bytes: this.#counted }),
      this.#startMs,
    );
  }

  /** The connection is refused. */
  refuse(facts: Facts): void {
    if (this.#isClosed || this.#facts !== undefined) return;
    this.#isClosed = true;
    this.#log.cells.bind("istio_tcp_connections_failed_total", trafficLabels(this.direction, facts)).value++;
    this.#log.cells.bind("veil_proxy_refused_total", { direction: this.direction, reason: facts.reason }).value++;
    const bytes = { sent: 0, received: 0 };
    this.#log.write(
      toRecord(this.direction, { ...facts, encryption: "none" }, { verdict: "refused", bytes }),
      this.#startMs,
    );
  }
}

function toRecord(
  direction: FlowRecord["direction"],
  facts: Facts,
  end: { verdict: FlowRecord["verdict"]; bytes: Bytes },
): Omit<FlowRecord, "timeMs" | "durationMs"> {
  const { service } = facts;
  return {
    direction,
    verdict: end.verdict,
    encryption: facts.encryption,
    reason: facts.reason,
    detail: facts.detail ?? "",
    ...(facts.dryRun !== undefined && { dryRun: facts.dryRun }),
    traceId: facts.traceId,
    source: peerOf(facts.source),
    destination: { ...peerOf(facts.destination), service: service?.hostname, hboneTarget: facts.hboneTarget },
    bytesSent: end.bytes.sent,
    bytesReceived: end.bytes.received,
  };
}

function peerOf(party: Party): FlowRecord["source"] {
  const { address, workload, identity } = party;
  const { workloadName, namespace, cluster } = knownOf(party);
  return {
    address: formatAddress(address),
    workload: workload?.name ?? workloadName,
    namespace,
    cluster,
    identity,
  };
}

function formatAddress({ ip, port }: SocketAddress): string {
  return formatHostPort(ip, port);
}

/** What is known of one end: of its workload, else what it says of itself, else what the agent has said of the pod. */
function knownOf({ workload, pod, described }: Party): Omit<Baggage, "workloadType"> {
  if (workload === undefined) return described ?? { ...NOTHING, namespace: pod?.namespace, workloadName: pod?.name };
  const { clusterId: cluster, namespace, workloadName, canonicalName: service, canonicalRevision: revision } = workload;
  return { cluster, namespace, workloadName, service, revision };
}

const NOTHING = { cluster: undefined, service: undefined, revision: undefined } as const;

function reporterOf(direction: FlowRecord["direction"]): string {
  return direction === "outbound" ? "source" : "destination";
}

function trafficLabels(direction: FlowRecord["direction"], facts: Facts): Record<string, string> {
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
