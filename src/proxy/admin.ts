import { LOG_LEVELS, type Log } from "#base/log";
import { renderMetrics } from "#base/metrics";
import { jsonPage, readyPage, textPage, type Page, type PageRequest } from "#rpc";
import { xdsMetrics } from "#xds";
import type { ThreadSamples } from "./messages.ts";
import { proxyMetrics } from "./metrics.ts";
import { explain, type WhyParts } from "./why.ts";

/** What the operator's pages show and do. */
export interface AdminParts {
  readonly why: WhyParts;
  readonly dump: () => unknown;
  readonly samples: () => Promise<ThreadSamples>;
  /** What is missing for readiness; empty: ready. */
  readonly pending: () => readonly string[];
  readonly quit: () => void;
  readonly log: Log;
}

const NOT_FOUND =
  "not found; there is /config_dump, /why?source=NAMESPACE/POD&destination=IP:PORT, /logging, /quitquitquit";

/** Answers on the admin port (loopback). */
export async function handleAdmin(parts: AdminParts, request: PageRequest): Promise<Page> {
  const { path, method, query } = request;
  if (path === "/config_dump") return jsonPage(200, parts.dump());
  if (path === "/why") {
    const answer = explain(parts.why, query.get("source") ?? "", query.get("destination") ?? "");
    return typeof answer === "string" ? textPage(400, answer) : jsonPage(200, answer);
  }
  if (path === "/logging") return logging(parts.log, request);
  if (path !== "/quitquitquit") return textPage(404, NOT_FOUND);
  if (method !== "POST") return textPage(405, "use POST");
  parts.quit();
  return textPage(200, "shutting down");
}

/** Answers on the metrics port. */
export async function handleMetrics(parts: AdminParts, { path }: PageRequest): Promise<Page> {
  if (path !== "/metrics" && path !== "/stats/prometheus") return textPage(404, "not found; there is /metrics");
  const { contentType, body } = await renderMetrics({ ...proxyMetrics, ...xdsMetrics }, await parts.samples());
  return { status: 200, contentType, body };
}

/** Answers on the readiness port. */
export async function handleReady(parts: AdminParts, { path }: PageRequest): Promise<Page> {
  if (path !== "/healthz/ready") return textPage(404, "not found; there is /healthz/ready");
  return readyPage(parts.pending());
}

function logging(log: Log, { method, query }: PageRequest): Page {
  const level = query.get("level");
  if (method !== "POST" || level === null) return textPage(200, `level: ${log.level}`);
  if (!LOG_LEVELS.some((known) => known === level))
    return textPage(400, `level must be one of ${LOG_LEVELS.join(", ")}`);
  log.level = level;
  return textPage(200, `level: ${level}`);
}
