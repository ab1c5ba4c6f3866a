import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { resources, type Pod } from "#kube";
import { eventually, must } from "../netns/harness.ts";
import type { Mesh, MeshRole } from "../netns/mesh.ts";
import { clusterProcesses } from "./cgroups.ts";
import type { TestCluster } from "./cluster.ts";
import { BUSYBOX_IMAGE } from "./images.ts";
import { enterPodNetwork } from "./pod-network.ts";
import { rolledOut, VEIL_NAMESPACE } from "./veil.ts";

/** What a program of this machine needs of it: libraries, and this checkout with its Node. */
const MACHINE = ["/usr", "/lib", "/lib64", resolve(import.meta.dirname, "../..")];

/** Real kubelets as the cluster underneath {@link Mesh}. */
export function clusterMesh(cluster: TestCluster): Mesh {
  const volumeMounts = MACHINE.map((path, i) => ({ name: `machine${i}`, mountPath: path, readOnly: true }));
  const volumes = MACHINE.map((path, i) => ({ name: `machine${i}`, hostPath: { path } }));
  // Without requests it would starve beside the rest of the cluster.
  const resourcesOf = { requests: { cpu: "100m" } };
  return {
    ...cluster,
    programs: { container: { image: BUSYBOX_IMAGE, volumeMounts, resources: resourcesOf }, spec: { volumes } },
    enterPod: (pod) => enterPodNetwork(cluster, pod),
    kill: (role, node) => kill(cluster, role, node),
    async capturePod(pod, filter) {
      const node = pod.spec?.nodeName ?? "";
      const link = await hostLink(cluster, pod);
      return cluster.captureNode(node, { interface: link, ...(filter !== undefined && { filter }) });
    },
    async replaceProxies() {
      const old = new Set((await proxiesOf(cluster)).map(({ metadata }) => metadata?.uid));
      await cluster.kubectl("-n", VEIL_NAMESPACE, "rollout", "restart", "daemonset/ztunnel");
      await rolledOut(cluster);
      await eventually(
        "the old proxies to be gone",
        async () => (await proxiesOf(cluster)).every(({ metadata }) => !old.has(metadata?.uid)) || undefined,
      );
    },
    async proxyMetrics(node) {
      const proxy = (await proxiesOf(cluster)).find(({ spec }) => spec?.nodeName === node);
      assert.ok(proxy, `${node} has no proxy`);
      return must([...(await enterPodNetwork(cluster, proxy)), "curl", "-sf", "http://127.0.0.1:15020/metrics"]);
    },
  };
}

async function proxiesOf({ client }: TestCluster): Promise<readonly Pod[]> {
  return (await client.list(resources.pods, { namespace: VEIL_NAMESPACE, labelSelector: "app=ztunnel" })).items;
}

/** The node's end of a pod's link. */
async function hostLink(cluster: TestCluster, pod: Pod): Promise<string> {
  const inPod = await must([...(await enterPodNetwork(cluster, pod)), "ip", "-o", "link", "show", "eth0"]);
  const index = /eth0@if(\d+):/.exec(inPod)?.[1];
  const { stdout } = await cluster.execNode(pod.spec?.nodeName ?? "", "ip", "-o", "link");
  const link = new RegExp(`^${index}: ([^@:]+)`, "m").exec(stdout)?.[1];
  assert.ok(link, `pod ${pod.metadata?.name} has no link`);
  return link;
}

async function kill(cluster: TestCluster, role: MeshRole, node?: string): Promise<void> {
  if (role === "apiserver") return cluster.restartApiServer();
  const nodes = node === undefined ? cluster.nodes.map(({ name }) => name) : [node];
  const before = nodes.flatMap((name) => processesOf(name, role));
  assert.ok(before.length > 0, `no ${role} runs`);
  for (const pid of before) process.kill(pid, "SIGKILL");
  if (role === "data path") return;
  await eventually(`another ${role}`, () => {
    const now = nodes.flatMap((name) => processesOf(name, role));
    return (now.length > 0 && now.every((pid) => !before.includes(pid))) || undefined;
  });
  await rolledOut(cluster);
}

/** The processes of a role on a node. Of a proxy's the one that carries connections: the eldest child of the first. */
function processesOf(node: string, role: MeshRole): number[] {
  const word = role === "data path" ? "proxy" : role;
  const found = clusterProcesses(node)
    .filter((pid) => textOf(`/proc/${pid}/cmdline`).includes(`/veil.js\0${word}\0`))
    .map((pid) => {
      const fields = textOf(`/proc/${pid}/stat`).split(") ")[1]?.split(" ") ?? [];
      return { pid, parent: Number(fields[1]), startTicks: Number(fields[19]) };
    });
  if (role !== "data path") return found.map(({ pid }) => pid);
  const children = found.filter(({ parent }) => found.some(({ pid }) => pid === parent));
  return children
    .toSorted((a, b) => a.startTicks - b.startTicks)
    .slice(0, 1)
    .map(({ pid }) => pid);
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // it has ended meanwhile
  }
}
