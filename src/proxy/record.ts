import type { Clock } from "#base/clock";
import { formatHostPort } from "#base/ip";
import { CellSet, type Cell } from "#base/metrics";
import { dnsMetrics } from "#dns";
import {
  accessLevel,
  accessPasses,
  type AccessLines,
  formatDns,
  type AccessEvent,
  type AccessFormat,
  type AccessLevel,
  type DnsRecord,
} from "#model/access-log";
import type { Encryption, FlowReason, FlowRecord } from "#model/flow";
import type { SpiffeId } from "#model/spiffe-id";
import { proxyMetrics } from "./metrics.ts";
import { Pairs, reporterOf, trafficLabels, type Facts, type Pair } from "./pairs.ts";
import type { SocketAddress } from "./route.ts";

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

/**
 * The access records and traffic metrics of one data thread. Each connection has one {@link ConnectionRecord}; this holds
 * those that are open, so that a scrape sees the bytes of long connections while they flow.
 */
export class FlowLog {
  readonly cells: CellSet;
  readonly #clock: Clock;
  /** For {@link ConnectionRecord} only. */
  readonly pairs: Pairs;
  readonly #write: (line: string, isOwed: boolean) => void;
  readonly #format: AccessFormat;
  #level: AccessLevel = "info";
  readonly #open = new Set<ConnectionRecord>();
  readonly #sockets: Readonly<Record<FlowRecord["direction"], Cell>>;

  /** `write` gets each record as one line of the access log, without the line's end; that of what was forwarded is owed. */
  constructor(clock: Clock, write: (line: string, isOwed: boolean) => void, format: AccessFormat = "plain") {
    this.#clock = clock;
    this.#write = write;
    this.#format = format;
    this.cells = new CellSet({ ...proxyMetrics, ...dnsMetrics });
    this.pairs = new Pairs(this.cells, format);
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

  /** For {@link ConnectionRecord} only: writes the record of a connection that has ended or was refused. */
  write(lines: AccessLines, ended: Omit<AccessEvent, "timeMs">): void {
    if (!accessPasses(this.#level, accessLevel(ended))) return;
    this.#write(lines.ended({ ...ended, timeMs: this.#clock.now() }), ended.verdict === "forwarded");
  }

  /** For {@link ConnectionRecord} only: milliseconds since it began. */
  since(startMs: number): number {
    return this.#clock.monotonic() - startMs;
  }

  /** For {@link ConnectionRecord} only: says that a connection is forwarded from now on, when somebody wants to know. */
  announce(lines: AccessLines, facts: Facts): void {
    if (this.#level !== "debug") return;
    const event = eventOf(facts, { verdict: "forwarded", bytes: NO_BYTES, durationMs: 0 });
    this.#write(lines.opened({ ...event, timeMs: this.#clock.now() }), false);
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
  #pair: Pair | undefined;
  #readBytes: () => Bytes = () => NO_BYTES;
  #counted: Bytes = NO_BYTES;
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
    this.#pair = this.#log.pairs.of(this.direction, facts);
    this.#pair.opened.value++;
    this.#log.opened(this);
    this.#log.announce(this.#pair.lines, facts);
    if (facts.encryption === "plaintext") {
      const labels = { direction: this.direction, reason: facts.reason };
      this.#log.cells.bind("veil_proxy_plaintext_total", labels).value++;
    }
  }

  /** Adds what flowed since the last time. */
  count(): void {
    const bytes = this.#readBytes();
    const pair = this.#pair;
    if (pair === undefined) return;
    // Upstream counts from the destination's side: "sent" is the response, whoever reports it.
    const out = this.direction === "outbound";
    pair.sent.value += (out ? bytes.received : bytes.sent) - (out ? this.#counted.received : this.#counted.sent);
    pair.received.value += (out ? bytes.sent : bytes.received) - (out ? this.#counted.sent : this.#counted.received);
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
    const [facts, pair] = [this.#facts, this.#pair];
    if (facts === undefined || pair === undefined || this.#isClosed) return;
    this.#isClosed = true;
    this.#readBytes = () => end;
    this.count();
    this.#log.closed(this);
    pair.closed.value++;
    if (cause?.reason === "drained") {
      this.#log.cells.bind("veil_proxy_drained_total", { direction: this.direction }).value++;
    }
    const durationMs = this.#log.since(this.#startMs);
    const ended = { verdict: "forwarded", bytes: this.#counted, durationMs } as const;
    this.#log.write(pair.lines, eventOf(cause === undefined ? facts : { ...facts, ...cause }, ended));
  }

  /** The connection is refused. */
  refuse(facts: Facts): void {
    if (this.#isClosed || this.#facts !== undefined) return;
    this.#isClosed = true;
    this.#log.cells.bind("istio_tcp_connections_failed_total", trafficLabels(this.direction, facts)).value++;
    this.#log.cells.bind("veil_proxy_refused_total", { direction: this.direction, reason: facts.reason }).value++;
    const durationMs = this.#log.since(this.#startMs);
    const ended = { verdict: "refused", bytes: NO_BYTES, durationMs } as const;
    this.#log.write(this.#log.pairs.linesOf(this.direction, facts), eventOf({ ...facts, encryption: "none" }, ended));
  }
}

const NO_BYTES: Bytes = { sent: 0, received: 0 };

/** How a connection ended, or that it did not begin. */
interface End {
  readonly verdict: FlowRecord["verdict"];
  readonly bytes: Bytes;
  readonly durationMs: number;
}

function eventOf(facts: Facts, { verdict, bytes, durationMs }: End): Omit<AccessEvent, "timeMs"> {
  return {
    from: formatAddress(facts.source.address),
    to: formatAddress(facts.destination.address),
    hboneTarget: facts.hboneTarget,
    verdict,
    encryption: facts.encryption,
    reason: facts.reason,
    detail: facts.detail ?? "",
    dryRun: facts.dryRun,
    traceId: facts.traceId,
    bytesSent: bytes.sent,
    bytesReceived: bytes.received,
    durationMs,
  };
}

function formatAddress({ ip, port }: SocketAddress): string {
  return formatHostPort(ip, port);
}
