/**
 * `veil controller` and `veil apiserver` as processes, with real tokens: what agents see when either is killed.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { createClient, type Transport } from "@connectrpc/connect";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { isKubeError, KubeClient, loadKubeConfig, resources, type Pod } from "#kube";
import { decodeAddress, Propagation } from "#proto";
import { rpcTransport } from "#rpc";
import { TYPE_ADDRESS, XdsClient } from "#xds";
import { freePort, Role, until } from "./role-process.ts";

const clock = systemClock();
const random = systemRandom;
const log = silentLog();
const soon = (ms = 60_000): AbortSignal => AbortSignal.timeout(ms);

const uid = (name: string): string => `Kubernetes//Pod/shop/${name}`;

function podOf(name: string, at: { namespace?: string; account?: string; node?: string } = {}): Pod {
  const { namespace = "shop", account = "default", node = "node1" } = at;
  return {
    metadata: { name, namespace, labels: { app: name } },
    spec: { nodeName: node, serviceAccountName: account, containers: [{ name: "c", image: "none" }] },
  };
}

async function createPod(client: KubeClient, pod: Pod, ip: string): Promise<Pod> {
  const { name = "", namespace } = pod.metadata ?? {};
  // The default service account of a new namespace is made a moment later.
  await until(async () => {
    try {
      await client.create(resources.pods, pod);
      return true;
    } catch (error) {
      if (isKubeError(error, "KUBE_FORBIDDEN")) return false;
      throw error;
    }
  });
  const status = { phase: "Running", podIP: ip, podIPs: [{ ip }], conditions: [{ type: "Ready", status: "True" }] };
  return client.patch(resources.pods, { name, namespace }, { type: "merge", body: { status }, subresource: "status" });
}

async function annotate(client: KubeClient, name: string, value: string | null): Promise<void> {
  const body = { metadata: { annotations: { "ambient.istio.io/redirection": value } } };
  await client.patch(resources.pods, { name, namespace: "shop" }, { type: "merge", body });
}

test(
  "kill -9 of the API or the controller loses nothing, and nodes are told again within moments",
  { timeout: 300_000 },
  async () => {
    const data = mkdtempSync(join(tmpdir(), "vt-controller-"));
    using _ = { [Symbol.dispose]: () => rmSync(data, { recursive: true, force: true }) };
    const [apiPort, rpcPort, statusPort] = [await freePort(), await freePort(), await freePort()];
    const kubeconfig = join(data, "admin.kubeconfig");
    await using api = new Role("apiserver", "--data", data, "--listen", `127.0.0.1:${apiPort}`, "--log-level", "warn");
    await using controller = new Role(
      "controller",
      "--kubeconfig",
      kubeconfig,
      "--listen",
      `127.0.0.1:${rpcPort}`,
      "--metrics-listen",
      `127.0.0.1:${statusPort}`,
    );
    const ready = async (): Promise<boolean> => (await fetch(`http://127.0.0.1:${statusPort}/healthz/ready`)).ok;
    const apiAnswers = async (): Promise<boolean> => {
      const config = await loadKubeConfig(kubeconfig);
      await new KubeClient({ config, log, clock, random }).list(resources.namespaces, { signal: soon(10_000) });
      return true;
    };

    await api.start(apiAnswers);
    const client = new KubeClient({ config: await loadKubeConfig(kubeconfig), log, clock, random });
    for (const name of ["veil-system", "shop"]) await client.create(resources.namespaces, { metadata: { name } });
    const agentAccount = { name: "veil-agent", namespace: "veil-system" };
    await client.create(resources.serviceAccounts, { metadata: agentAccount });
    await client.create(resources.nodes, { metadata: { name: "node1" } });
    await controller.start(ready);
    for (let i = 0; i < 5; i++) await createPod(client, podOf(`p${i}`), `10.244.1.${10 + i}`);
    const agentPod = await createPod(
      client,
      podOf("agent", { namespace: "veil-system", account: "veil-agent" }),
      "172.20.0.11",
    );
    const boundObjectRef = { kind: "Pod", apiVersion: "v1", name: "agent", uid: agentPod.metadata?.uid ?? "" };
    const { token } = await client.createToken("veil-system", "veil-agent", {
      audiences: ["istio-ca"],
      boundObjectRef,
    });

    const bundle = async (): Promise<string | undefined> =>
      (await client.find(resources.configMaps, { name: "istio-ca-root-cert", namespace: "veil-system" }))?.data?.[
        "root-cert.pem"
      ];
    await until(async () => (await bundle()) !== undefined);
    const roots = (await bundle()) ?? "";
    const transport = (bearer = token): Transport =>
      rpcTransport({
        target: `https://127.0.0.1:${rpcPort}`,
        serverName: "veil-controller.veil-system.svc",
        roots: () => roots,
        token: async () => bearer,
      });

    const view = new Map<string, string>();
    const sizes: number[] = [];
    const agent = new XdsClient({
      transport: transport(),
      node: { id: "agent" },
      types: [{ typeUrl: TYPE_ADDRESS, mode: "wildcard" }],
      onUpdate: ({ upserts, removes }) => {
        sizes.push(upserts.length + removes.length);
        for (const { name, value } of upserts) {
          const address = decodeAddress(value);
          if (address.kind === "workload") view.set(name, address.tunnelProtocol);
        }
        for (const name of removes) view.delete(name);
      },
      reconnect: { initialMs: 10, maxMs: 200 },
      clock,
      random,
      log,
    });
    await using __ = { [Symbol.asyncDispose]: () => agent.drain(500) };
    await agent.start(soon());
    await agent.whenWarm(soon());
    await until(() => view.has(uid("p4")));

    // From the write of the annotation to the agent's view.
    const took: number[] = [];
    for (let round = 0; round < 20; round++) {
      const on = round % 2 === 0;
      const began = performance.now();
      await annotate(client, "p0", on ? "enabled" : null);
      await until(() => view.get(uid("p0")) === (on ? "hbone" : "none"));
      took.push(performance.now() - began);
    }
    took.sort((a, b) => a - b);
    process.stderr.write(
      `# patch of the annotation to the agent's view: median ${took[10]?.toFixed(1)} ms, worst ${took.at(-1)?.toFixed(1)} ms\n`,
    );
    const propagation = createClient(Propagation, transport());
    await annotate(client, "p0", "enabled");
    assert.deepEqual((await propagation.await({ uid: uid("p0"), hbone: true, timeoutMs: 20_000 })).nodesBehind, []);
    assert.equal(view.get(uid("p0")), "hbone", "the answer comes after the view");
    assert.deepEqual((await propagation.await({ uid: uid("p0"), hbone: false, timeoutMs: 2_000 })).nodesBehind, [
      "node1",
    ]);
    await assert.rejects(
      createClient(Propagation, transport("a.b.c")).await({ uid: uid("p0") }),
      /\[unauthenticated\]/,
    );

    // The API is killed: what is known is served, nothing is denied, and nothing is lost when it is back.
    await api.kill();
    assert.equal((await agent.find(TYPE_ADDRESS, "/10.244.1.11", soon()))?.name, uid("p1"));
    await assert.rejects(agent.find(TYPE_ADDRESS, "/10.244.1.99", soon(300)), { code: "XDS_NO_ANSWER" });
    assert.equal(agent.connected, true);
    await api.start(apiAnswers);
    const back = performance.now();
    await annotate(client, "p1", "enabled");
    await until(() => view.get(uid("p1")) === "hbone");
    assert.equal(await agent.find(TYPE_ADDRESS, "/10.244.1.99", soon()), undefined);
    process.stderr.write(
      `# after the API's return the next change arrived within ${(performance.now() - back).toFixed(0)} ms\n`,
    );

    // The controller is killed: the view stays, and only what changed meanwhile comes.
    await controller.kill();
    await until(() => !agent.connected);
    const before = new Map(view);
    assert.equal(before.size, view.size);
    await annotate(client, "p2", "enabled");
    await client.delete(resources.pods, { name: "p3", namespace: "shop", gracePeriodSeconds: 0 });
    sizes.length = 0;
    await controller.start(ready);
    await until(() => view.get(uid("p2")) === "hbone" && !view.has(uid("p3")));
    assert.deepEqual(sizes, [2]);
    assert.equal(view.size, before.size - 1);
    assert.equal(await bundle(), roots, "the authority is the same");
  },
);
