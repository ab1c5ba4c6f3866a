import type { LogScopes } from "#base/log";
import { renderMetrics } from "#base/metrics";
import { dnsMetrics } from "#dns";
import { jsonPage, readyPage, textPage, type Page, type PageRequest } from "#rpc";
import { xdsMetrics } from "#xds";
import { dashboard } from "./dashboard.ts";
import type { PodPoolPeer, ThreadSamples } from "./looks.ts";
import { proxyMetrics } from "./metrics.ts";
import type { ProfilePages } from "./profile-page.ts";
import type { OpenConnection } from "./record.ts";
import type { ReadinessLook } from "./readiness.ts";
import { explain, type WhyParts } from "./why.ts";

/** What the operator's pages show and do. */
export interface AdminParts {
  readonly why: WhyParts;
  /** The text of the whole state, in parts: see config-dump.ts. */
  readonly dump: () => Promise<AsyncIterable<string>>;
  readonly connections: () => Promise<readonly OpenConnection[]>;
  readonly pool: () => Promise<readonly PodPoolPeer[]>;
  readonly samples: () => Promise<ThreadSamples>;
  readonly readiness: () => ReadinessLook;
  readonly quit: () => void;
  readonly profiles: ProfilePages;
  readonly scopes: LogScopes;
}

/** The admin pages, in the order in which the first of them lists them. */
const PAGES: readonly AdminPage[] = [
  {
    path: "/config_dump",
    about: "everything this proxy knows, as istioctl ztunnel-config reads it; no private keys",
    show: async ({ dump }) => ({ status: 200, contentType: "application/json", body: await dump() }),
  },
  {
    path: "/why",
    about: "why a connection is (not) encrypted: ?source=NAMESPACE/POD&destination=IP:PORT",
    show: async ({ why }, { query }) => {
      const answer = explain(why, query.get("source") ?? "", query.get("destination") ?? "");
      return typeof answer === "string" ? textPage(400, answer) : jsonPage(200, answer);
    },
  },
  {
    path: "/debug/connections",
    about: "the connections that are forwarded now",
    show: async ({ connections }) => jsonPage(200, await connections()),
  },
  {
    path: "/debug/pool",
    about: "sessions to other proxies and from them, by pod",
    show: async ({ pool }) => jsonPage(200, await pool()),
  },
  {
    path: "/debug/pprof/profile",
    about: "where processor time goes, for go tool pprof: ?seconds=1-300&frequency=1-1000&thread=main&format=v8",
    show: async ({ profiles }, request) => profiles.show("cpu", request),
  },
  {
    path: "/debug/pprof/heap",
    about: "what is allocated in so many ?seconds= and stays, for go tool pprof",
    show: async ({ profiles }, request) => profiles.show("heap", request),
  },
  {
    path: "/logging",
    about: "levels of the log; POST ?level=debug, ?level=access=debug,xds=trace, ?reset",
    show: async ({ scopes }, request) => logging(scopes, request),
  },
  {
    path: "/quitquitquit",
    about: "POST: drain and stop",
    show: async ({ quit }, { method }) => {
      if (method !== "POST") return textPage(405, "use POST");
      quit();
      return textPage(200, "shutdown now");
    },
  },
];

interface AdminPage {
  readonly path: string;
  /** What it shows, in a few words. */
  readonly about: string;
  readonly show: (parts: AdminParts, request: PageRequest) => Promise<Page>;
}

/** Answers on the admin port (loopback). */
export async function handleAdmin(parts: AdminParts, request: PageRequest): Promise<Page> {
  if (request.path === "/") return dashboard(PAGES);
  const page = PAGES.find(({ path }) => path === request.path);
  if (page !== undefined) return page.show(parts, request);
  return textPage(404, `not found; there is ${PAGES.map(({ path }) => path).join(", ")}`);
}

/** Answers on the metrics port. */
export async function handleMetrics(parts: AdminParts, { path, accept }: PageRequest): Promise<Page> {
  if (path !== "/metrics" && path !== "/stats/prometheus") return textPage(404, "not found; there is /metrics");
  return {
    status: 200,
    ...(await renderMetrics({ ...proxyMetrics, ...dnsMetrics, ...xdsMetrics }, await parts.samples(), accept)),
  };
}

/** Answers on the readiness port. */
export async function handleReady(parts: AdminParts, { path }: PageRequest): Promise<Page> {
  if (path !== "/healthz/ready") return textPage(404, "not found; there is /healthz/ready");
  const { isReady, pending } = parts.readiness();
  return readyPage(pending, isReady);
}

/** Upstream's page: only POST changes anything; `reset` first goes back to what the process was started with. */
function logging(scopes: LogScopes, { method, query }: PageRequest): Page {
  const level = query.get("level") ?? "";
  if (method === "POST") {
    const wrong = level === "" ? undefined : scopes.change(level, { reset: query.has("reset") });
    if (wrong !== undefined) return textPage(400, `Invalid level provided: ${level}\n${wrong}`);
    if (level === "" && query.has("reset")) scopes.reset();
  } else if (level !== "" || query.has("reset")) return textPage(405, "use POST to change a level");
  return textPage(200, `current log level is ${scopes.format()}`);
}
