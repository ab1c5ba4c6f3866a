/**
 * Two replicas of the controller on one API: both serve, one writes. As processes that are killed and stopped, and, where requests
 * have to be counted, within this one.
 */
import assert from "node:assert/strict";
import type { ServerResponse } from "node:http";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { drainAll, startAll } from "#base/service";
import { createController } from "#controller";
import { KubeClient, loadKubeConfig, resources } from "#kube";
import { OWN_TRUST_BUNDLE } from "#model/authority-objects";
import { rpcTransport } from "#rpc";
import { TYPE_ADDRESS, XdsClient } from "#xds";
import { FakeApi } from "../../src/kube/testing.ts";
import { freePort, Role, until } from "./role-process.ts";

const clock = systemClock();
const random = systemRandom;
const log = silentLog();
const soon = (ms = 60_000): AbortSignal => AbortSignal.timeout(ms);
const BUNDLE = "istio-ca-root-cert";

/** A replica as a process. */
class Replica implements AsyncDisposable {
  readonly #role: Role;
  readonly #statusPort: number;
  readonly rpcPort: number;

  private constructor(role: Role, ports: { rpc: number; status: number }) {
    this.#role = role;
    this.rpcPort = ports.rpc;
    this.#statusPort = ports.status;
  }

  static async start(kubeconfig: string, name: string, namespace = "veil-system"): Promise<Replica> {
    const [rpc, status] = [await freePort(), await freePort()];
    const at = { "--listen": rpc, "--metrics-listen": status };
    const listens = Object.entries(at).flatMap(([flag, port]) => [flag, `127.0.0.1:${port}`]);
    const flags = ["--kubeconfig", kubeconfig, "--namespace", namespace, "--pod-name", name];
    const replica = new Replica(new Role("controller", ...flags, ...listens), { rpc, status });
    await replica.#role.start(async () => (await fetch(`http://127.0.0.1:${status}/healthz/ready`)).ok);
    return replica;
  }

  /** A gauge or counter without labels. */
  async metric(name: string): Promise<number> {
    const page = await (await fetch(`http://127.0.0.1:${this.#statusPort}/metrics`)).text();
    return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(page)?.[1] ?? 0);
  }

  async leads(): Promise<boolean> {
    return (await this.metric("veil_controller_leading")) === 1;
  }

  kill(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    return this.#role.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#role.kill();
  }
}

test(
  "kill -9 and SIGTERM of the replica that leads: the other leads and writes, and its clients notice nothing",
  { timeout: 300_000 },
  async () => {
    const data = mkdtempSync(join(tmpdir(), "vt-leader-"));
    using _ = { [Symbol.dispose]: () => rmSync(data, { recursive: true, force: true }) };
    const kubeconfig = join(data, "admin.kubeconfig");
    const apiPort = await freePort();
    await using api = new Role("apiserver", "--data", data, "--listen", `127.0.0.1:${apiPort}`, "--log-level", "warn");
    const connect = async (): Promise<KubeClient> =>
      new KubeClient({ config: await loadKubeConfig(kubeconfig), log, clock, random });
    await api.start(async () => (await (await connect()).list(resources.namespaces)).items.length >= 0);
    const client = await connect();
    for (const name of ["veil-system", "apart"]) await client.create(resources.namespaces, { metadata: { name } });
    await client.create(resources.serviceAccounts, { metadata: { name: "veil-agent", namespace: "veil-system" } });
    await client.create(resources.nodes, { metadata: { name: "node1" } });

    const bundleIn = async (namespace: string): Promise<string | undefined> =>
      (await client.find(resources.configMaps, { name: BUNDLE, namespace }))?.data?.["root-cert.pem"];
    /** How long until somebody writes into a new namespace. */
    const untilWritten = async (namespace: string): Promise<number> => {
      const began = performance.now();
      await client.create(resources.namespaces, { metadata: { name: namespace } });
      await until(async () => (await bundleIn(namespace)) !== undefined);
      return Math.round(performance.now() - began);
    };

    await using first = await Replica.start(kubeconfig, "first");
    await using second = await Replica.start(kubeconfig, "second");
    await until(() => first.leads());
    assert.equal(await second.leads(), false);
    await untilWritten("calm");
    assert.equal(await second.metric("veil_controller_trust_bundles_written_total"), 0, "the one that leads writes");

    // A client of the one that does not lead: its stream lives on while the other dies.
    const token = await agentToken(client);
    const roots = (await bundleIn("calm")) ?? "";
    let interruptions = 0;
    const agent = new XdsClient({
      transport: rpcTransport({
        target: `https://127.0.0.1:${second.rpcPort}`,
        serverName: "veil-controller.veil-system.svc",
        roots: () => roots,
        token: async () => token,
      }),
      node: { id: "agent" },
      types: [{ typeUrl: TYPE_ADDRESS, mode: "wildcard" }],
      onUpdate: () => {},
      reconnect: { initialMs: 10, maxMs: 200 },
      clock,
      random,
      log,
    });
    await using __ = { [Symbol.asyncDispose]: () => agent.drain(500) };
    await agent.start(soon());
    await agent.whenWarm(soon());
    using watching = watch(() => (interruptions += agent.connected ? 0 : 1));

    await first.kill("SIGKILL");
    const afterKill = await untilWritten("after-kill");
    await until(() => second.leads());
    assert.equal(await bundleIn("after-kill"), roots, "the authority is the same");

    await using third = await Replica.start(kubeconfig, "third");
    assert.equal(await third.leads(), false);
    watching[Symbol.dispose]();
    assert.equal(interruptions, 0);
    const stopped = second.kill("SIGTERM");
    const afterStop = await untilWritten("after-stop");
    await until(() => third.leads());
    await stopped;
    process.stderr.write(
      `# from the end of the leader to the next one's first write: kill -9 ${afterKill} ms, SIGTERM ${afterStop} ms\n`,
    );

    // The twin: a replica whose Lease is another one leads and writes at the same time.
    await using apart = await Replica.start(kubeconfig, "apart", "apart");
    await until(async () => (await third.leads()) && (await apart.leads()));
  },
);

async function agentToken(client: KubeClient): Promise<string> {
  const metadata = { name: "agent", namespace: "veil-system" };
  const spec = { nodeName: "node1", serviceAccountName: "veil-agent", containers: [{ name: "c", image: "none" }] };
  const pod = await client.create(resources.pods, { metadata, spec });
  const boundObjectRef = { kind: "Pod", apiVersion: "v1", name: "agent", uid: pod.metadata?.uid ?? "" };
  return (await client.createToken("veil-system", "veil-agent", { audiences: ["istio-ca"], boundObjectRef })).token;
}

/** Looks every few milliseconds until it is disposed of. */
function watch(look: () => void): Disposable {
  const timer = setInterval(look, 5);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** Whoever writes a trust bundle first has to wait until another wants to as well, or for `patienceMs`; the most that wanted to at once. */
async function writersAtOnce(leases: readonly [string, string], patienceMs: number): Promise<number> {
  const api = await FakeApi.start();
  let most = 0;
  let held: ServerResponse[] = [];
  const refuse = (): void => {
    for (const response of held) response.writeHead(409, { "content-type": "application/json" }).end("{}");
    held = [];
  };
  api.intercept = ({ method, url }, response) => {
    if (method !== "POST" || url !== "/api/v1/namespaces/shop/configmaps") return false;
    held.push(response);
    most = Math.max(most, held.length);
    return true;
  };
  const client = new KubeClient({ config: api.config, log, clock, random });
  const cluster = {
    clusterId: "Kubernetes",
    network: "",
    trustDomain: "cluster.local",
    clusterDomain: "cluster.local",
  };
  const local = { host: "127.0.0.1", port: 0 };
  // One bundle, so that a leader writes one ConfigMap in a namespace.
  const shared = { client, cluster, listen: local, status: local, trustBundle: OWN_TRUST_BUNDLE, clock, random, log };
  const replicas = leases.map((namespace, index) =>
    createController({ ...shared, namespace, podName: `controller-${index}` }),
  );
  try {
    for (const { services } of replicas) await startAll(services, soon());
    api.put("/api/v1/namespaces", { metadata: { name: "shop" } });
    const end = performance.now() + patienceMs;
    await until(() => most === 2 || performance.now() > end);
    refuse();
    return most;
  } finally {
    api.intercept = undefined;
    refuse();
    for (const { services } of replicas) await drainAll(services, 1_000);
    client.close();
    await api.stop();
  }
}

test("of two replicas one writes; with a Lease for each of them both do", async () => {
  assert.equal(await writersAtOnce(["veil-system", "veil-system"], 1_000), 1);
  assert.equal(await writersAtOnce(["veil-system", "apart"], 60_000), 2);
});
