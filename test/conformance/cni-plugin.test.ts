import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { cniMetrics, CniServer } from "#cni";
import { decideEligibility } from "#enrolment";
import { FakeApi } from "../../src/kube/testing.ts";
import { ensureCniPlugin } from "../../tools/cni-plugin.ts";

// What the container runtime executes, as the CNI specification says that it is executed: variables, standard input, exit code.

const RESULT = { cniVersion: "1.0.0", ips: [{ address: "10.1.0.2/24" }] };
const POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u1";
const folder = mkdtempSync(join(tmpdir(), "vt-cni-"));
const socket = join(folder, "cni.sock");
let plugin: string;

before(async () => {
  plugin = await ensureCniPlugin();
});
after(() => rmSync(folder, { recursive: true }));

interface Answer {
  readonly exit: number | null;
  readonly text: string;
  /** The number and the message of an error. */
  readonly code: number | undefined;
  readonly msg: string;
}

async function execute(command: string, config: object, args = POD): Promise<Answer> {
  const env = {
    CNI_COMMAND: command,
    CNI_CONTAINERID: "c1",
    CNI_NETNS: "/run/netns/x",
    CNI_IFNAME: "eth0",
    CNI_ARGS: args,
    CNI_PATH: "/usr/lib/cni",
  };
  const child = spawn(plugin, [], { env, stdio: ["pipe", "pipe", "inherit"] });
  const input = { cniVersion: "1.0.0", name: "n", type: "veil-cni", socket, namespace: "veil-system" };
  child.stdin.end(JSON.stringify({ ...input, prevResult: RESULT, ...config }));
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (part: string) => (text += part));
  const exit = await new Promise<number | null>((resolve) => child.once("close", resolve));
  const error = exit === 0 ? {} : (JSON.parse(text) as { code?: number; msg?: string; cniVersion?: string });
  if (exit !== 0) assert.match(error.cniVersion ?? "", /^1\.[01]\.0$/);
  return { exit, text, code: error.code, msg: error.msg ?? "" };
}

async function withAgent(failure: Error | undefined, body: (asked: unknown[]) => Promise<void>): Promise<void> {
  const asked: unknown[] = [];
  const add = async (pod: unknown): Promise<void> => {
    asked.push(pod);
    if (failure !== undefined) throw failure;
  };
  const host = { add, check: add, pending: () => [] };
  const server = new CniServer({ path: socket, log: silentLog(), cells: new CellSet(cniMetrics), host });
  await server.start(new AbortController().signal);
  try {
    await body(asked);
  } finally {
    await server.drain(0);
  }
}

test("VERSION needs nobody", async () => {
  const { exit, text } = await execute("VERSION", { socket: undefined });
  const supportedVersions = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
  assert.deepEqual([exit, JSON.parse(text)], [0, { cniVersion: "1.0.0", supportedVersions }]);
});

test("the agent decides while it is there", async () => {
  await withAgent(undefined, async (asked) => {
    const { exit, text } = await execute("ADD", {});
    assert.deepEqual([exit, JSON.parse(text)], [0, RESULT]);
    assert.deepEqual(asked, [{ namespace: "shop", name: "cart", uid: "u1", netnsPath: "/run/netns/x" }]);
    for (const command of ["DEL", "CHECK", "GC", "STATUS"]) assert.equal((await execute(command, {})).exit, 0, command);
    assert.equal((await execute("ADD", { cniVersion: "1.0.0", prevResult: undefined })).code, 7);
    assert.equal((await execute("MOVE", {})).code, 4);
  });
  await withAgent(new CodedError("ENROLMENT_CNI_TIMEOUT", "the proxy is away"), async () => {
    const { exit, code, msg } = await execute("ADD", {});
    assert.deepEqual([exit, code, msg], [1, 11, "ENROLMENT_CNI_TIMEOUT: the proxy is away"]);
  });
});

test("input that is no configuration is refused without asking anybody", async () => {
  assert.equal((await execute("ADD", { socket: 7 })).code, 6);
  assert.equal((await execute("ADD", { socket: undefined })).code, 7);
  assert.equal((await execute("ADD", { more: "x".repeat(50_000) })).code, 7);
});

test("without the agent only pods start of which it is known that they are not to be enrolled", async () => {
  const unknown = await execute("ADD", {});
  assert.deepEqual([unknown.exit, unknown.code], [1, 101]);
  assert.match(unknown.msg, /away.*cannot be learned.*no credentials/);
  const system = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns";
  assert.deepEqual(JSON.parse((await execute("ADD", {}, system)).text), RESULT);
  assert.equal((await execute("ADD", {}, "")).exit, 0);
  const strict = await execute("ADD", { strict: true }, system);
  assert.match(strict.msg, /strict mode is on/);
  assert.equal((await execute("ADD", { strict: true }, "")).code, 101);
  const own = "K8S_POD_NAMESPACE=veil-system;K8S_POD_NAME=veil-agent";
  assert.equal((await execute("ADD", { strict: true }, own)).exit, 0);
});

test("without the agent pods can be deleted, are not called healthy, and leave their node ready", async () => {
  assert.deepEqual([(await execute("DEL", {})).exit, (await execute("GC", {})).exit], [0, 0]);
  assert.equal((await execute("CHECK", {})).code, 11);
  assert.equal((await execute("STATUS", {})).exit, 0);
  assert.equal((await execute("STATUS", { strict: true })).code, 50);
});

test("without the agent the API tells the labels, which are read as the agent reads them", async (t) => {
  const api = await FakeApi.start();
  t.after(() => api.stop());
  const credentials = join(folder, "api.json");
  const { server, caPem } = api.config;
  writeFileSync(credentials, JSON.stringify({ server, ca: caPem, token: "secret" }));
  chmodSync(credentials, 0o600);
  const sets: Record<string, string>[] = [
    {},
    { "istio.io/dataplane-mode": "ambient" },
    { "istio.io/dataplane-mode": "none" },
    { "io.cilium/mtls-enabled": "true" },
    { "io.cilium/mtls-enabled": "false" },
    { "istio.io/dataplane-mode": "ambient", "io.cilium/mtls-enabled": "false" },
  ];
  const rows = sets.flatMap((own) => sets.map((namespace) => ({ own, namespace, annotations: {} })));
  rows.push({ own: {}, namespace: sets[1] ?? {}, annotations: { "sidecar.istio.io/status": "{}" } });
  for (const { own, namespace, annotations } of rows) {
    api.put("/api/v1/namespaces", { metadata: { name: "shop", labels: namespace } });
    api.put("/api/v1/namespaces/shop/pods", {
      metadata: { name: "cart", namespace: "shop", labels: own, annotations },
    });
    const facts = { uid: "u1", name: "cart", namespace: "shop", serviceAccount: "default", phase: "Pending" };
    const { eligible } = decideEligibility({ ...facts, hostNetwork: false, labels: own, annotations }, namespace);
    const { exit, msg } = await execute("ADD", { credentials });
    assert.equal(exit, eligible ? 1 : 0, `${JSON.stringify({ own, namespace, annotations })}: ${msg}`);
  }
  await api.stop();
  assert.match((await execute("ADD", { credentials })).msg, /cannot be learned/);
  await api.listen();
});
