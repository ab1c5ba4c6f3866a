import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { seededRandom } from "#base/random";
import { KubeClient, type Pod } from "#kube";
import { FakeApi } from "../../kube/testing.ts";
import { EnrolmentGate } from "./enrolment-gate.ts";

const SANDBOX = { netns: "/state/netns/u", ip: "10.244.1.2" };
const POD: Pod = { metadata: { name: "p", namespace: "shop" } };
const clock = systemClock();

async function setUp(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), "vt-kubelet-"));
  const socket = join(folder, "cni.sock");
  const api = await FakeApi.start();
  const client = new KubeClient({ config: api.config, log: silentLog(), clock, random: seededRandom(1) });
  t.after(async () => {
    client.close();
    await api.stop();
    rmSync(folder, { recursive: true });
  });
  return { api, socket, gate: new EnrolmentGate(client, socket, clock) };
}

async function startAgent(t: TestContext, socket: string, status: number): Promise<string[]> {
  const asked: string[] = [];
  const server: Server = createServer((request, response) => {
    let body = "";
    request.on("data", (part: Buffer) => (body += part.toString()));
    request.on("end", () => {
      asked.push(`${request.url ?? ""} ${body}`);
      response.writeHead(status);
      response.end("because");
    });
  });
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  t.after(() => void server.close());
  return asked;
}

test("a pod without labels starts without asking anybody", async (t) => {
  const { api, gate } = await setUp(t);
  api.put("/api/v1/namespaces", { metadata: { name: "shop" } });
  await (
    await gate.prepare(POD)
  )(SANDBOX); // there is no agent
});

test("a labelled namespace makes the agent enrol the pod first", async (t) => {
  const { api, gate, socket } = await setUp(t);
  api.put("/api/v1/namespaces", { metadata: { name: "shop", labels: { "io.cilium/mtls-enabled": "true" } } });
  const asked = await startAgent(t, socket, 200);
  await (
    await gate.prepare(POD)
  )(SANDBOX);
  assert.equal(asked.length, 1);
  assert.match(asked[0] ?? "", /^\/cmdadd \{"Netns":"\/state\/netns\/u","PodName":"p","PodNamespace":"shop"/);
});

test("without an agent, and with one that refuses, a labelled pod does not start", async (t) => {
  const { api, gate, socket } = await setUp(t);
  api.put("/api/v1/namespaces", { metadata: { name: "shop", labels: { "istio.io/dataplane-mode": "ambient" } } });
  const enrol = await gate.prepare(POD);
  await assert.rejects(enrol(SANDBOX), { code: "KUBELET_ENROLMENT", message: /ENOENT/ });
  await startAgent(t, socket, 500);
  await assert.rejects(enrol(SANDBOX), { code: "KUBELET_ENROLMENT", message: /500 because/ });
});

test("when nobody can say whether a pod is to be enrolled, it does not start", async (t) => {
  const { api, gate } = await setUp(t);
  await api.stop();
  await assert.rejects(gate.prepare(POD), { code: "KUBELET_ENROLMENT" });
  await api.listen();
});
