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
export function accessLevel({ verdict, reason, detail }: FlowRecord): AccessLevel {
  if (verdict === "refused") return EARLY.has(reason) ? "warn" : "error";
  return detail === "" ? "info" : "error";
}

/** True when a level lets a line of another level through. */
export function accessPasses(threshold: AccessLevel, level: AccessLevel): boolean {
  return ACCESS_LEVELS.indexOf(level) <= ACCESS_LEVELS.indexOf(threshold);
}

/** The line of a connection that has ended or was refused, without the line's end. */
export function formatAccess(format: AccessFormat, record: FlowRecord): string {
  const { timeMs, bytesSent, bytesReceived, durationMs, detail, reason } = record;
  const level = accessLevel(record);
  const line = new Line(format, { level, message: level === "warn" ? FAILED : COMPLETE, timeMs });
  addEnds(line, record);
  line.number("bytes_sent", bytesSent);
  line.number("bytes_recv", bytesReceived);
  line.text("duration", `${Math.round(durationMs)}ms`);
  if (level !== "info") line.text("error", detail || reason);
  addOwn(line, record);
  return line.end();
}

/** The line of a connection that is forwarded from now on. */
export function formatOpened(format: AccessFormat, record: FlowRecord): string {
  const line = new Line(format, { level: "debug", message: OPENED, timeMs: record.timeMs });
  addEnds(line, record);
  addOwn(line, record);
  return line.end();
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
  const line = new Line(format, { level: "debug", scope: "dns", message: "name asked for", timeMs });
  line.text("src.workload", pod.name);
  line.text("src.namespace", pod.namespace);
  line.text("query", queryType);
  line.text("domain", name);
  line.text("protocol", protocol);
  line.text("result", result);
  line.text("dst.service", service);
  line.number("endpoints", endpoints);
  line.text("duration", `${Math.round(durationMs)}ms`);
  return line.end();
}

/** The line that stands where `count` lines are missing, because nobody read them fast enough. */
export function formatLost(format: AccessFormat, count: number, timeMs: number): string {
  const line = new Line(format, { level: "warn", message: "access records dropped", timeMs });
  line.number("count", count);
  return line.end();
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

/** A line in the making. There is one for each connection, so it is put together by hand. */
class Line {
  readonly #isJson: boolean;
  #text: string;
  #gap: string;

  constructor(format: AccessFormat, head: { level: string; scope?: string; message: string; timeMs: number }) {
    const { level, scope = "access", message, timeMs } = head;
    this.#isJson = format === "json";
    const time = new Date(timeMs).toISOString();
    this.#text = this.#isJson
      ? `{"level":"${level}","time":"${time}","scope":"${scope}","message":"${message}"`
      : `${time}\t${level}\t${scope}\t${message}\t`;
    this.#gap = this.#isJson ? "," : "";
  }

  /** A text, left out when there is none. */
  text(name: string, value: string | undefined): void {
    if (value !== undefined) this.#add(name, quote(value));
  }

  /** An address, which upstream writes without quotes; a hostile one has them all the same. */
  address(name: string, value: string | undefined): void {
    if (value !== undefined) this.#add(name, this.#isJson || UNSAFE.test(value) ? quote(value) : value);
  }

  number(name: string, value: number): void {
    this.#add(name, String(value));
  }

  end(): string {
    return this.#isJson ? `${this.#text}}` : this.#text;
  }

  #add(name: string, value: string): void {
    this.#text += this.#isJson ? `${this.#gap}"${name}":${value}` : `${this.#gap}${name}=${value}`;
    if (!this.#isJson) this.#gap = " ";
  }
}

/** What would end a bare value early, or look like a quoted one: a hostile peer writes its own CONNECT authority. */
const UNSAFE = /["\\]|[^\x21-\x7e]/;
/** What a string in quotes needs no escapes for. */
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;

function quote(value: string): string {
  return PLAIN.test(value) ? `"${value}"` : JSON.stringify(value);
}

function addEnds(line: Line, { direction, source, destination }: FlowRecord): void {
  line.address("src.addr", source.address);
  line.text("src.workload", source.workload);
  line.text("src.namespace", source.namespace);
  line.text("src.identity", source.identity);
  line.text("src.cluster", source.cluster);
  line.address("dst.addr", destination.address);
  line.address("dst.hbone_addr", destination.hboneTarget);
  line.text("dst.service", destination.service);
  line.text("dst.workload", destination.workload);
  line.text("dst.namespace", destination.namespace);
  line.text("dst.identity", destination.identity);
  line.text("dst.cluster", destination.cluster);
  line.text("direction", direction);
}

function addOwn(line: Line, { verdict, encryption, reason, dryRun, traceId }: FlowRecord): void {
  line.text("verdict", verdict);
  line.text("encryption", encryption);
  line.text("reason", reason);
  line.text("policy.dry_run", dryRun);
  line.text("trace.id", traceId);
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
