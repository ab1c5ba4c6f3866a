import assert from "node:assert/strict";
import { once } from "node:events";
import { request, type IncomingMessage } from "node:http";
import { test } from "node:test";
import { CellSet, type MetricTable } from "#base/metrics";
import { silentLog } from "#base/log";
import { PageServer, statusPages } from "./index.ts";

const never = new AbortController().signal;
const where = { name: "status", host: "127.0.0.1", log: silentLog() };

async function get(port: number, path: string): Promise<[status: number, body: string]> {
  return new Promise((resolve, reject) => {
    request({ host: "127.0.0.1", port, path, agent: false }, (response) => {
      let text = "";
      response.on("data", (part: Buffer) => (text += part.toString()));
      response.on("end", () => resolve([response.statusCode ?? 0, text]));
    })
      .on("error", reject)
      .end();
  });
}

test("health says what is missing, metrics and a role's own pages are shown, and nothing else", async () => {
  const table: MetricTable = { vt_things: { kind: "counter", help: "Things.", labels: [] } };
  const cells = new CellSet(table);
  cells.bind("vt_things", {}).value = 3;
  const pending = ["informers"];
  const handle = statusPages({
    sources: [{ table, cells }],
    pending: () => pending,
    more: {
      "/pods": () => ["cart-1"],
      "/broken": () => {
        throw new Error("no such luck");
      },
    },
  });
  const server = new PageServer({ ...where, port: 0, handle });
  await server.start(never);
  const { port } = server;
  assert.deepEqual(await get(port, "/healthz/ready"), [500, "not ready, pending: informers\n"]);
  pending.pop();
  assert.deepEqual(await get(port, "/healthz/ready?verbose"), [200, "ready\n"]);
  assert.deepEqual(await get(port, "/healthz/live"), [200, "ok\n"]);
  assert.match((await get(port, "/metrics"))[1], /vt_things 3/);
  assert.match((await get(port, "/pods"))[1], /"cart-1"/);
  assert.deepEqual(await get(port, "/broken"), [500, "no such luck\n"]);
  for (const path of ["/constructor", "/__proto__", "/"]) assert.equal((await get(port, path))[0], 404);
  await server.drain();
});

test("large answers are compressed for whoever takes that, metrics are OpenMetrics for whoever names it", async () => {
  const table: MetricTable = { vt_parts_total: { kind: "counter", help: "Parts.", labels: ["part"] } };
  const cells = new CellSet(table);
  for (let i = 0; i < 100; i++) cells.bind("vt_parts_total", { part: String(i) }).value = 1;
  const server = new PageServer({
    ...where,
    port: 0,
    handle: statusPages({ sources: [{ table, cells }], pending: () => [] }),
  });
  await server.start(never);
  const url = `http://127.0.0.1:${server.port}/metrics`;
  const ask = async (headers: Record<string, string>): Promise<[type: string, encoding: string, body: string]> => {
    const answer = await fetch(url, { headers });
    return [
      answer.headers.get("content-type") ?? "",
      answer.headers.get("content-encoding") ?? "",
      await answer.text(),
    ];
  };
  const [plainType, plainEncoding, plain] = await ask({ accept: "application/json", "accept-encoding": "identity" });
  assert.match(plainType, /^text\/plain/);
  assert.equal(plainEncoding, "");
  assert.match(plain, /# TYPE vt_parts_total counter\nvt_parts_total\{part="0"\} 1/);
  const accept = "application/vnd.google.protobuf;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";
  const [openType, openEncoding, open] = await ask({ accept, "accept-encoding": "gzip, br" });
  assert.match(openType, /^application\/openmetrics-text/);
  assert.equal(openEncoding, "gzip");
  assert.match(open, /# TYPE vt_parts counter\n[^]*vt_parts_total\{part="99"\} 1\n# EOF\n$/);
  await server.drain();
});

test("an answer that is made in parts waits for its reader, and stops when he leaves", async () => {
  let made = 0;
  const ended = Promise.withResolvers<void>();
  async function* parts(): AsyncGenerator<string> {
    try {
      for (; made < 10_000; made++) yield await Promise.resolve("x".repeat(64 * 1024));
    } finally {
      ended.resolve();
    }
  }
  const handle = async () => Promise.resolve({ status: 200, contentType: "text/plain", body: parts() });
  const server = new PageServer({ ...where, port: 0, handle });
  await server.start(never);
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    request({ host: "127.0.0.1", port: server.port, agent: false }, resolve).on("error", reject).end();
  });
  await once(answer, "readable");
  assert.ok(made < 5_000, `${made} parts were made for a reader who does not read`);
  answer.destroy();
  await ended.promise;
  assert.ok(made < 5_000);
  await server.drain();
});

test("a taken port is named", async () => {
  const handle = statusPages({ sources: [], pending: () => [] });
  const holder = new PageServer({ ...where, port: 0, handle });
  await holder.start(never);
  const second = new PageServer({ ...where, port: holder.port, handle });
  const message = `cannot serve status on 127.0.0.1:${holder.port}`;
  await assert.rejects(second.start(never), { code: "RPC_LISTEN", message });
  await holder.drain();
});
