/**
 * `controller.mode: agents` on a real cluster: nothing of a control plane but a container beside each agent. Such a controller follows
 * 5,000 pods that are objects only, through a restart of the API server. And what an administrator may get wrong beside it.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { findWords, readTls, tcpStreams } from "#capture";
import { resources } from "#kube";
import { eventually } from "../netns/harness.ts";
import { clusterProcesses } from "./cgroups.ts";
import { startCluster, type TestCluster } from "./cluster.ts";
import { addressOf, ANSWER, applySoon, askFrom, enrolledPod, namespaceOf, podOf, WEB_PORT } from "./mesh.ts";
import { CHART, helm, installVeil, VEIL_NAMESPACE } from "./veil.ts";

const NODES = ["node1", "node2"];
const LEASE = { name: "veil-controller", namespace: VEIL_NAMESPACE };
const CROWD = "crowd";
const CROWD_NODE = "far-away";
const CROWD_SIZE = 5_000;
/** So many of them run, and have an address that every proxy knows. */
const CROWD_RUNNING = 1_000;
const CROWD_GONE = 10;
/** Requests of this test at once. */
const WRITERS = 32;
/** What a process may use with all of them: 198 (controller), 121 (agent) and 137 (proxy) were seen when all had addresses. */
const MOST_MEBIBYTES = 500;
const PATIENCE_MS = 180_000;

describe("the controller in the agents' pods", () => {
  let cluster: TestCluster;
  before(async () => {
    cluster = await startCluster();
    const mode = { "controller.mode": "agents", "controller.clusterIP": "", "agent.ztunnelListen": "none" };
    await installVeil(cluster, mode);
    await cluster.apply([namespaceOf("shop", true), namespaceOf("plain", false), namespaceOf(CROWD, false)]);
    await applySoon(
      cluster,
      ["shop", "plain"].flatMap((namespace) => [
        podOf({ namespace, name: "server", node: "node1" }),
        podOf({ namespace, name: "client", node: "node2" }),
      ]),
    );
    for (const pod of ["plain/server", "plain/client"]) await addressOf(cluster, pod);
    for (const pod of ["shop/server", "shop/client"]) await enrolledPod(cluster, pod);
  });
  after(() => cluster?.[Symbol.asyncDispose]());

  const isServed = async (namespace: string): Promise<void> => {
    const url = `http://${await addressOf(cluster, `${namespace}/server`)}:${WEB_PORT}/`;
    const look = async (): Promise<true | undefined> =>
      (await askFrom(cluster, `${namespace}/client`, url)) === ANSWER || undefined;
    await eventually(`an answer in ${namespace}`, look);
  };
  /** What the replica that leads calls itself, and where it is. */
  const leader = (except = ""): Promise<{ identity: string; node: string }> =>
    eventually("a leader", async () => {
      const identity = (await cluster.client.find(resources.leases, LEASE))?.spec?.holderIdentity ?? "";
      if (identity === "" || identity === except) return undefined;
      const { items } = await cluster.client.list(resources.pods, { namespace: VEIL_NAMESPACE });
      const pod = items.find(({ metadata }) => identity.startsWith(metadata?.name ?? "-"));
      return pod?.spec?.nodeName === undefined ? undefined : { identity, node: pod.spec.nodeName };
    });

  it("passes the chart's own test, with one leader among the agents and nothing else to run", async () => {
    assert.match(await helm(cluster, "test", "veil"), /Phase: +Succeeded/);
    assert.equal(await cluster.kubectl("-n", VEIL_NAMESPACE, "get", "deployments,services", "-o", "name"), "");
    assert.ok(NODES.includes((await leader()).node));
  });

  it("protects what enrolled pods say to each other", async () => {
    await using capture = await cluster.captureNode("node1", { filter: "tcp" });
    for (const namespace of ["shop", "plain"]) await isServed(namespace);
    const packets = await capture.stop();
    const seen = new Set(findWords(packets, [ANSWER]).map(({ packet }) => String(packet.source)));
    const twin = await addressOf(cluster, "plain/server");
    assert.deepEqual([...seen], [twin], "the capture finds the twin's answer alone");
    const tunnels = tcpStreams(packets).filter(({ from }) => from.endsWith(":15008"));
    assert.ok(tunnels.some((stream) => readTls(stream).version === "TLS 1.3"));
  });

  it("follows 5,000 pods through a restart of the API server, with bounded memory", async () => {
    const before = await knownAddresses(cluster, "node1");
    await makeCrowd(cluster);
    const untilKnown = async (count: number): Promise<void> => {
      for (const node of NODES) {
        const look = async (): Promise<true | undefined> =>
          (await knownAddresses(cluster, node)) === before + count || undefined;
        await eventually(`the proxy of ${node} to know ${count} more`, look, PATIENCE_MS);
      }
    };
    await untilKnown(CROWD_RUNNING);
    await cluster.restartApiServer();
    for (let i = 0; i < CROWD_GONE; i++) {
      await cluster.client.delete(resources.pods, { ...crowdAt(i), gracePeriodSeconds: 0 });
    }
    await untilKnown(CROWD_RUNNING - CROWD_GONE);
    await isServed("shop");
    const used = NODES.flatMap((node) =>
      ["controller", "agent", "proxy"].map((role) => {
        const mebibytes = Math.max(...processesOf(node, role).map(residentMebibytes));
        return { node, role, mebibytes };
      }),
    );
    for (const { node, role, mebibytes } of used) {
      process.stderr.write(`# ${node}: ${role} has ${mebibytes.toFixed(0)} MiB with ${CROWD_SIZE} pods\n`);
      assert.ok(mebibytes < MOST_MEBIBYTES, `${role} of ${node} uses ${mebibytes} MiB`);
    }
  });

  it("has another leader when the leading one is killed, and pods are served and enrolled as before", async () => {
    const old = await leader();
    for (const pid of processesOf(old.node, "controller")) process.kill(pid, "SIGKILL");
    await isServed("shop");
    await leader(old.identity);
    await cluster.apply([namespaceOf("later", true)]);
    const bundle = { namespace: "later", name: "istio-ca-root-cert" }; // only who leads writes it
    await eventually("its trust bundle", () => cluster.client.find(resources.configMaps, bundle));
    await applySoon(cluster, [podOf({ namespace: "shop", name: "young", node: old.node })]);
    await enrolledPod(cluster, "shop/young");
    await isServed("shop");
  });

  it("does not break with a node's CNI configuration, and says on the node what is wrong with it", async () => {
    const file = "/etc/cni/net.d/10-pods.conflist";
    const shell = (words: string) => cluster.execNode("node1", "sh", "-c", words);
    await shell(`cp ${file} /run/kept; echo 'no json' >${file}`);
    const reason = await eventually("the event on the node", async () => {
      const { items } = await cluster.client.list(resources.events, { namespace: "default" });
      return items.find((event) => event.reason === "VeilCniNotChained")?.message;
    });
    assert.match(reason, /10-pods\.conflist.*CNI_CONFIG_INVALID/);
    await cluster.apply([podOf({ namespace: "shop", name: "meanwhile", node: "node1" })]);
    await enrolledPod(cluster, "shop/meanwhile");
    await shell(`cp /run/kept ${file}`);
    await cluster.readyPods(VEIL_NAMESPACE, "app=veil-agent", 2);
  });

  it("refuses a second Veil beside it, and changes nothing", async () => {
    const second = helm(cluster, "install", "second", CHART, "--set", "namespace=veil-two,image.tag=test");
    await assert.rejects(second, /invalid ownership metadata/);
    assert.equal((await cluster.tryKubectl("get", "namespace", "veil-two")).code, 1);
    await isServed("shop");
  });
});

function crowdAt(i: number): { namespace: string; name: string } {
  return { namespace: CROWD, name: `member-${i}` };
}

/** Pods of a node without a kubelet: as far as the API knows some of them run. */
async function makeCrowd({ client }: TestCluster): Promise<void> {
  await client.create(resources.nodes, { metadata: { name: CROWD_NODE } });
  await eventually("the crowd's account", () =>
    client.find(resources.serviceAccounts, { namespace: CROWD, name: "default" }),
  );
  let next = 0;
  const write = async (): Promise<void> => {
    for (let i = next++; i < CROWD_SIZE; i = next++) {
      const at = crowdAt(i);
      const tolerations = [{ operator: "Exists" }]; // of a node that never says anything
      const spec = { nodeName: CROWD_NODE, tolerations, containers: [{ name: "main", image: "none" }] };
      await client.create(resources.pods, { metadata: at, spec });
      if (i >= CROWD_RUNNING) continue;
      const podIP = `10.245.${i >> 8}.${i & 255}`;
      const status = { phase: "Running", podIP, podIPs: [{ ip: podIP }] };
      await client.patch(resources.pods, at, { type: "merge", body: { status }, subresource: "status" });
    }
  };
  await Promise.all(Array.from({ length: WRITERS }, write));
}

const METRICS = "fetch('http://127.0.0.1:15020/metrics').then((a) => a.text()).then((t) => console.log(t))";

/** The addresses that a node's proxy knows. */
async function knownAddresses(cluster: TestCluster, node: string): Promise<number> {
  const pods = await cluster.readyPods(VEIL_NAMESPACE, "app=ztunnel", NODES.length);
  const name = pods.find(({ spec }) => spec?.nodeName === node)?.metadata?.name ?? "";
  const { stdout } = await cluster.execPod(VEIL_NAMESPACE, name, "node", "-e", METRICS);
  return Number(/^veil_proxy_addresses (\d+)/m.exec(stdout)?.[1]);
}

function processesOf(node: string, role: string): number[] {
  return clusterProcesses(node).filter((pid) => readIfThere(`/proc/${pid}/cmdline`).includes(`/veil.js\0${role}\0`));
}

function residentMebibytes(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readIfThere(`/proc/${pid}/status`))?.[1] ?? 0) / 1024;
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // it has ended
  }
}
