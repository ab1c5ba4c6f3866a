/**
 * Veil on real kubelets: how long it takes to come and to go, and what a kill of a proxy or of a controller costs. What it adds to a
 * pod's start: pod-start.ts.
 *
 *     node --conditions=veil-source bench/kubernetes.ts [--pods 30]     (root; takes about five minutes)
 *
 * Brings up the test cluster (test/kubernetes) and installs the chart with agents and proxies on node1 alone: node2 is a node without
 * Veil. Writes bench/results/kubernetes.md.
 */
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { sleep, systemClock } from "#base/clock";
import { resources, type Pod } from "#kube";
import { clusterProcesses } from "../test/kubernetes/cgroups.ts";
import { startCluster, type TestCluster } from "../test/kubernetes/cluster.ts";
import { BUSYBOX_IMAGE } from "../test/kubernetes/images.ts";
import { enterPodNetwork } from "../test/kubernetes/pod-network.ts";
import { helm, installVeil, rolledOut } from "../test/kubernetes/veil.ts";
import { eventually } from "../test/netns/harness.ts";

const { values } = parseArgs({
  options: { pods: { type: "string", default: "30" } },
});
const PODS = Number(values.pods);
const clock = systemClock();
const lines: string[] = [];

/** What a pod is sure to get of a processor: one without is next to nothing while others work, and its queue of 9 connections overflows. */
const SURE = { requests: { cpu: "200m" } };

interface Place {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  readonly labels?: Record<string, string>;
  readonly resources?: object;
}

function podOf({ namespace, name, node, labels = {}, resources = {} }: Place): object {
  const command = ["sh", "-c", "mkdir /www; echo ok >/www/index.html; exec httpd -f -p 8080 -h /www"];
  const spec = {
    nodeName: node,
    terminationGracePeriodSeconds: 0,
    containers: [{ name: "main", image: BUSYBOX_IMAGE, command, resources }],
  };
  return { apiVersion: "v1", kind: "Pod", metadata: { namespace, name, labels }, spec };
}

/** New connections of an enrolled pod every 20 ms, as long as it lives: when each was answered. */
const ASK = `
const { request } = require("node:http");
const ask = () => {
  const atMs = Date.now();
  const say = (ok) => console.log(JSON.stringify({ atMs, endMs: Date.now(), ok }));
  const asked = request({ host: process.argv[1], port: 8080, agent: false, timeout: 3000 }, (answer) => {
    answer.resume().on("end", () => say(true));
  });
  asked.on("timeout", () => asked.destroy()).on("error", () => say(false)).end();
};
setInterval(ask, 20);
`;

interface Answer {
  readonly atMs: number;
  readonly endMs: number;
  readonly ok: boolean;
}

/** The answers that a server gives to a pod's network; asking ends with the result's disposal. */
async function startAsking(cluster: TestCluster, from: Pod, server: Pod): Promise<{ answers: Answer[] } & Disposable> {
  const enter = await enterPodNetwork(cluster, from);
  const [program, ...words] = [...enter, process.execPath, "-e", ASK, server.status?.podIP ?? ""];
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "inherit"] });
  const answers: Answer[] = [];
  createInterface({ input: child.stdout }).on("line", (line) => answers.push(JSON.parse(line) as Answer));
  return { answers, [Symbol.dispose]: () => void child.kill("SIGKILL") };
}

/** Process ids of Veil's processes on some nodes that run a role, the oldest first. A proxy's supervisor is no process of its role's work. */
function processesOf(role: string, ...nodes: string[]): number[] {
  const found = nodes
    .flatMap((node) => clusterProcesses(node))
    .filter((pid) => commandOf(pid).includes(`/veil.js\0${role}\0`))
    .map((pid) => {
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
      return { pid, parent: Number(fields[1]), startTicks: Number(fields[19]) };
    })
    .toSorted((a, b) => a.startTicks - b.startTicks);
  const working = role === "proxy" ? found.filter(({ parent }) => found.some(({ pid }) => pid === parent)) : found;
  return working.map(({ pid }) => pid);
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return ""; // it has ended meanwhile
  }
}

interface Outage {
  readonly failed: number;
  readonly asked: number;
  /** Until none failed any more; 0 when none did. */
  readonly forMs: number;
}

/** What came of the connections that ended since then. */
function outageSince(fromMs: number, answers: readonly Answer[]): Outage {
  const since = answers.filter(({ endMs }) => endMs >= fromMs);
  const failed = since.filter(({ ok }) => !ok);
  const lastMs = Math.max(fromMs, ...failed.map(({ atMs }) => atMs));
  const served = since.filter(({ ok, atMs }) => ok && atMs > lastMs).map(({ endMs }) => endMs);
  return { failed: failed.length, forMs: failed.length === 0 ? 0 : Math.min(...served) - fromMs, asked: since.length };
}

async function measureKills(cluster: TestCluster): Promise<void> {
  const others = Array.from({ length: PODS - 2 }, (_, i) => ({ name: `pod${i}`, resources: {} }));
  const pair = ["client", "server"].map((name) => ({ name, resources: SURE }));
  await cluster.apply([
    ...[...pair, ...others].map((pod) => podOf({ ...pod, namespace: "shop", node: "node1", labels: { app: "many" } })),
    ...pair.map((pod) => podOf({ ...pod, namespace: "plain", node: "node1" })),
  ]);
  await cluster.readyPods("shop", "app=many", PODS);
  const asking = async (namespace: string): ReturnType<typeof startAsking> =>
    startAsking(cluster, await cluster.readyPod(namespace, "client"), await cluster.readyPod(namespace, "server"));
  using enrolled = await asking("shop");
  using plain = await asking("plain");
  const kills: readonly (readonly [string, () => void])[] = [
    ["nothing", () => {}],
    ["proxy", () => killFirst(processesOf("proxy", "node1"))],
    ["proxy, once more", () => killFirst(processesOf("proxy", "node1"))],
    ["agent", () => killFirst(processesOf("agent", "node1"))],
    ["one controller of two", () => killFirst(processesOf("controller", "node1", "node2"))],
  ];
  lines.push(
    "## kill -9",
    "",
    `${PODS} enrolled pods on a node; one of them opens a connection to another every 20 ms, 12 s from the kill on, and gives up after 3 s. At the same time a pod of the node that is not enrolled does so with another that is not.`,
    "",
    "| killed | connections that failed | until none failed any more, ms | failed of the pair that is not enrolled |",
    "|---|---|---|---|",
  );
  for (const [what, kill] of kills) {
    await eventually("answers", () => enrolled.answers.filter(({ ok }) => ok).length > 50 || undefined);
    const fromMs = Date.now();
    kill();
    await sleep(clock, 12_000);
    const [own, twin] = [outageSince(fromMs, enrolled.answers), outageSince(fromMs, plain.answers)];
    lines.push(
      `| ${what} | ${own.failed} of ${own.asked} | ${own.forMs.toFixed(0)} | ${twin.failed} of ${twin.asked} |`,
    );
    await rolledOut(cluster);
  }
  lines.push("", await newPodsWithoutController(cluster), "");
}

function killFirst([first]: readonly number[]): void {
  if (first === undefined) throw new Error("there is no such process");
  process.kill(first, "SIGKILL");
}

/** How long a labelled pod waits to be enrolled when a controller is killed at that moment. */
async function newPodsWithoutController(cluster: TestCluster): Promise<string> {
  killFirst(processesOf("controller", "node1", "node2"));
  const fromMs = performance.now();
  await cluster.apply([podOf({ namespace: "shop", name: "next", node: "node1" })]);
  await cluster.readyPod("shop", "next");
  const tookS = (performance.now() - fromMs) / 1000;
  return `A new enrolled pod whose creation follows the kill of a controller at once is ready after ${tookS.toFixed(1)} s.`;
}

const startMs = performance.now();
await using cluster = await startCluster();
const upMs = performance.now() - startMs;
await installVeil(cluster, { "agent.nodeSelector.kubernetes\\.io/hostname": "node1" });
const installedMs = performance.now() - startMs - upMs;
await cluster.apply(
  ["shop", "plain"].map((name) => ({
    apiVersion: "v1",
    kind: "Namespace",
    metadata: { name, labels: name === "shop" ? { "istio.io/dataplane-mode": "ambient" } : {} },
  })),
);
await eventually("the accounts", async () => {
  const { items } = await cluster.client.list(resources.serviceAccounts, { fieldSelector: "metadata.name=default" });
  return items.length >= 5 || undefined;
});
await measureKills(cluster);
const leaveMs = performance.now();
await helm(cluster, "uninstall", "veil", "--timeout", "15m");
const leftMs = performance.now() - leaveMs;
const text = `# On real kubelets

\`node --conditions=veil-source bench/kubernetes.ts --pods ${PODS}\`: Kubernetes 1.35.4, two kubelets, containerd and real pods on one machine. ${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end.

| | s |
|---|---|
| the cluster is up, once built | ${(upMs / 1000).toFixed(1)} |
| image made, brought to both nodes, \`helm install\`, everything ready | ${(installedMs / 1000).toFixed(1)} |
| \`helm uninstall\` with ${PODS} enrolled pods | ${(leftMs / 1000).toFixed(1)} |

${lines.join("\n")}`;
writeFileSync(join(import.meta.dirname, "results/kubernetes.md"), text);
process.stdout.write(text);
