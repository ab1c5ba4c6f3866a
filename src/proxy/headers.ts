import { memoByObject } from "#base/memo";
import type { Random } from "#base/random";
import { formatHostPort, findIp } from "#base/ip";
import type { Service, Workload } from "#model/workload";
import type { SocketAddress } from "./route.ts";

/**
 * The headers that travel with a tunnel. They label records and traces at the other end and decide nothing: the
 * receiver's decisions rest on what TLS has proved. Format: as ztunnel writes them.
 */

/** What baggage tells about a workload. Absent parts are undefined. */
export interface Baggage {
  readonly cluster: string | undefined;
  readonly namespace: string | undefined;
  readonly workloadType: string | undefined;
  readonly workloadName: string | undefined;
  readonly service: string | undefined;
  readonly revision: string | undefined;
}

/** Longest header value that is read; the rest is ignored. */
const MAX_HEADER_BYTES = 4096;

const TYPES = ["deployment", "cronjob", "pod", "job"] as const;

/** The `baggage` of a workload: `k8s.cluster.name=…,k8s.namespace.name=…`; empty values are left out. */
export const formatBaggage = memoByObject((workload: Workload): string => {
  const entries = [
    ["k8s.cluster.name", workload.clusterId],
    ["k8s.namespace.name", workload.namespace],
    [`k8s.${workload.workloadType}.name`, workload.workloadName],
    ["service.name", workload.canonicalName],
    ["service.version", workload.canonicalRevision],
    ["cloud.region", workload.locality.region],
    ["cloud.availability_zone", workload.locality.zone],
  ];
  return entries.flatMap(([key, value]) => (value === undefined || value === "" ? [] : [`${key}=${value}`])).join(",");
});

/** Reads `baggage`. Unknown keys and malformed entries are passed over; it never throws. */
export function parseBaggage(text: string): Baggage {
  const found = new Map<string, string>();
  for (const entry of text.slice(0, MAX_HEADER_BYTES).split(",")) {
    const [key = "", value = ""] = entry.split("=");
    if (value.trim() !== "") found.set(key.trim(), value.trim());
  }
  const workloadType = TYPES.find((type) => found.has(`k8s.${type}.name`));
  return {
    cluster: found.get("k8s.cluster.name"),
    namespace: found.get("k8s.namespace.name"),
    workloadType,
    workloadName: workloadType === undefined ? undefined : found.get(`k8s.${workloadType}.name`),
    service: found.get("service.name"),
    revision: found.get("service.version"),
  };
}

/** `for="<client>"`, with `;host=<hostname>` when the client dialled a service. */
export function formatForwarded(client: SocketAddress, service: Service | undefined): string {
  const host = service === undefined ? "" : `;host=${service.hostname}`;
  return `for="${formatHostPort(client.ip, client.port)}"${host}`;
}

/** The hostname in `forwarded`; undefined when there is none, or it is no ASCII name. */
export function parseForwardedHost(text: string): string | undefined {
  for (const part of text.slice(0, MAX_HEADER_BYTES).split(";")) {
    const [key = "", value = ""] = part.split("=");
    if (key.trim().toLowerCase() !== "host") continue;
    const host = value.trim().replace(/^"(.*)"$/, "$1");
    return /^[\x21-\x7e]+$/.test(host) && findIp(host) === undefined ? host : undefined;
  }
  return undefined;
}

/** A new `traceparent` (W3C Trace Context), not sampled. */
export function newTraceparent(random: Random): string {
  const hex = random.hex(24); // one call for both: it costs more than all the rest here
  return `00-${hex.slice(0, 32)}-${hex.slice(32)}-00`;
}

const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$/i;

/** The trace id in a `traceparent`; undefined when it is not of its 55 characters. */
export function findTraceId(traceparent: string | undefined): string | undefined {
  return TRACEPARENT.exec(traceparent ?? "")?.[1]?.toLowerCase();
}
