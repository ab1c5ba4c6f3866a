/**
 * A long mixed load through the proxies of two nodes, and what it leaves behind: memory, descriptors, records.
 *
 *     node --conditions=veil-source bench/soak.ts [--minutes 60] [--rate 30] [--long 40] [--bulk 2] [--idle 200] [--out soak]     (root)
 *
 * Two enrolled clients, one on either node, call one server: long connections that talk, a few that move 2 MB/s, idle ones, and
 * `rate` new connections a second; both ends check every byte. Every 15 s the memory (pages that a process alone has written) and the
 * descriptors of each proxy and agent are read. The garbage of proxies, agents and controller is collected once in the warm-up and once near
 * the end: what their heaps hold more than the first time is kept by somebody. At the end every connection of the clients must have one record at each proxy that it
 * passed. Writes bench/results/OUT.md and .json, also every few minutes on the way.
 */
import { readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { resources } from "#kube";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import { startLab, type TestLab } from "../test/netns/harness.ts";
import {
  buildScene,
  enrolled,
  label,
  labMesh,
  LOAD_PORT,
  PROPAGATION_BOUND_MS,
  runLoad,
  type LoadResult,
  type Mesh,
  type Scene,
} from "../test/netns/mesh.ts";
import { formatReport, type Count, type Soak } from "./soak/report.ts";
import { collectGarbage, look, watched, type Sample } from "./soak/watch.ts";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    rate: { type: "string", default: "30" },
    long: { type: "string", default: "40" },
    bulk: { type: "string", default: "2" },
    idle: { type: "string", default: "200" },
    out: { type: "string", default: "soak" },
  },
});
const { out, minutes, ...LOAD } = values;
const MINUTES = Number(minutes);
const SAMPLE_MS = 15_000;
/** Results are written every so many samples. */
const SAVE_EVERY = 8;
/** This part of the run is warm-up: it does not count for the slope. In its first quarter garbage is collected, from where heaps grow to their rest. */
const WARM_UP = 0.5;
/** Garbage is collected so long before the end of the load. */
const LAST_COLLECTION_MINUTES = 1;
const RESULTS = join(import.meta.dirname, "results", out);

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

function save(soak: Soak): string {
  const text = formatReport(soak);
  writeFileSync(`${RESULTS}.json`, `${JSON.stringify(soak)}\n`);
  writeFileSync(`${RESULTS}.md`, text);
  return text;
}

/** Looks at the processes until the end, and has garbage collected twice. */
async function observe(lab: TestLab, soak: Soak, signal: AbortSignal): Promise<void> {
  const pids = await watched(lab);
  const startMs = performance.now();
  const minute = (): number => (performance.now() - startMs) / 60_000;
  const due = [(MINUTES * WARM_UP) / 4, MINUTES - LAST_COLLECTION_MINUTES];
  while (!signal.aborted) {
    const sample: Sample = { minute: minute(), uses: look(pids) };
    soak.samples.push(sample);
    const line = Object.entries(sample.uses).map(([name, use]) => `${name} ${(use.dirtyKib / 1024).toFixed(1)}`);
    process.stderr.write(`${sample.minute.toFixed(1)} min, MiB: ${line.join("; ")}\n`);
    if (sample.minute >= (due[0] ?? Infinity)) {
      due.shift();
      soak.heaps.push({ minute: minute(), usedKib: await collectGarbage(pids) });
    }
    if (soak.samples.length % SAVE_EVERY === 0) save(soak);
    await wait(SAMPLE_MS, undefined, { signal }).catch(() => undefined);
  }
}

/** How often each end was recorded that is not a plain success, and in which minutes. */
function reasonsOf(records: readonly FlowRecord[], startMs: number): Soak["reasons"] {
  const reasons: Soak["reasons"] = {};
  for (const { direction, verdict, reason, detail, timeMs } of records) {
    if (reason === "ok") continue;
    const key = `${direction} ${verdict} ${reason} ${detail}`.replaceAll(/\d+\.\d+\.\d+\.\d+(:\d+)?/g, "IP");
    const minute = Math.floor((timeMs - startMs) / 60_000);
    const known = (reasons[key] ??= { count: 0, minutes: [] });
    known.count++;
    if (!known.minutes.includes(minute)) known.minutes.push(minute);
  }
  return reasons;
}

async function load(mesh: Mesh, scene: Scene): Promise<LoadResult[]> {
  const words = Object.entries({ ...LOAD, seconds: MINUTES * 60 }).flatMap(([key, value]) => [
    `--${key}`,
    String(value),
  ]);
  const pods = [scene.far, scene.near];
  return Promise.all(pods.map(async (pod) => runLoad(await mesh.enterPod(pod), scene.server, words)));
}

/** Connections that were made, and their records at each proxy on their way. */
function countRecords(
  scene: Scene,
  loads: readonly LoadResult[],
  records: Readonly<Record<"node1" | "node2", readonly FlowRecord[]>>,
): Count[] {
  const target = `${scene.server.status?.podIP}:${LOAD_PORT}`;
  const ways = [
    { client: "far", direction: "outbound", node: "node1" },
    { client: "far", direction: "inbound", node: "node2" },
    { client: "near", direction: "outbound", node: "node2" },
    { client: "near", direction: "inbound", node: "node2" },
  ] as const;
  return ways.map(({ client, direction, node }) => {
    const from = `${scene[client].status?.podIP}:`;
    const result = loads[client === "far" ? 0 : 1];
    const found = records[node].filter(
      (record) =>
        record.direction === direction &&
        record.source.address.startsWith(from) &&
        [record.destination.address, record.destination.hboneTarget].includes(target),
    );
    return {
      where: `${direction} ${node} (${client})`,
      expected: (result?.short.tried ?? 0) + (result?.long.opened ?? 0),
      found: found.length,
    };
  });
}

async function run(lab: TestLab): Promise<Soak> {
  const mesh = labMesh(lab);
  const scene = await buildScene(mesh, "soak");
  await label(mesh, scene.namespaces, true);
  await enrolled(mesh, scene.namespaces, true);
  await wait(PROPAGATION_BOUND_MS);
  const logs = { node1: await keepLog(lab, "node1"), node2: await keepLog(lab, "node2") };
  const soak: Soak = {
    load: LOAD,
    minutes: MINUTES,
    warmUp: WARM_UP * MINUTES,
    samples: [],
    heaps: [],
    reasons: {},
  };
  const end = new AbortController();
  const startMs = Date.now();
  const observing = observe(lab, soak, end.signal);
  const [loads] = await Promise.all([
    load(mesh, scene).then(async (results) => {
      await wait(2 * SAMPLE_MS); // what is left when all has ended
      end.abort();
      return results;
    }),
    observing,
  ]);
  const records = { node1: recordsIn(logs.node1), node2: recordsIn(logs.node2) };
  const clients = [scene.far, scene.near].map((pod) => `${pod.status?.podIP}:`);
  const own = [...records.node1, ...records.node2].filter(({ source }) =>
    clients.some((client) => source.address.startsWith(client)),
  );
  return { ...soak, loads, counts: countRecords(scene, loads, records), reasons: reasonsOf(own, startMs) };
}

const lab = await startLab("soak");
try {
  process.stdout.write(save(await run(lab)));
} finally {
  await lab[Symbol.asyncDispose]();
}
