import { parseSpiffeId, type SpiffeId } from "./spiffe-id.ts";
import type { Encryption, FlowPeer, FlowReason, FlowRecord } from "./flow.ts";

/**
 * The access log: flow records as lines, in the shape that the field's tools read (ztunnel's target `access`), as text or
 * as JSON. `verdict`, `encryption`, `reason` and `trace.id` are additions of ours at the end of each line.
 *
 *     2026-01-01T00:00:00.000Z  info  access  connection complete  src.addr=10.1.0.1:4000 src.workload="client" …
 *     {"level":"info","time":"2026-01-01T00:00:00.000Z","scope":"access","message":"connection complete","src.addr":…}
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
  const level = accessLevel(record);
  const fields = [
    ...commonFields(record),
    ["bytes_sent", record.bytesSent],
    ["bytes_recv", record.bytesReceived],
    ["duration", `${Math.round(record.durationMs)}ms`],
    ["error", level === "info" ? undefined : record.detail || record.reason],
    ...ownFields(record),
  ] as const;
  return formatLine(format, { level, message: level === "warn" ? FAILED : COMPLETE, timeMs: record.timeMs }, fields);
}

/** The line of a connection that is forwarded from now on. */
export function formatOpened(format: AccessFormat, record: FlowRecord): string {
  const head = { level: "debug", message: OPENED, timeMs: record.timeMs };
  return formatLine(format, head, [...commonFields(record), ...ownFields(record)]);
}

/** The line that stands where `count` lines are missing, because nobody read them fast enough. */
export function formatLost(format: AccessFormat, count: number, timeMs: number): string {
  return formatLine(format, { level: "warn", message: "access records dropped", timeMs }, [["count", count]]);
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
  return {
    timeMs: Date.parse(text(fields, "time") ?? ""),
    direction: text(fields, "direction") === "inbound" ? "inbound" : "outbound",
    verdict: text(fields, "verdict") === "refused" ? "refused" : "forwarded",
    encryption: (text(fields, "encryption") ?? "none") as Encryption,
    reason,
    detail: detail === reason ? "" : detail,
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

type Value = string | number | undefined;
type Fields = readonly (readonly [name: string, value: Value])[];

/** Addresses, which upstream writes without quotes. */
const BARE = new Set(["src.addr", "dst.addr", "dst.hbone_addr"]);

function commonFields({ direction, source, destination }: FlowRecord): Fields {
  return [
    ["src.addr", source.address],
    ["src.workload", source.workload],
    ["src.namespace", source.namespace],
    ["src.identity", source.identity],
    ["src.cluster", source.cluster],
    ["dst.addr", destination.address],
    ["dst.hbone_addr", destination.hboneTarget],
    ["dst.service", destination.service],
    ["dst.workload", destination.workload],
    ["dst.namespace", destination.namespace],
    ["dst.identity", destination.identity],
    ["dst.cluster", destination.cluster],
    ["direction", direction],
  ];
}

function ownFields({ verdict, encryption, reason, traceId }: FlowRecord): Fields {
  return [
    ["verdict", verdict],
    ["encryption", encryption],
    ["reason", reason],
    ["trace.id", traceId],
  ];
}

function formatLine(
  format: AccessFormat,
  { level, message, timeMs }: { level: string; message: string; timeMs: number },
  fields: Fields,
): string {
  const time = new Date(timeMs).toISOString();
  if (format === "json")
    return JSON.stringify({ level, time, scope: "access", message, ...Object.fromEntries(fields) });
  let line = `${time}\t${level}\taccess\t${message}\t`;
  let gap = "";
  for (const [name, value] of fields) {
    if (value === undefined) continue;
    const isBare = typeof value === "number" || (BARE.has(name) && !UNSAFE.test(value));
    line += `${gap}${name}=${isBare ? value : JSON.stringify(value)}`;
    gap = " ";
  }
  return line;
}

/** What would end a bare value early, or look like a quoted one: a hostile peer writes its own CONNECT authority. */
const UNSAFE = /[\s"\\]|[^\x21-\x7e]/;

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
