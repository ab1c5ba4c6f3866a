import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { delimiter, join } from "node:path";
import { systemClock } from "#base/clock";
import { silentLog } from "#base/log";
import { systemRandom } from "#base/random";
import { ensureKubectl } from "#apiserver";
import { startCapture, type Capture } from "#capture";
import { KubeClient, loadKubeConfig, resources, type Pod } from "#kube";
import { isPodReady } from "#lab";
import { eventually, must, run, type Outcome } from "../netns/harness.ts";
import { makeCgroups } from "./cgroups.ts";
import { makePki, startApiServer, startControlPlane, waitForApi, writeKubeconfig } from "./control-plane.ts";
import type { Daemon } from "./daemons.ts";
import { makeImages } from "./images.ts";
import {
  ADMIN_KUBECONFIG,
  CONTROL_CGROUP,
  FOLDER,
  LOCK,
  LOGS,
  NETNS_FOLDER,
  nodeLayout,
  PKI_FOLDER,
} from "./layout.ts";
import { removeCluster } from "./leftovers.ts";
import { makeNetwork, routePods } from "./network.ts";
import { ClusterNode } from "./node.ts";
import { requireKubernetes } from "./requirements.ts";

const clock = systemClock();
const READY_DEADLINE_MS = 180_000;

/** A cluster for one test file. Dispose it, also after a failure: `await using cluster = await startCluster()`. */
export interface TestCluster extends AsyncDisposable {
  /** All rights. */
  readonly kubeconfig: string;
  readonly client: KubeClient;
  readonly nodes: readonly ClusterNode[];
  /** The cluster's authority, in the layout of the data directory of `veil apiserver`. */
  readonly pki: string;
  node(name: string | undefined): ClusterNode;
  /** Runs kubectl; fails the test when it fails. */
  kubectl(...words: string[]): Promise<string>;
  /** As {@link kubectl}, for what may fail. */
  tryKubectl(...words: string[]): Promise<Outcome>;
  /** Applies YAML or JSON text, or objects. */
  apply(manifest: string | readonly object[]): Promise<void>;
  /** A kubeconfig with a client certificate for a user; answers its path. */
  kubeconfigFor(user: string, ...groups: string[]): Promise<string>;
  /** Brings an image (an OCI layout in a tar) to all nodes. */
  importImage(tar: string): Promise<void>;
  /** A pod, once it is ready. */
  readyPod(namespace: string, name: string): Promise<Pod>;
  /** The pods that a label selector finds, once there are `count` and all are ready. */
  readyPods(namespace: string, selector: string, count: number): Promise<readonly Pod[]>;
  /** Runs a command in a container. */
  execPod(namespace: string, pod: string, ...command: string[]): Promise<Outcome>;
  /** Runs a command on a node: its network, its mounts, its hostname. */
  execNode(node: string, ...command: string[]): Promise<Outcome>;
  /** Starts tcpdump on an interface of a node; `eth0` is the network between nodes. */
  captureNode(node: string, options?: { interface?: string; filter?: string }): Promise<Capture>;
  /** Waits until every node is ready. */
  nodesReady(): Promise<void>;
  /** Cuts a node's power and boots it again: its pods are started anew. Resolves when its daemons run; see {@link nodesReady}. */
  rebootNode(name: string): Promise<void>;
  /** Kills the API server with SIGKILL and starts it again; resolves when it is ready. */
  restartApiServer(): Promise<void>;
}

/**
 * Brings up a Kubernetes of real programs: a control plane and `nodes` nodes (default 2), ready for pods. One at a time on a
 * machine; what an earlier one has left whose process was killed is removed first. Builds what is not built yet.
 */
export async function startCluster(
  options: { nodes?: number; note?: (line: string) => void } = {},
): Promise<TestCluster> {
  const note = options.note ?? ((line: string) => void process.stderr.write(`# ${line}\n`));
  await requireKubernetes(note);
  const lock = await lockMachine();
  process.env["PATH"] = [process.env["PATH"], "/usr/sbin", "/sbin"].join(delimiter); // runc, for containerd
  const down = async (): Promise<void> => {
    try {
      await removeCluster();
    } finally {
      lock.close();
    }
  };
  try {
    await removeCluster();
    return await bringUp(options.nodes ?? 2, down);
  } catch (error) {
    await down();
    throw error;
  }
}

type PodRange = Parameters<typeof routePods>[0][number];

async function bringUp(count: number, down: () => Promise<void>): Promise<TestCluster> {
  mkdirSync(FOLDER, { recursive: true });
  await must(["mount", "-n", "-t", "tmpfs", "-o", "mode=755,size=8g", "vt-kubernetes", FOLDER]);
  await must(["mount", "-n", "--make-private", FOLDER]);
  mkdirSync(LOGS);
  makeCgroups([CONTROL_CGROUP]);
  await makeNetwork();
  await makePki();
  const images = await makeImages();
  const nodes = Array.from({ length: count }, (_, i) => new ClusterNode(nodeLayout(i + 1)));
  const bootNode = async (node: ClusterNode): Promise<void> => {
    await node.boot();
    for (const image of images) await node.importImage(image);
  };
  const booting = nodes.map(bootNode);
  const control = startControlPlane();
  await Promise.allSettled([control, ...booting]); // when one fails, none goes on while the cluster is removed
  await Promise.all(booting);
  const daemons = await control;
  for (const node of nodes) node.startKubelet();
  const config = await loadKubeConfig(ADMIN_KUBECONFIG);
  const client = new KubeClient({ config, log: silentLog(), clock, random: systemRandom });
  try {
    const ranges = await makePodNetwork(client, nodes);
    const kubectl = await ensureKubectl({ env: process.env });
    const cluster = testCluster({ nodes, ranges, kubectl, client, control: daemons, down });
    await cluster.nodesReady();
    await eventually("the default service account", () =>
      client.find(resources.serviceAccounts, { namespace: "default", name: "default" }),
    );
    return cluster;
  } catch (error) {
    client.close();
    throw error;
  }
}

/** As cloud providers do it: the controller manager gives each node a range, from which the node gives its pods addresses. */
async function makePodNetwork(client: KubeClient, nodes: readonly ClusterNode[]): Promise<PodRange[]> {
  const ranges = await Promise.all(
    nodes.map(async (node) => {
      const podRange = await eventually(
        `${node.name} to have a range for pods`,
        async () => (await client.find(resources.nodes, { name: node.name }))?.spec?.podCIDR,
        READY_DEADLINE_MS,
      );
      return { layout: node.layout, node, podRange };
    }),
  );
  await routePods(ranges);
  for (const { node, podRange } of ranges) await node.writePodNetwork(podRange);
  return ranges;
}

function testCluster(parts: {
  nodes: readonly ClusterNode[];
  ranges: readonly PodRange[];
  kubectl: string;
  client: KubeClient;
  control: Daemon[];
  down: () => Promise<void>;
}): TestCluster {
  const { nodes, client, control } = parts;
  const env = { KUBECONFIG: ADMIN_KUBECONFIG };
  const node = (name: string | undefined): ClusterNode => {
    const found = nodes.find((other) => other.name === name);
    assert.ok(found, `the cluster has no node ${name}`);
    return found;
  };
  const readyPods = (namespace: string, labelSelector: string, count: number): Promise<readonly Pod[]> =>
    eventually(
      `${count} ready pods ${namespace} ${labelSelector}`,
      async () => {
        const { items } = await client.list(resources.pods, { namespace, labelSelector });
        return items.length === count && items.every(isPodReady) ? items : undefined;
      },
      READY_DEADLINE_MS,
    );
  return {
    kubeconfig: ADMIN_KUBECONFIG,
    client,
    nodes,
    pki: PKI_FOLDER,
    node,
    kubectl: (...words) => must([parts.kubectl, ...words], { env }),
    tryKubectl: (...words) => run([parts.kubectl, ...words], { env }),
    async apply(manifest) {
      const input =
        typeof manifest === "string" ? manifest : manifest.map((object) => JSON.stringify(object)).join("\n---\n");
      await must([parts.kubectl, "apply", "-f", "-"], { env, input });
    },
    kubeconfigFor: (user, ...groups) =>
      writeKubeconfig(join(FOLDER, `${user.replaceAll(/[^a-z0-9-]/g, "_")}.kubeconfig`), user, groups),
    async importImage(tar) {
      await Promise.all(nodes.map((each) => each.importImage(tar)));
    },
    readyPod: (namespace, name) =>
      eventually(
        `pod ${namespace}/${name} to be ready`,
        async () => {
          const found = await client.find(resources.pods, { namespace, name });
          return found !== undefined && isPodReady(found) ? found : undefined;
        },
        READY_DEADLINE_MS,
      ),
    readyPods,
    execPod: (namespace, pod, ...command) => client.exec({ namespace, pod, command }),
    execNode: (name, ...command) => run([...node(name).enter, ...command]),
    captureNode: (name, options = {}) =>
      startCapture({
        netns: `${NETNS_FOLDER}/${node(name).layout.netns}`,
        interface: options.interface ?? "eth0",
        clock,
        ...(options.filter === undefined ? {} : { filter: options.filter }),
      }),
    nodesReady: () => nodesReady(client, nodes),
    async rebootNode(name) {
      await node(name).halt();
      await node(name).boot();
      await routePods(parts.ranges);
      node(name).startKubelet();
    },
    async restartApiServer() {
      const at = control.findIndex((daemon) => daemon.name === "kube-apiserver");
      await control[at]?.kill();
      control[at] = startApiServer();
      await waitForApi(control);
    },
    async [Symbol.asyncDispose]() {
      client.close();
      await parts.down();
    },
  };
}

async function nodesReady(client: KubeClient, nodes: readonly ClusterNode[]): Promise<void> {
  const answer = await eventually(
    "all nodes to be ready",
    async () => {
      const ended = nodes.map((node) => node.findEnd()).find((end) => end !== undefined);
      if (ended !== undefined) return ended;
      const { items } = await client.list(resources.nodes);
      const ready = items.filter((node) =>
        node.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True"),
      );
      return nodes.every(({ name }) => ready.some((node) => node.metadata?.name === name)) ? "ready" : undefined;
    },
    READY_DEADLINE_MS,
  );
  assert.equal(answer, "ready");
}

/** Removes what a cluster has left whose process was killed. Fails when one runs. */
export async function removeAbandoned(): Promise<void> {
  const lock = await lockMachine();
  try {
    await removeCluster();
  } finally {
    lock.close();
  }
}

/** Holds the machine for one cluster. The kernel gives the lock up with this process. Fails when another holds it. */
async function lockMachine(): Promise<Server> {
  const server = createServer((socket) => socket.end(String(process.pid)).on("error", () => {}));
  const taken = await new Promise<boolean>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(true) : reject(error),
    );
    server.listen(LOCK, () => resolve(false));
  });
  if (taken) assert.fail(`a test cluster runs already on this machine, of process ${await askHolder()}: one at a time`);
  return server.unref();
}

async function askHolder(): Promise<string> {
  return new Promise((resolve) => {
    let said = "";
    const socket = connect(LOCK).setEncoding("utf8");
    socket.on("data", (text: string) => (said += text)).on("error", () => resolve("unknown"));
    socket.on("end", () => resolve(said));
  });
}
