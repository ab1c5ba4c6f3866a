import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { cniMetrics } from "./metrics.ts";
import type { PluginHost } from "./plugin.ts";
import { CniServer, MAX_CNI_EVENT_BYTES, parseCniAdd } from "./server.ts";

const folder = mkdtempSync(join(tmpdir(), "vt-cni-"));
after(() => rmSync(folder, { recursive: true }));
const event = {
  Netns: "/run/netns/x",
  PodName: "cart-1",
  PodNamespace: "shop",
  IPs: [{ Interface: 0, Address: { IP: "10.244.1.2", Mask: "/////w==" }, Gateway: "10.244.1.1" }],
};

function hostOf(add: PluginHost["add"]): PluginHost {
  return { add, check: () => Promise.resolve(), pending: () => [] };
}

async function post(
  path: string,
  body: string,
  options: { url?: string; method?: string } = {},
): Promise<[number, string]> {
  const { url = "/cmdadd", method = "POST" } = options;
  return new Promise((resolve, reject) => {
    const call = request({ socketPath: path, path: url, method, agent: false }, (response) => {
      let text = "";
      response.on("data", (part: Buffer) => (text += part.toString()));
      response.on("end", () => resolve([response.statusCode ?? 0, text]));
    });
    call.on("error", reject);
    call.end(body);
  });
}

test("a pod may start when its enrolment is done, and not when it fails", async () => {
  const seen: unknown[] = [];
  const cells = new CellSet(cniMetrics);
  const path = join(folder, "cni.sock");
  const server = new CniServer({
    path,
    log: silentLog(),
    cells,
    host: hostOf(async (added) => {
      seen.push(added);
      if (added.name === "cart-2") throw new CodedError("ENROLMENT_CNI_TIMEOUT", "the proxy is away");
    }),
  });
  await server.start(new AbortController().signal);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.deepEqual(await post(path, JSON.stringify(event)), [200, ""]);
  assert.deepEqual(seen, [{ netnsPath: "/run/netns/x", name: "cart-1", namespace: "shop", uid: undefined }]);
  const [status, text] = await post(path, JSON.stringify({ ...event, PodName: "cart-2" }));
  assert.deepEqual([status, text], [500, "ENROLMENT_CNI_TIMEOUT: the proxy is away\n"]);
  assert.match((await post(path, "{}"))[1], /CNI_REQUEST: the event's field Netns/);
  assert.equal((await post(path, "{"))[0], 400);
  assert.equal((await post(path, " ".repeat(MAX_CNI_EVENT_BYTES + 1)))[0], 400);
  assert.equal((await post(path, "", { url: "/other" }))[0], 404);
  assert.equal((await post(path, "", { method: "GET" }))[0], 405);
  const ask = {
    env: { CNI_COMMAND: "DEL", CNI_CONTAINERID: "c", CNI_IFNAME: "eth0" },
    config: '{"cniVersion":"1.0.0"}',
  };
  assert.deepEqual(await post(path, JSON.stringify(ask), { url: "/cni" }), [200, ""]);
  const [refused, answer] = await post(path, "{", { url: "/cni" });
  assert.equal(refused, 500);
  assert.match(answer, /"code":6,"msg":"CNI_REQUEST: /);
  const [tooLong, error] = await post(path, " ".repeat(MAX_CNI_EVENT_BYTES + 1), { url: "/cni" });
  assert.deepEqual([tooLong, JSON.parse(error).code], [400, 6]);
  const count = (command: string, outcome: string): number =>
    cells.bind("veil_cni_requests_total", { command, outcome }).value;
  assert.deepEqual([count("cmdadd", "ok"), count("DEL", "ok"), count("unknown", "CNI_REQUEST")], [1, 1, 2]);
  await server.drain(0);
  await assert.rejects(post(path, "{}"));
});

test("a stale socket is taken over, a served one is not", async () => {
  const path = join(folder, "again.sock");
  const make = (): CniServer =>
    new CniServer({ path, log: silentLog(), cells: new CellSet(cniMetrics), host: hostOf(() => Promise.resolve()) });
  const first = make();
  await first.start(new AbortController().signal);
  await assert.rejects(make().start(new AbortController().signal), { code: "CNI_LISTEN" });
  await first.drain(0);
});

test("each field that is missing or malformed is named", () => {
  for (const [field, value] of [
    ["Netns", "relative"],
    ["Netns", 7],
    ["PodName", "Big"],
    ["PodName", undefined],
    ["PodNamespace", "a/b"],
    ["PodNamespace", ""],
  ] as const) {
    assert.throws(() => parseCniAdd(JSON.stringify({ ...event, [field]: value })), {
      code: "CNI_REQUEST",
      details: { field },
    });
  }
});

test("any text is read or refused with the one code", () => {
  const text = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.json(),
    fc.anything().map((value) => JSON.stringify({ Netns: value, PodName: value })),
  );
  fc.assert(
    fc.property(text, (body) => {
      try {
        parseCniAdd(body);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code === "CNI_REQUEST", String(error));
      }
    }),
  );
});
