/**
 * `controller.mode: agents` on a real cluster: nothing of a control plane but a container beside each agent. Such a controller follows
 * 5,000 pods that are objects only, through a restart of the API server. And what an administrator may get wrong beside it.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { ensureKubectl } from "#apiserver";
import { findWords, readTls, tcpStreams } from "#capture";
import { resources } from "#kube";
import { eventually, must, run, VEIL } from "../netns/harness.ts";
import { clusterProcesses } from "./cgroups.ts";
import { startCluster, type TestCluster } from "./cluster.ts";
import { BUSYBOX_IMAGE } from "./images.ts";
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

  it("does not break with a node's CNI configuration that is not JSON, or cannot be written, and says on the node what to do", async () => {
    const folder = "/etc/cni/net.d";
    const shell = async (node: string, words: string): Promise<void> => {
      const { code, stderr } = await cluster.execNode(node, "sh", "-ec", words);
      assert.equal(code, 0, stderr);
    };
    await shell("node1", `cp ${folder}/10-pods.conflist /run/kept; echo 'no json' >${folder}/10-pods.conflist`);
    // Over the folder comes a read-only one that is as it was before Veil; what is behind it loses the list, which is noticed.
    await shell(
      "node2",
      `mkdir /run/frozen /run/behind; cp ${folder}/10-pods.conflist /run/frozen; mount --bind ${folder} /run/behind
       mount --make-private /run/behind
       mount --bind /run/frozen /run/frozen; mount -o remount,bind,ro /run/frozen; mount --bind /run/frozen ${folder}
       rm /run/behind/10-pods-veil.conflist`,
    );
    assert.match(await chainWarning(cluster, "node1"), /10-pods\.conflist is no JSON object; mend the named file/);
    assert.match(await chainWarning(cluster, "node2"), /read-only file system, .*; check --cni-conf-dir/);
    for (const [node, problem] of [
      ["node1", /problem: the network plugin's own configuration cannot be used: 10-pods\.conflist is no JSON object/],
      ["node2", /problem: \/etc\/cni\/net\.d cannot be written: the agent cannot keep the plugin there/],
    ] as const) {
      assert.match(await doctorOn(cluster, node), problem);
      await applySoon(cluster, [podOf({ namespace: "shop", name: `meanwhile-${node}`, node })]);
      await enrolledPod(cluster, `shop/meanwhile-${node}`);
    }
    await shell("node1", `cp /run/kept ${folder}/10-pods.conflist`);
    await shell("node2", `umount ${folder} /run/frozen /run/behind`);
    for (const node of NODES) {
      const isChained = () => shell(node, `grep -q veil-cni ${folder}/10-pods-veil.conflist`).then(() => true);
      await eventually(`the list on ${node}`, isChained);
    }
    await cluster.readyPods(VEIL_NAMESPACE, "app=veil-agent", 2);
    await isServed("shop");
  });

  it("is printed by veil manifests as objects that the API takes", async () => {
    const printed = await must([VEIL, "manifests", "--set", "platform=gke", "--set", "mode=strict"]);
    const apply = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
    const kubectl = await ensureKubectl({ env: process.env });
    const taken = await must([kubectl, "--kubeconfig", cluster.kubeconfig, ...apply], { input: printed });
    assert.equal(taken.match(/serverside-applied/g)?.length, printed.match(/^---$/gm)?.length, taken);
  });

  it("names others that enrol the same pods, is not installed beside them, and changes nothing", async () => {
    const others = [
      { name: "second", labels: { app: "veil-agent" } },
      { name: "istio", labels: { "k8s-app": "istio-cni-node" } },
    ];
    await cluster.apply(others.map(({ name, labels }) => bystander(name, labels)));
    for (const [name, advice] of [
      ["another Veil", "both enrol the same pods: uninstall one of the two"],
      ["Istio's ambient mode", "it enrols what carries istio.io/dataplane-mode=ambient, too"],
    ] as const) {
      await eventually(`an event about ${name}`, async () => {
        const { items } = await cluster.client.list(resources.events, { namespace: VEIL_NAMESPACE });
        return items.find(({ message }) => message?.startsWith(`${name} is on this cluster: ${advice}`));
      });
    }
    const said = await run([VEIL, "doctor", "--kubeconfig", cluster.kubeconfig]);
    for (const found of ["Veil is installed in plain, too", "Istio's agents (plain) and Veil's both enrol"]) {
      assert.ok(said.stdout.includes(found), said.stdout);
    }
    const install = (...values: string[]): Promise<string> =>
      helm(cluster, "install", "second", CHART, "--set", ["namespace=veil-two", "image.tag=test", ...values].join(","));
    await assert.rejects(install(), /invalid ownership metadata/);
    await cluster.kubectl(
      "-n",
      "kube-system",
      "create",
      "configmap",
      "cilium-config",
      "--from-literal=cni-exclusive=true",
    );
    await assert.rejects(install(), /Cilium removes other programs' CNI configuration .*set cni\.exclusive=false/);
    await cluster.apply([namespaceOf("istio-system", false), daemonSetOfNoNode("istio-system", "ztunnel")]);
    const fixed = "cni.enabled=false";
    await assert.rejects(install(fixed), /Istio's ambient mode is installed \(DaemonSet istio-system\/ztunnel\)/);
    await assert.rejects(install(fixed, "enrolLabels={io.cilium/mtls-enabled}"), /invalid ownership metadata/);
    assert.equal((await cluster.tryKubectl("get", "namespace", "veil-two")).code, 1);
    await isServed("shop");
  });
});

/** What is said on a node about its CNI configuration. */
function chainWarning(cluster: TestCluster, node: string): Promise<string> {
  return eventually(`the event on ${node}`, async () => {
    const { items } = await cluster.client.list(resources.events, { namespace: "default" });
    const about = items.find(
      ({ reason, involvedObject }) => reason === "VeilCniNotChained" && involvedObject.name === node,
    );
    return about?.message;
  });
}

/** What the doctor in the node's agent says. */
async function doctorOn(cluster: TestCluster, node: string): Promise<string> {
  const { items } = await cluster.client.list(resources.pods, {
    namespace: VEIL_NAMESPACE,
    labelSelector: "app=veil-agent",
  });
  const agent = items.find(({ spec }) => spec?.nodeName === node)?.metadata?.name ?? "";
  const command = ["node", "/opt/veil/dist/main/veil.js", "doctor", "--node", "-o", "json"];
  const { stdout } = await cluster.tryKubectl("-n", VEIL_NAMESPACE, "exec", agent, "-c", "agent", "--", ...command);
  const { findings } = JSON.parse(stdout) as { findings: { outcome: string; what: string }[] }; // our own program's
  return findings.map(({ outcome, what }) => `${outcome}: ${what}`).join("\n");
}

/** A pod in `plain` that passes for somebody else's, as far as the API knows. */
function bystander(name: string, labels: Record<string, string>): object {
  const containers = [{ name: "main", image: BUSYBOX_IMAGE }];
  const spec = { nodeName: "node1", terminationGracePeriodSeconds: 0, containers };
  return { apiVersion: "v1", kind: "Pod", metadata: { namespace: "plain", name, labels }, spec };
}

function daemonSetOfNoNode(namespace: string, name: string): object {
  const labels = { app: name };
  const containers = [{ name: "main", image: BUSYBOX_IMAGE }];
  const template = { metadata: { labels }, spec: { nodeSelector: { nowhere: "true" }, containers } };
  const metadata = { namespace, name };
  return { apiVersion: "apps/v1", kind: "DaemonSet", metadata, spec: { selector: { matchLabels: labels }, template } };
}

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
