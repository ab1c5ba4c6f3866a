import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FakeClock, systemClock } from "#base/clock";
import { LogScopes, silentLog } from "#base/log";
import { textPage, type Page } from "#rpc";
import { handleAdmin, handleMetrics, handleReady, type AdminParts } from "./admin.ts";
import { streamJson } from "./json-stream.ts";
import { ProfilePages } from "./profile-page.ts";
import { processSamples } from "./process-samples.ts";
import { testView } from "./testing.ts";

function parts(pending: readonly string[] = [], isReady = pending.length === 0): AdminParts & { quits: number } {
  const page = {
    quits: 0,
    scopes: new LogScopes(silentLog()),
    quit: () => {
      page.quits++;
    },
    readiness: () => ({ isReady, pending }),
    samples: () => Promise.resolve([{ name: "workload_manager_active_proxy_count", labels: {}, value: 3 }]),
    profiles: new ProfilePages({ clock: new FakeClock(), record: () => Promise.resolve([]) }),
    dump: () => Promise.resolve(streamJson([["version", { value: "x" }]], systemClock())),
    connections: () => Promise.resolve([]),
    pool: () => Promise.resolve([{ podUid: "uid", inboundSessions: 1, peer: undefined }]),
    why: {
      view: () => testView([]),
      findPod: () => undefined,
      certificate: () => undefined,
      records: { newest: () => [] },
    },
  };
  page.scopes.change("info");
  return page;
}

const get = (path: string, method = "GET") => {
  const url = new URL(path, "http://x");
  return { method, path: url.pathname, query: url.searchParams, accept: "", signal: new AbortController().signal };
};

async function bodyOf({ body }: Page): Promise<string> {
  if (typeof body === "string") return body;
  const texts: (string | Uint8Array)[] = [];
  if (body instanceof Uint8Array) texts.push(body);
  else for await (const text of body) texts.push(text);
  return texts.join("");
}

describe("the process's own samples", () => {
  it("count its descriptors and name their limit", async () => {
    const samples = new Map((await processSamples()).map(({ name, value }) => [name, value]));
    const open = samples.get("process_open_fds") ?? 0;
    assert.ok(open > 2 && open <= (samples.get("process_max_fds") ?? 0));
    assert.ok((samples.get("process_cpu_seconds_total") ?? 0) > 0);
    assert.ok((samples.get("process_resident_memory_bytes") ?? 0) > 1e7);
  });
});

describe("pages for operators", () => {
  it("show readiness as upstream does", async () => {
    assert.deepEqual(await handleReady(parts(), get("/healthz/ready")), textPage(200, "ready"));
    assert.deepEqual(
      await handleReady(parts(["a", "b"]), get("/healthz/ready")),
      textPage(500, "not ready, pending: a, b"),
    );
    assert.deepEqual(await handleReady(parts(["a"], true), get("/healthz/ready")), textPage(200, "ready, pending: a"));
    assert.equal((await handleReady(parts(), get("/"))).status, 404);
  });

  it("show metrics in Prometheus' format under both of upstream's paths, and as OpenMetrics", async () => {
    for (const path of ["/metrics", "/stats/prometheus"]) {
      const page = await handleMetrics(parts(), get(path));
      assert.match(await bodyOf(page), /^workload_manager_active_proxy_count 3$/m);
      assert.match(page.contentType, /^text\/plain/);
    }
    const open = await handleMetrics(parts(), { ...get("/metrics"), accept: "application/openmetrics-text; other" });
    assert.match(open.contentType, /^application\/openmetrics-text/);
    assert.match(await bodyOf(open), /# EOF\n$/);
    assert.equal((await handleMetrics(parts(), get("/"))).status, 404);
  });

  it("list themselves, dump, explain, show connections and pools, and quit only by POST", async () => {
    const admin = parts();
    const first = await bodyOf(await handleAdmin(admin, get("/")));
    for (const path of ["/config_dump", "/logging", "/quitquitquit", "/debug/pool", "/debug/connections", "/why"]) {
      assert.ok(first.includes(`<a href="${path}">`), path);
    }
    assert.deepEqual(JSON.parse(await bodyOf(await handleAdmin(admin, get("/config_dump")))), { version: "x" });
    assert.equal((await handleAdmin(admin, get("/why?source=a/b&destination=10.0.0.1:1"))).status, 200);
    assert.equal((await handleAdmin(admin, get("/why?source=a&destination=10.0.0.1:1"))).status, 400);
    assert.deepEqual(JSON.parse(await bodyOf(await handleAdmin(admin, get("/debug/connections")))), []);
    assert.match(await bodyOf(await handleAdmin(admin, get("/debug/pool"))), /"inboundSessions": 1/);
    assert.equal((await handleAdmin(admin, get("/quitquitquit"))).status, 405);
    assert.equal(admin.quits, 0);
    await handleAdmin(admin, get("/quitquitquit", "POST"));
    assert.equal(admin.quits, 1);
    assert.equal((await handleAdmin(admin, get("/nothing"))).status, 404);
  });

  it("show and change the levels of the log by POST, as upstream's proxy does", async () => {
    const admin = parts();
    const logging = async (query: string, method = "POST"): Promise<string> =>
      bodyOf(await handleAdmin(admin, get(`/logging${query}`, method)));
    assert.equal(await logging(""), "current log level is info\n");
    assert.equal(await logging("", "GET"), "current log level is info\n");
    assert.equal(await logging("?level=debug"), "current log level is debug\n");
    assert.equal(await logging("?level=access=debug,info"), "current log level is access=debug,info\n");
    assert.equal(await logging("?level=off"), "current log level is access=debug,off\n");
    assert.match(await logging("?level=invalid_level"), /^Invalid level provided: invalid_level\n/);
    assert.equal((await handleAdmin(admin, get("/logging?level=debug"))).status, 405, "reading changes nothing");
    assert.equal(await logging("?reset&level=trace"), "current log level is trace\n");
    assert.equal(await logging("?reset"), "current log level is off\n", "what the process was started with");
  });
});
