/**
 * A long mixed load through the proxies of two nodes, and what it leaves behind: memory, descriptors, records.
 *
 *     node --conditions=veil-source bench/soak.ts [--minutes 60] [--rate 30] [--long 40] [--bulk 2] [--idle 200]     (root)
 *
 * Two enrolled clients, one on either node, call one server: long connections that talk, a few that move 2 MB/s, idle ones, and
 * `rate` new connections a second; both ends check every byte. Every 15 s the memory (pages that a process alone has written) and the
 * descriptors of each proxy and agent are read. At the end every connection of the clients must have one record at each proxy that it passed.
 * Writes bench/results/soak.md and .json.
 */
import { readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { resources } from "#kube";
import type { LabStatus } from "#lab";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import { family } from "./data-path/processes.ts";
import { must, startLab, VEIL, type TestLab } from "../test/netns/harness.ts";
import {
  buildScene,
  enrolled,
  enterPod,
  label,
  LOAD_PORT,
  PROPAGATION_BOUND_MS,
  runLoad,
  type LoadResult,
} from "../test/netns/mesh.ts";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    rate: { type: "string", default: "30" },
    long: { type: "string", default: "40" },
    bulk: { type: "string", default: "2" },
    idle: { type: "string", default: "200" },
  },
});
const SECONDS = Number(values.minutes) * 60;
const SAMPLE_MS = 15_000;
/** This part of the run is warm-up: it does not count for the slope. */
const WARM_UP = 0.25;
const LONG = { long: values.long, bulk: values.bulk, idle: values.idle };

interface Sample {
  readonly minute: number;
  /** By `role node`: private dirty memory in KiB, and descriptors, of the process and its children. */
  readonly parts: Readonly<Record<string, { dirtyKib: number; descriptors: number }>>;
}

function measure(pid: number): { dirtyKib: number; descriptors: number } {
  const processes = family(pid);
  const dirty = (one: number): number =>
    Number(/^Private_Dirty:\s+(\d+)/m.exec(readFileSync(`/proc/${one}/smaps_rollup`, "utf8"))?.[1]);
  return {
    dirtyKib: processes.reduce((sum, one) => sum + dirty(one), 0),
    descriptors: processes.reduce((sum, one) => sum + readdirSync(`/proc/${one}/fd`).length, 0),
  };
}

/** Pids of the node's roles; they must not change, or something was restarted. */
async function watched(lab: TestLab): Promise<Map<string, number>> {
  const status = JSON.parse(await must([VEIL, "lab", "status", "--name", lab.name, "-o", "json"])) as LabStatus;
  const found = status.nodes.flatMap(({ name, roles }) => roles.map(({ role, pid }) => [`${role} ${name}`, pid ?? 0]));
  return new Map(found.filter(([part]) => /^(proxy|agent|controller) /.test(String(part))) as [string, number][]);
}

/** The proxy's log under another name: the kubelet of the lab empties a long one, and every record is to be counted. */
async function keepLog(lab: TestLab, node: string): Promise<string> {
  const pods = await lab.client.list(resources.pods, { namespace: "veil-system", labelSelector: "app=ztunnel" });
  const uid = pods.items.find(({ spec }) => spec?.nodeName === node)?.metadata?.uid ?? "?";
  const files = readdirSync(lab.layout.folder, { recursive: true, encoding: "utf8" });
  const file = files.find((path) => path.includes(uid) && path.endsWith(".log"));
  if (file === undefined) throw new Error(`no log of the proxy of ${node}`);
  const kept = join(lab.layout.folder, `${node}-records`);
  renameSync(join(lab.layout.folder, file), kept);
  return kept;
}

function recordsIn(file: string): FlowRecord[] {
  const lines = readFileSync(file, "utf8").split("\n");
  return lines.flatMap((line) => findAccessRecord(line) ?? []);
}

/** Least squares: units a minute. */
function slope(points: readonly (readonly [number, number])[]): number {
  const mean = (pick: (point: readonly [number, number]) => number): number =>
    points.reduce((sum, point) => sum + pick(point), 0) / points.length;
  const [x, y] = [mean(([at]) => at), mean(([, value]) => value)];
  const up = points.reduce((sum, [at, value]) => sum + (at - x) * (value - y), 0);
  return up / points.reduce((sum, [at]) => sum + (at - x) ** 2, 0);
}

async function sample(lab: TestLab, samples: Sample[], signal: AbortSignal): Promise<void> {
  const pids = await watched(lab);
  const startMs = performance.now();
  while (!signal.aborted) {
    const minute = (performance.now() - startMs) / 60_000;
    const parts = Object.fromEntries([...pids].map(([part, pid]) => [part, measure(pid)]));
    samples.push({ minute, parts });
    const line = Object.entries(parts).map(
      ([part, { dirtyKib, descriptors }]) => `${part} ${dirtyKib >> 10} MiB ${descriptors} fd`,
    );
    process.stderr.write(`${minute.toFixed(1)} min  ${line.join("  ")}\n`);
    await wait(SAMPLE_MS, undefined, { signal }).catch(() => undefined);
  }
}

interface Count {
  readonly where: string;
  readonly expected: number;
  readonly found: number;
}

interface SoakResult {
  readonly samples: Sample[];
  readonly loads: LoadResult[];
  readonly counts: Count[];
  /** How often each end was recorded that is not a plain success. */
  readonly reasons: Readonly<Record<string, number>>;
}

function reasonsOf(records: readonly FlowRecord[], clients: readonly string[]): Record<string, number> {
  const reasons: Record<string, number> = {};
  for (const { direction, verdict, reason, detail, source } of records) {
    if (reason === "ok" || !clients.some((ip) => source.address.startsWith(ip))) continue;
    const key = `${direction} ${verdict} ${reason} ${detail}`.replaceAll(/\d+\.\d+\.\d+\.\d+(:\d+)?/g, "IP");
    reasons[key] = (reasons[key] ?? 0) + 1;
  }
  return reasons;
}

async function soak(lab: TestLab): Promise<SoakResult> {
  const scene = await buildScene(lab, "soak");
  await label(lab, scene.namespaces, true);
  await enrolled(lab, scene.namespaces, true);
  await wait(PROPAGATION_BOUND_MS);
  const logs = { node1: await keepLog(lab, "node1"), node2: await keepLog(lab, "node2") };
  const words = Object.entries({ ...LONG, rate: Number(values.rate), seconds: SECONDS });
  const samples: Sample[] = [];
  const end = new AbortController();
  const sampling = sample(lab, samples, end.signal);
  const loads = await Promise.all(
    [scene.far, scene.near].map(async (pod) =>
      runLoad(
        await enterPod(lab, pod),
        scene.server,
        words.flatMap(([key, value]) => [`--${key}`, String(value)]),
      ),
    ),
  );
  await wait(2 * SAMPLE_MS); // what is left when all has ended
  end.abort();
  await sampling;
  const target = `${scene.server.status?.podIP}:${LOAD_PORT}`;
  const records = { node1: recordsIn(logs.node1), node2: recordsIn(logs.node2) };
  const count = (
    where: string,
    node: "node1" | "node2",
    load: { pod: typeof scene.far; result: LoadResult | undefined },
  ): Count => {
    const [direction] = where.split(" ");
    const from = `${load.pod.status?.podIP}:`;
    const found = records[node].filter(
      (record) =>
        record.direction === direction &&
        record.source.address.startsWith(from) &&
        [record.destination.address, record.destination.hboneTarget].includes(target),
    );
    return { where, expected: (load.result?.short.tried ?? 0) + (load.result?.long.opened ?? 0), found: found.length };
  };
  const [far, near] = [
    { pod: scene.far, result: loads[0] },
    { pod: scene.near, result: loads[1] },
  ];
  const counts = [
    count("outbound node1 (far)", "node1", far),
    count("inbound node2 (far)", "node2", far),
    count("outbound node2 (near)", "node2", near),
    count("inbound node2 (near)", "node2", near),
  ];
  const clients = [scene.far, scene.near].map((pod) => `${pod.status?.podIP}:`);
  return { samples, loads, counts, reasons: reasonsOf([...records.node1, ...records.node2], clients) };
}

function report(result: SoakResult): string {
  const { samples, loads, counts, reasons } = result;
  const talking = samples.filter(({ minute }) => minute > (SECONDS / 60) * WARM_UP && minute < SECONDS / 60 - 0.25);
  const rows = Object.keys(samples[0]?.parts ?? {}).map((part) => {
    const points = talking.map(({ minute, parts }) => [minute, parts[part]?.dirtyKib ?? 0] as const);
    const fds = talking.map(({ parts }) => parts[part]?.descriptors ?? 0);
    const at = (index: number): string => {
      const found = samples.at(index)?.parts[part];
      return `${((found?.dirtyKib ?? 0) / 1024).toFixed(0)} MiB, ${found?.descriptors}`;
    };
    return `| ${part} | ${at(0)} | ${((points[0]?.[1] ?? 0) / 1024).toFixed(0)} → ${((points.at(-1)?.[1] ?? 0) / 1024).toFixed(0)} MiB | ${slope(points).toFixed(1)} | ${Math.min(...fds)}–${Math.max(...fds)} | ${at(-1)} |`;
  });
  const short = loads.reduce((sum, load) => sum + load.short.done, 0);
  const bytes = loads.reduce((sum, load) => sum + load.long.bytes, 0);
  return [
    "# Soak",
    "",
    `\`node --conditions=veil-source bench/soak.ts --minutes ${values.minutes} --rate ${values.rate} --long ${LONG.long} --bulk ${LONG.bulk} --idle ${LONG.idle}\`: two clients, each ${LONG.long} talking, ${LONG.bulk} bulk and ${LONG.idle} idle connections and ${values.rate} new ones a second.`,
    "",
    `New connections done: ${short}. Bytes back on long ones: ${(bytes / 1e9).toFixed(1)} GB, all checked. Failures: ${JSON.stringify(loads.map(({ failures }) => failures))}, corrupt: ${loads.map(({ corrupt }) => corrupt).join(", ")}.`,
    "",
    "| process (with its children) | at the start: memory, descriptors | memory after warm-up → end | slope, KiB a minute | descriptors under load | 15 s after the load |",
    "|---|---|---|---|---|---|",
    ...rows,
    "",
    "| records | connections made | records found |",
    "|---|---|---|",
    ...counts.map(({ where, expected, found }) => `| ${where} | ${expected} | ${found} |`),
    "",
    `Ends that were recorded as anything but a plain success: ${JSON.stringify(reasons)}.`,
    "",
  ].join("\n");
}

const lab = await startLab("soak");
try {
  const result = await soak(lab);
  const text = report(result);
  const base = new URL("results/soak", import.meta.url).pathname;
  writeFileSync(`${base}.json`, `${JSON.stringify(result)}\n`);
  writeFileSync(`${base}.md`, text);
  process.stdout.write(text);
} finally {
  await lab[Symbol.asyncDispose]();
}
