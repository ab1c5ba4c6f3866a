/**
 * What Veil's plugin adds to a pod's start: a chain of Debian's bridge and host-local with it and without it, in turns, each driven by
 * the CNI project's own tool, with a real proxy on the node.
 *
 *     node --conditions=veil-source bench/cni.ts [--rounds 40]     (root)
 *
 * Writes bench/results/cni.md.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { CniWorld, type Chain } from "../test/netns/cni-world.ts";
import { cpuTicks } from "../test/netns/proxy-world.ts";

const { values } = parseArgs({ options: { rounds: { type: "string", default: "40" } } });
const ENROLLED = { "io.cilium/mtls-enabled": "true" };

interface Row {
  readonly name: string;
  readonly chain: Chain;
  readonly labels: Readonly<Record<string, string>>;
  readonly tookMs: number[];
  readonly cpuMs: number[];
}

const rows: readonly Row[] = [
  { name: "without the plugin", chain: "without", labels: {}, tookMs: [], cpuMs: [] },
  { name: "with it, the pod is not enrolled", chain: "with", labels: {}, tookMs: [], cpuMs: [] },
  { name: "with it, the pod is enrolled", chain: "with", labels: ENROLLED, tookMs: [], cpuMs: [] },
];

/** Processor time so far of the agent (this process), of all that it started and that has ended, and of the node's proxy. */
function cpuMs(world: CniWorld): number {
  const { user, system } = process.cpuUsage();
  const fields = readFileSync("/proc/self/stat", "utf8").split(") ")[1]?.split(" ") ?? [];
  const childTicks = Number(fields[13]) + Number(fields[14]);
  return (user + system) / 1000 + 10 * (childTicks + cpuTicks(world.proxies.a.dataPathPid));
}

/** Starts one pod. */
async function start(world: CniWorld, row: Row): Promise<void> {
  const { chain, labels } = row;
  await world.makeStarting(labels);
  const before = cpuMs(world);
  const startMs = performance.now();
  const { code, stderr } = await world.cni("add", chain);
  if (code !== 0) throw new Error(stderr);
  row.tookMs.push(performance.now() - startMs);
  row.cpuMs.push(cpuMs(world) - before);
  await world.removeStarting();
}

function quantile(numbers: readonly number[], share: number): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length * share)] ?? Number.NaN;
}

/** By how much each round's ADD was longer than that of the same round without the plugin. */
function added({ tookMs }: Row): number[] {
  return tookMs.map((ms, round) => ms - (rows[0]?.tookMs[round] ?? 0));
}

await using world = await CniWorld.create();
for (let round = 0; round < Number(values.rounds); round++) {
  for (const row of rows) await start(world, row);
}
const lines = rows.map((row) => {
  const cpu = row.cpuMs.reduce((sum, ms) => sum + ms, 0) / row.cpuMs.length;
  const figures = [quantile(row.tookMs, 0.5), quantile(row.tookMs, 0.95), quantile(added(row), 0.5), cpu];
  return `| ${row.name} | ${figures.map((ms) => ms.toFixed(1)).join(" | ")} |`;
});
const where = `${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end`;
const text = `# What the CNI plugin adds to a pod's start

\`node --conditions=veil-source bench/cni.ts --rounds ${values.rounds}\`: ADD of a chain of Debian's bridge and host-local by cnitool, the three in turns. ${where}.
"Added" is the median of the differences to the same round without the plugin; CPU is the mean of everything: tool, plugins, agent and proxy.

| | median, ms | 95 %, ms | added, ms | CPU, ms |
|---|---|---|---|---|
${lines.join("\n")}
`;
writeFileSync(join(import.meta.dirname, "results/cni.md"), text);
process.stdout.write(text);
