/**
 * Veil on real kubelets: what the CNI plugin adds to a pod's start, and what a kill of a proxy or of a controller costs.
 *
 *     node --conditions=veil-source bench/kubernetes.ts [--rounds 20] [--pods 30]     (root; takes about ten minutes)
 *
 * Brings up the test cluster (test/kubernetes) and installs the chart with agents and proxies on node1 alone: node2 is a node without
 * Veil. Writes bench/results/kubernetes.md.
 */
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { sleep, systemClock } from "#base/clock";
import { resources } from "#kube";
import { clusterProcesses } from "../test/kubernetes/cgroups.ts";
import { startCluster, type TestCluster } from "../test/kubernetes/cluster.ts";
import { BUSYBOX_IMAGE } from "../test/kubernetes/images.ts";
import { helm, installVeil, rolledOut } from "../test/kubernetes/veil.ts";
import { eventually } from "../test/netns/harness.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "20" }, pods: { type: "string", default: "30" } },
});
const ROUNDS = Number(values.rounds);
const PODS = Number(values.pods);
const clock = systemClock();
const lines: string[] = [];

function podOf(place: { namespace: string; name: string; node: string; labels?: Record<string, string> }): object {
  const { namespace, name, node, labels = {} } = place;
  const command = ["sh", "-c", "mkdir /www; echo ok >/www/index.html; exec httpd -f -p 8080 -h /www"];
  const spec = {
    nodeName: node,
    terminationGracePeriodSeconds: 0,
    containers: [{ name: "main", image: BUSYBOX_IMAGE, command }],
  };
  return { apiVersion: "v1", kind: "Pod", metadata: { namespace, name, labels }, spec };
}

function quantile(numbers: readonly number[], share: number): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length * share)] ?? Number.NaN;
}

/** How long a kubelet has taken for the sandboxes of all its pods so far: their namespaces, and the CNI plugins. */
async function sandboxMs(cluster: TestCluster, node: string): Promise<number> {
  const metrics = await cluster.kubectl("get", "--raw", `/api/v1/nodes/${node}/proxy/metrics`);
  const sum = /^kubelet_runtime_operations_duration_seconds_sum\{operation_type="run_podsandbox"\} (\S+)$/m;
  return 1000 * Number(sum.exec(metrics)?.[1]);
}

interface Row {
  readonly name: string;
  readonly namespace: string;
  readonly node: string;
  readonly tookMs: number[];
}

async function measureStarts(cluster: TestCluster): Promise<void> {
  const rows: readonly Row[] = [
    { name: "a node without Veil", namespace: "plain", node: "node2", tookMs: [] },
    { name: "with it, the pod is not enrolled", namespace: "plain", node: "node1", tookMs: [] },
    { name: "with it, the pod is enrolled", namespace: "shop", node: "node1", tookMs: [] },
  ];
  for (let round = 0; round < ROUNDS; round++) {
    for (const { namespace, node, tookMs } of rows) {
      const beforeMs = await sandboxMs(cluster, node);
      const name = `round${round}-${node}`;
      await cluster.apply([podOf({ namespace, name, node })]);
      await cluster.readyPod(namespace, name);
      tookMs.push((await sandboxMs(cluster, node)) - beforeMs);
      await cluster.kubectl("-n", namespace, "delete", "pod", name, "--wait");
    }
  }
  const base = rows[0]?.tookMs ?? [];
  lines.push(
    "## A pod's start",
    "",
    `The kubelet's own measurement (\`kubelet_runtime_operations_duration_seconds\` of run_podsandbox) of ${ROUNDS} pods each, one at a time, in turns: the pod's namespaces and all CNI plugins.`,
    "",
    "| | median, ms | 95 %, ms | added at the median, ms |",
    "|---|---|---|---|",
    ...rows.map(({ name, tookMs }) => {
      const figures = [quantile(tookMs, 0.5), quantile(tookMs, 0.95), quantile(tookMs, 0.5) - quantile(base, 0.5)];
      return `| ${name} | ${figures.map((ms) => ms.toFixed(0)).join(" | ")} |`;
    }),
    "",
  );
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

/** Asks a server from a pod's network. */
async function startAsking(
  cluster: TestCluster,
  from: string,
  server: string,
): Promise<{ answers: Answer[] } & Disposable> {
  const find = `for netns in /run/netns/*; do nsenter --net=$netns ip -4 -o addr | grep -q ' ${from}/' && echo $netns; done`;
  const { stdout } = await cluster.execNode("node1", "sh", "-c", find);
  const enter = [...cluster.node("node1").enter, "nsenter", `--net=${stdout.trim()}`, "--"];
  const [program, ...words] = [...enter, process.execPath, "-e", ASK, server];
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "inherit"] });
  const answers: Answer[] = [];
  let rest = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const whole = `${rest}${text}`.split("\n");
    rest = whole.pop() ?? "";
    answers.push(...whole.map((line) => JSON.parse(line) as Answer));
  });
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

/** Kills, and answers how long new connections failed and how many did; 0 when none. */
async function outage(answers: Answer[], kill: () => void): Promise<{ failed: number; forMs: number; asked: number }> {
  await eventually("answers", () => answers.filter(({ ok }) => ok).length > 50 || undefined);
  const fromMs = Date.now();
  kill();
  await sleep(clock, 12_000);
  const since = answers.filter(({ endMs }) => endMs >= fromMs);
  const failed = since.filter(({ ok }) => !ok);
  const lastMs = Math.max(fromMs, ...failed.map(({ atMs }) => atMs));
  const served = since.filter(({ ok, atMs }) => ok && atMs > lastMs).map(({ endMs }) => endMs);
  return { failed: failed.length, forMs: failed.length === 0 ? 0 : Math.min(...served) - fromMs, asked: since.length };
}

async function measureKills(cluster: TestCluster): Promise<void> {
  const names = Array.from({ length: PODS }, (_, i) => `pod${i}`);
  await cluster.apply(names.map((name) => podOf({ namespace: "shop", name, node: "node1", labels: { app: "many" } })));
  const pods = await cluster.readyPods("shop", "app=many", PODS);
  const [client = "", server = ""] = pods.map(({ status }) => status?.podIP ?? "");
  using asking = await startAsking(cluster, client, server);
  const { answers } = asking;
  const kills: readonly (readonly [string, () => void])[] = [
    ["proxy", () => killFirst(processesOf("proxy", "node1"))],
    ["proxy, once more", () => killFirst(processesOf("proxy", "node1"))],
    ["agent", () => killFirst(processesOf("agent", "node1"))],
    ["one controller of two", () => killFirst(processesOf("controller", "node1", "node2"))],
  ];
  lines.push(
    "## kill -9",
    "",
    `${PODS} enrolled pods on a node; one of them opens a connection to another every 20 ms, 12 s from the kill on.`,
    "",
    "| killed | connections that failed | until none failed any more, ms |",
    "|---|---|---|",
  );
  for (const [what, kill] of kills) {
    const { failed, forMs, asked } = await outage(answers, kill);
    lines.push(`| ${what} | ${failed} of ${asked} | ${forMs.toFixed(0)} |`);
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
await measureStarts(cluster);
await measureKills(cluster);
const leaveMs = performance.now();
await helm(cluster, "uninstall", "veil", "--timeout", "15m");
const leftMs = performance.now() - leaveMs;
const text = `# On real kubelets

\`node --conditions=veil-source bench/kubernetes.ts --rounds ${ROUNDS} --pods ${PODS}\`: Kubernetes 1.35.4, two kubelets, containerd and real pods on one machine. ${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end.

| | s |
|---|---|
| the cluster is up, once built | ${(upMs / 1000).toFixed(1)} |
| image made, brought to both nodes, \`helm install\`, everything ready | ${(installedMs / 1000).toFixed(1)} |
| \`helm uninstall\` with ${PODS} enrolled pods | ${(leftMs / 1000).toFixed(1)} |

${lines.join("\n")}`;
writeFileSync(join(import.meta.dirname, "results/kubernetes.md"), text);
process.stdout.write(text);
