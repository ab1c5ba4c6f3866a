import { parseSpiffeId, type SpiffeId } from "./spiffe-id.ts";
import type { Encryption, FlowPeer, FlowReason, FlowRecord } from "./flow.ts";

/**
 * The access log: flow records as lines, in the shape that the field's tools read (ztunnel's target `access`), as text or
 * as JSON. `verdict`, `encryption`, `reason`, `policy.dry_run` and `trace.id` are additions of ours at the end of each line.
 *
 *     2026-01-01T00:00:00.000Z  info  access  connection complete  src.addr=10.1.0.1:4000 src.workload="client" …
 *     {"level":"info","time":"2026-01-01T00:00:00.000Z","scope":"${scope}","message":"connection complete","src.addr":…}
 */
export type AccessFormat = "plain" | "json";

/** How loud a line is: the levels that a scope `access` can be set to, from silent to everything. */
export const ACCESS_LEVELS = ["off", "error", "warn", "info", "debug"] as const;
export type AccessLevel = (typeof ACCESS_LEVELS)[number];

const COMPLETE = "connection complete";
const FAILED = "connection failed";
const OPENED = "connection opened";

/** Refusals that come before anything is known about the other end: upstream only warns of those. */
const EARLY: ReadonlySet<FlowReason> = new Set([
  "self_call",
  "draining",
  "limit_reached",
  "log_stalled",
  "control_plane_unavailable",
  "bad_request",
]);

/** How loud the line of a record is. */
export function accessLevel({
  verdict,
  reason,
  detail,
}: Pick<FlowRecord, "verdict" | "reason" | "detail">): AccessLevel {
  if (verdict === "refused") return EARLY.has(reason) ? "warn" : "error";
  return detail === "" ? "info" : "error";
}

/** True when a level lets a line of another level through. */
export function accessPasses(threshold: AccessLevel, level: AccessLevel): boolean {
  return ACCESS_LEVELS.indexOf(level) <= ACCESS_LEVELS.indexOf(threshold);
}

/** Who opens a connection to whom: what the records of many connections have in common. */
export interface AccessEnds {
  readonly direction: FlowRecord["direction"];
  readonly source: Omit<FlowPeer, "address">;
  readonly destination: Omit<FlowRecord["destination"], "address" | "hboneTarget">;
}

/** What the record of one connection adds. Addresses are `ip:port`. */
export interface AccessEvent extends Omit<FlowRecord, "direction" | "source" | "destination" | "dryRun"> {
  readonly dryRun: string | undefined;
  readonly from: string;
  readonly to: string;
  readonly hboneTarget: string | undefined;
}

/**
 * The lines of connections between the same two ends, without the lines' ends. There is one line for each connection: what
 * they have in common is quoted once.
 */
export class AccessLines {
  readonly #style: Style;
  readonly #source: string;
  readonly #destination: string;

  constructor(format: AccessFormat, { direction, source, destination }: AccessEnds) {
    const style = STYLES[format];
    this.#style = style;
    this.#source = peerFields(style, "src", source);
    this.#destination =
      style.text("dst.service", destination.service) +
      peerFields(style, "dst", destination) +
      style.text("direction", direction);
  }

  /** A connection that has ended or was refused. */
  ended(event: AccessEvent): string {
    const style = this.#style;
    const { timeMs, bytesSent, bytesReceived, durationMs, detail, reason } = event;
    const level = accessLevel(event);
    const error = level === "info" ? "" : style.text("error", detail || reason);
    const duration = `"${Math.round(durationMs)}ms"`;
    return (
      style.head({ level, message: level === "warn" ? FAILED : COMPLETE, timeMs }) +
      this.#ends(event) +
      `${style.bytesSent}${bytesSent}${style.bytesReceived}${bytesReceived}${style.duration}${duration}${error}` +
      ownFields(style, event) +
      style.end
    );
  }

  /** A connection that is forwarded from now on. */
  opened(event: AccessEvent): string {
    const style = this.#style;
    const head = style.head({ level: "debug", message: OPENED, timeMs: event.timeMs });
    return head + this.#ends(event) + ownFields(style, event) + style.end;
  }

  #ends({ from, to, hboneTarget }: AccessEvent): string {
    const style = this.#style;
    const target = hboneTarget === undefined ? "" : style.hboneTarget + style.address(hboneTarget);
    return `${style.from}${style.address(from)}${this.#source}${style.to}${style.address(to)}${target}${this.#destination}`;
  }
}

function peerFields(style: Style, side: "src" | "dst", peer: Omit<FlowPeer, "address">): string {
  return (
    style.text(`${side}.workload`, peer.workload) +
    style.text(`${side}.namespace`, peer.namespace) +
    style.text(`${side}.identity`, peer.identity) +
    style.text(`${side}.cluster`, peer.cluster)
  );
}

function ownFields(style: Style, { verdict, encryption, reason, dryRun, traceId }: AccessEvent): string {
  // Words of ours, which need no escapes.
  const words = `${style.verdict}"${verdict}"${style.encryption}"${encryption}"${style.reason}"${reason}"`;
  return words + style.text("policy.dry_run", dryRun) + style.text("trace.id", traceId);
}

/** What became of one DNS question of a pod. */
export interface DnsRecord {
  readonly timeMs: number;
  readonly pod: { readonly name: string; readonly namespace: string };
  readonly queryType: string;
  readonly protocol: "udp" | "tcp";
  readonly name: string;
  /** `success`, `no records`, `forwarded`, `forwarding failed: …`, `not ready` or `too many`. */
  readonly result: string;
  /** The service that the name belongs to, `namespace/hostname`. */
  readonly service: string | undefined;
  /** Addresses in the answer, or records in a forwarded one. */
  readonly endpoints: number;
  readonly durationMs: number;
}

/** The line of a DNS question, in upstream's fields of its scope `dns`. */
export function formatDns(format: AccessFormat, question: DnsRecord): string {
  const { timeMs, pod, queryType, protocol, name, result, service, endpoints, durationMs } = question;
  const style = STYLES[format];
  return (
    style.head({ level: "debug", scope: "dns", message: "name asked for", timeMs }) +
    style.firstKey("src.workload") +
    quote(pod.name) +
    style.text("src.namespace", pod.namespace) +
    style.text("query", queryType) +
    style.text("domain", name) +
    style.text("protocol", protocol) +
    style.text("result", result) +
    style.text("dst.service", service) +
    `${style.key("endpoints")}${endpoints}` +
    style.text("duration", `${Math.round(durationMs)}ms`) +
    style.end
  );
}

/** The line that stands where `count` lines are missing, because nobody read them fast enough. */
export function formatLost(format: AccessFormat, count: number, timeMs: number): string {
  const style = STYLES[format];
  return `${style.head({ level: "warn", message: "access records dropped", timeMs })}${style.firstKey("count")}${count}${style.end}`;
}

/** The record behind a line of either format; undefined for any other line, also one of the same log. Never throws. */
export function findAccessRecord(line: string): FlowRecord | undefined {
  try {
    const fields = line.startsWith("{") ? jsonFields(line) : plainFields(line);
    const message = text(fields, "message");
    return message === COMPLETE || message === FAILED ? toRecord(fields) : undefined;
  } catch {
    return undefined; // no line of ours
  }
}

function toRecord(fields: ReadonlyMap<string, unknown>): FlowRecord {
  const detail = text(fields, "error") ?? "";
  // Words that only our own proxy writes: they are what it wrote.
  const reason = (text(fields, "reason") ?? "ok") as FlowReason;
  const dryRun = text(fields, "policy.dry_run");
  return {
    timeMs: Date.parse(text(fields, "time") ?? ""),
    direction: text(fields, "direction") === "inbound" ? "inbound" : "outbound",
    verdict: text(fields, "verdict") === "refused" ? "refused" : "forwarded",
    encryption: (text(fields, "encryption") ?? "none") as Encryption,
    reason,
    detail: detail === reason ? "" : detail,
    ...(dryRun !== undefined && { dryRun }),
    traceId: text(fields, "trace.id"),
    source: peer(fields, "src"),
    destination: {
      ...peer(fields, "dst"),
      service: text(fields, "dst.service"),
      hboneTarget: text(fields, "dst.hbone_addr"),
    },
    bytesSent: Number(fields.get("bytes_sent") ?? 0),
    bytesReceived: Number(fields.get("bytes_recv") ?? 0),
    durationMs: Number.parseInt(text(fields, "duration") ?? "0", 10),
  };
}

/** How one format writes a line: a head, fields, an end. */
class Style {
  readonly #isJson: boolean;
  readonly end: string;
  // What each connection's line needs, made once.
  readonly from: string;
  readonly to: string;
  readonly hboneTarget: string;
  readonly bytesSent: string;
  readonly bytesReceived: string;
  readonly duration: string;
  readonly verdict: string;
  readonly encryption: string;
  readonly reason: string;

  constructor(isJson: boolean) {
    this.#isJson = isJson;
    this.end = isJson ? "}" : "";
    this.from = this.firstKey("src.addr");
    this.to = this.key("dst.addr");
    this.hboneTarget = this.key("dst.hbone_addr");
    this.bytesSent = this.key("bytes_sent");
    this.bytesReceived = this.key("bytes_recv");
    this.duration = this.key("duration");
    this.verdict = this.key("verdict");
    this.encryption = this.key("encryption");
    this.reason = this.key("reason");
  }

  head({ level, scope = "access", message, timeMs }: Head): string {
    const time = isoTime(timeMs);
    return this.#isJson
      ? `{"level":"${level}","time":"${time}","scope":"${scope}","message":"${message}"`
      : `${time}\t${level}\t${scope}\t${message}\t`;
  }

  /** The name of the first field of a line, and what parts it from its value. */
  firstKey(name: string): string {
    return this.#isJson ? this.key(name) : `${name}=`;
  }

  key(name: string): string {
    return this.#isJson ? `,"${name}":` : ` ${name}=`;
  }

  /** A field with a text, left out when there is none. */
  text(name: string, value: string | undefined): string {
    return value === undefined ? "" : this.key(name) + quote(value);
  }

  /** An address, which upstream writes without quotes; a hostile one has them all the same. */
  address(value: string): string {
    return this.#isJson || UNSAFE.test(value) ? quote(value) : value;
  }
}

interface Head {
  readonly level: AccessLevel;
  readonly scope?: string;
  readonly message: string;
  readonly timeMs: number;
}

const STYLES: Readonly<Record<AccessFormat, Style>> = { plain: new Style(false), json: new Style(true) };

/** Many lines are of the same millisecond. */
const lastTime = { ms: Number.NaN, iso: "" };

function isoTime(timeMs: number): string {
  if (timeMs !== lastTime.ms) [lastTime.ms, lastTime.iso] = [timeMs, new Date(timeMs).toISOString()];
  return lastTime.iso;
}

/** What would end a bare value early, or look like a quoted one: a hostile peer writes its own CONNECT authority. */
const UNSAFE = /["\\]|[^\x21-\x7e]/;
/** What a string in quotes needs no escapes for. */
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;

function quote(value: string): string {
  return PLAIN.test(value) ? `"${value}"` : JSON.stringify(value);
}

function jsonFields(line: string): ReadonlyMap<string, unknown> {
  const fields = new Map(Object.entries(JSON.parse(line) as Record<string, unknown>));
  return fields.get("scope") === "access" ? fields : new Map();
}

function plainFields(line: string): ReadonlyMap<string, unknown> {
  const [time = "", , scope, message = "", ...rest] = line.split("\t");
  if (scope !== "access") return new Map();
  const fields = new Map<string, unknown>([
    ["time", time],
    ["message", message],
  ]);
  for (const [, name = "", value = ""] of rest.join("\t").matchAll(/([\w.]+)=("(?:[^"\\]|\\.)*"|\S*)/g)) {
    fields.set(name, value.startsWith('"') ? (JSON.parse(value) as unknown) : value);
  }
  return fields;
}

function text(fields: ReadonlyMap<string, unknown>, name: string): string | undefined {
  const value = fields.get(name);
  return typeof value === "string" ? value : undefined;
}

function peer(fields: ReadonlyMap<string, unknown>, side: "src" | "dst"): FlowPeer {
  return {
    address: text(fields, `${side}.addr`) ?? "",
    workload: text(fields, `${side}.workload`),
    namespace: text(fields, `${side}.namespace`),
    cluster: text(fields, `${side}.cluster`),
    identity: identity(text(fields, `${side}.identity`)),
  };
}

function identity(value: string | undefined): SpiffeId | undefined {
  return value === undefined ? undefined : parseSpiffeId(value);
}
