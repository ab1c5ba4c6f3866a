import assert from "node:assert/strict";
import { request } from "node:http";
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

test("a taken port is named", async () => {
  const handle = statusPages({ sources: [], pending: () => [] });
  const holder = new PageServer({ ...where, port: 0, handle });
  await holder.start(never);
  const second = new PageServer({ ...where, port: holder.port, handle });
  const message = `cannot serve status on 127.0.0.1:${holder.port}`;
  await assert.rejects(second.start(never), { code: "RPC_LISTEN", message });
  await holder.drain();
});
