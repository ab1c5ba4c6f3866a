/**
 * What Veil adds to a pod's start on a real kubelet: pods of a node without Veil, of one with it, and enrolled ones, one at a time and
 * in an order that is drawn anew in each round. All stay: a kubelet takes a pod's network down up to 2 s after the pod has gone from the
 * API, which would be in the middle of the next but one's start.
 *
 *     node --conditions=veil-source bench/pod-start.ts [--rounds 20]     (root; about two minutes)
 *
 * Brings up the test cluster (test/kubernetes) and installs the chart with agents and proxies on node1 alone. Writes
 * bench/results/pod-start.md.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { sleep, systemClock } from "#base/clock";
import { seededRandom } from "#base/random";
import { startCluster, type TestCluster } from "../test/kubernetes/cluster.ts";
import { BUSYBOX_IMAGE } from "../test/kubernetes/images.ts";
import { applySoon, namespaceOf, podOf } from "../test/kubernetes/mesh.ts";
import { installVeil } from "../test/kubernetes/veil.ts";
import { resources } from "#kube";
import { eventually } from "../test/netns/harness.ts";

const { values } = parseArgs({ options: { rounds: { type: "string", default: "20" } } });
const ROUNDS = Number(values.rounds);
/** What is still done for the pod before (its status, its address in all tables) is not to be measured with the next one's start. */
const REST_MS = 300;
const LOOK_MS = 150;
const clock = systemClock();
const random = seededRandom(1);

interface Row {
  readonly name: string;
  readonly namespace: string;
  readonly node: string;
  /** By the kubelet's own measurement. */
  readonly sandboxMs: number[];
  /** From the request that creates the pod to the first line of its first process. */
  readonly startMs: number[];
}

const rows: readonly Row[] = [
  { name: "a node without Veil", namespace: "plain", node: "node2", sandboxMs: [], startMs: [] },
  { name: "with it, the pod is not enrolled", namespace: "plain", node: "node1", sandboxMs: [], startMs: [] },
  { name: "with it, the pod is enrolled", namespace: "shop", node: "node1", sandboxMs: [], startMs: [] },
];

/** How long a kubelet has taken for the sandboxes of all its pods so far: their namespaces, and the CNI plugins. */
async function sandboxesMs(cluster: TestCluster, node: string): Promise<number> {
  const metrics = await cluster.kubectl("get", "--raw", `/api/v1/nodes/${node}/proxy/metrics`);
  const sum = /^kubelet_runtime_operations_duration_seconds_sum\{operation_type="run_podsandbox"\} (\S+)$/m;
  return 1000 * Number(sum.exec(metrics)?.[1]);
}

/** What that was after the node's last pod. */
const before = new Map<string, number>();

/** Milliseconds, of a text as /proc/uptime has it: in hundredths of a second. */
function uptimeMs(text: string): number {
  return 1000 * Number(text.split(" ")[0]);
}

async function start(cluster: TestCluster, { namespace, node, sandboxMs, startMs }: Row, name: string): Promise<void> {
  const { client } = cluster;
  const command = ["sh", "-c", "cat /proc/uptime; exec sleep 100000"];
  const pod = podOf({ namespace, name, node }, { image: BUSYBOX_IMAGE, command });
  await sleep(clock, REST_MS);
  const fromMs = uptimeMs(readFileSync("/proc/uptime", "utf8"));
  await client.create(resources.pods, pod);
  await eventually(`${name} to run`, async () => {
    await sleep(clock, LOOK_MS);
    return (await client.find(resources.pods, { namespace, name }))?.status?.phase === "Running" || undefined;
  });
  startMs.push(uptimeMs(await client.logs({ namespace, name })) - fromMs);
  const allMs = await sandboxesMs(cluster, node);
  sandboxMs.push(allMs - (before.get(node) ?? Number.NaN));
  before.set(node, allMs);
}

function shuffled<T>(all: readonly T[]): T[] {
  const left = [...all];
  return all.flatMap(() => left.splice(random.below(left.length), 1));
}

function quantile(numbers: readonly number[], share: number): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length * share)] ?? Number.NaN;
}

function table(figure: "sandboxMs" | "startMs"): string[] {
  const base = quantile(rows[0]?.[figure] ?? [], 0.5);
  return [
    "| | median, ms | 95 %, ms | added at the median, ms |",
    "|---|---|---|---|",
    ...rows.map((row) => {
      const figures = [quantile(row[figure], 0.5), quantile(row[figure], 0.95), quantile(row[figure], 0.5) - base];
      return `| ${row.name} | ${figures.map((ms) => ms.toFixed(0)).join(" | ")} |`;
    }),
    "",
  ];
}

await using cluster = await startCluster();
await installVeil(cluster, { "agent.nodeSelector.kubernetes\\.io/hostname": "node1" });
await cluster.apply([namespaceOf("plain", false), namespaceOf("shop", true)]);
await applySoon(
  cluster,
  ["node1", "node2"].map((node) => podOf({ namespace: node === "node1" ? "shop" : "plain", name: "first", node })),
);
for (const namespace of ["shop", "plain"]) await cluster.readyPod(namespace, "first");
for (const node of ["node1", "node2"]) before.set(node, await sandboxesMs(cluster, node));
for (let round = 0; round < ROUNDS; round++) {
  for (const row of shuffled(rows)) await start(cluster, row, `round${round}-${row.node}`);
}
const text = [
  "# What Veil adds to a pod's start",
  "",
  `\`node --conditions=veil-source bench/pod-start.ts --rounds ${ROUNDS}\`: Kubernetes 1.35.4, containerd and real pods, ${ROUNDS} of each kind, one at a time, in an order that is drawn anew in each round. The control plane, both nodes and all of Veil are on one machine: ${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end.`,
  "",
  "The kubelet's own measurement (`kubelet_runtime_operations_duration_seconds` of run_podsandbox): the pod's namespaces and all CNI plugins.",
  "",
  ...table("sandboxMs"),
  "From the request that creates the pod to its first process's first line, in hundredths of a second:",
  "",
  ...table("startMs"),
].join("\n");
writeFileSync(join(import.meta.dirname, "results/pod-start.md"), text);
process.stdout.write(text);
