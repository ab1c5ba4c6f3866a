/**
 * A table of 100,000 workloads beside the connections: latency of requests (1,000 a second, 16 kept connections) and of new
 * connections (100 a second) through the path, quiet, during full pushes of the whole table to both proxies, and during dumps of it
 * on both. Pushes come from agents in this process and dumps are read by it, which costs CPU on the same cores. The control of each
 * is the very same done to two other proxies of the same machine, which carry nothing: what differs is what a proxy's own
 * connections feel of its own table. All take turns, for some beats of a second each; a beat has its own p99, so that a pause of
 * the machine spoils one beat. Generators and application run at real-time priority: their waiting for the processor is no part of
 * the path. All four proxies get the greatest weight that a session can have, so that other load of the machine stays outside.
 *
 *     node --conditions=veil-source bench/table.ts [--workloads 100000] [--rounds 20] [--beats 2] [--out NAME]
 *
 * Needs root, nginx. With `--out NAME` writes bench/results/NAME.{md,json}.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { parseIp } from "#base/ip";
import type { Address, Workload } from "#model/workload";
import { Node, ProxyWorld } from "../test/netns/proxy-world.ts";
import { testService, testWorkload } from "../src/proxy/testing.ts";
import { APP_PORTS, startApps } from "./data-path/place.ts";
import { family, inside, memoryBytes, must, stopAll } from "./data-path/processes.ts";
import { Beats } from "./table/beats.ts";
import { tableOf, verdicts, type Comparison, type Measured } from "./table/report.ts";

const { values: flags } = parseArgs({
  options: {
    workloads: { type: "string", default: "100000" },
    rounds: { type: "string", default: "20" },
    beats: { type: "string", default: "2" },
    out: { type: "string", default: "" },
  },
});
const [count, rounds, beats] = [flags.workloads, flags.rounds, flags.beats].map(Number) as [number, number, number];
const ENDPOINTS_PER_SERVICE = 20;
/** Addresses that come at once. */
const PART = 2_000;
const RATE = 1_000;
const CONNECTIONS = 16;
const DIALS = 100;
const BEAT_MS = 1_000;
const REAL_TIME = ["chrt", "--fifo", "50"];

const services = Array.from({ length: Math.ceil(count / ENDPOINTS_PER_SERVICE) }, (_, i) =>
  testService(`service-${i}`, `10.96.${(i >> 8) & 255}.${i & 255}`, { namespace: `team-${i % 100}` }),
);

/** Workloads as a large cluster has them; `healthy` differs from push to push, so that each of them changes. */
function workloads(healthy: boolean): readonly Workload[] {
  return Array.from({ length: count }, (_, i) => {
    const service = services[i % services.length];
    const name = `service-${i % services.length}-7d9f8c6b5d-${i.toString(36).padStart(5, "0")}`;
    const ip = `10.${100 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`;
    const own = service === undefined ? {} : { [`${service.namespace}/${service.hostname}`]: service.ports };
    const more = { namespace: service?.namespace ?? "", services: own, addresses: [parseIp(ip)], healthy };
    return testWorkload(name, ip, { ...more, node: `node-${i % 2_000}` });
  });
}

const tables = [workloads(true), workloads(false)] as const;

const folder = mkdtempSync(join(tmpdir(), "vt-bench-"));
const world = await ProxyWorld.create();
const nodes = [world.a, world.b];
const others = ["c", "d"].map((name) => new Node(name, world));

const done = { pushed: 0, dumps: 0, dumpBytes: 0 };
let healthy = false;

/** Pushes addresses in parts, as an agent gets them from its controller, each when the last one is in force. */
async function push(node: Node, all: readonly Address[], signal?: AbortSignal): Promise<void> {
  for (let at = 0; at < all.length; at += PART) {
    if (signal?.aborted === true) return;
    const part = all.slice(at, at + PART);
    const revision = node.publish(part);
    await node.untilInForce(revision);
    done.pushed += part.length;
  }
}

/** Pushes the whole table to these, again and again. */
async function pushes(to: readonly Node[], signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    healthy = !healthy;
    const all = tables[healthy ? 0 : 1];
    await Promise.all(to.map(async (node) => push(node, all, signal)));
  }
}

/** Reads the whole table of these, again and again. */
async function dumps(from: readonly Node[], signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const texts = await Promise.all(from.map(async (node) => node.get(15_000, "/config_dump")));
    done.dumps += texts.length;
    done.dumpBytes = texts[0]?.length ?? 0;
  }
}

/** Something that is done beside the connections. */
interface Disturbance extends Measured {
  readonly disturb: (signal: AbortSignal) => Promise<void>;
}

function disturbance(name: string, disturb: Disturbance["disturb"]): Disturbance {
  return { name, disturb, requests: [], connections: [] };
}

const comparisons = [
  {
    name: "full pushes",
    control: disturbance("full pushes to two other proxies", async (signal) => pushes(others, signal)),
    own: disturbance("full pushes to both", async (signal) => pushes(nodes, signal)),
  },
  {
    name: "dumps",
    control: disturbance("dumps of two other proxies", async (signal) => dumps(others, signal)),
    own: disturbance("dumps of both", async (signal) => dumps(nodes, signal)),
  },
] satisfies readonly Comparison[];
const disturbances = [
  disturbance("nothing beside it", async () => {}),
  ...comparisons.flatMap(({ control, own }) => [control, own]),
];

/** Where the kernel weighs sessions, this one counts 88 times as much as others. */
function favour(pid: number): void {
  const file = `/proc/${pid}/autogroup`;
  if (existsSync(file)) writeFileSync(file, "-19");
}

/** Prints what was found, and keeps it where the flags say. Memory in MiB. */
function publish({ minutes, small, large }: { minutes: number; small: number; large: number }): void {
  const [command, machine] = [process.argv.slice(2).join(" "), `${cpus().length} cores (${cpus()[0]?.model.trim()})`];
  const text = [
    `# ${count.toLocaleString("en")} workloads in the table`,
    "",
    `\`node --conditions=veil-source bench/table.ts ${command}\`, ${machine}, Node ${process.version}, ${new Date().toISOString().slice(0, 10)}, ${minutes.toFixed(0)} min, load average ${(loadavg()[1] ?? 0).toFixed(0)}.`,
    `Microseconds, medians of ${rounds * beats} beats of a second each, all lines interleaved. ${done.pushed.toLocaleString("en")} addresses were pushed and ${done.dumps} dumps of ${(done.dumpBytes / 1e6).toFixed(0)} MB read meanwhile, own and others together.`,
    "",
    ...tableOf(disturbances),
    "",
    "What a proxy's connections feel of its own table: ratio to the control, median over the rounds and quartiles.",
    "",
    ...verdicts(comparisons),
    "",
    `Memory of both proxies together (PSS; supervisors, data paths, waiting processes): ${small.toFixed(0)} MiB with 2 workloads, ${large.toFixed(0)} MiB at the end.`,
    "",
  ].join("\n");
  process.stdout.write(text);
  if (flags.out === "") return;
  const file = (extension: string): string => join(import.meta.dirname, "results", `${flags.out}.${extension}`);
  writeFileSync(file("md"), text);
  writeFileSync(file("json"), `${JSON.stringify(disturbances)}\n`);
}

try {
  for (const { name } of others) must(["ip", "netns", "add", `vt-proxy-${process.pid}-${name}`]);
  for (const { name } of others) must(["ip", "-n", `vt-proxy-${process.pid}-${name}`, "link", "set", "lo", "up"]);
  for (const node of [...nodes, ...others]) {
    node.readsRecords = false;
    await node.startAgent();
  }
  const pods = [world.client, world.server];
  for (const pod of pods) await world.nodeOf(pod).certify(pod);
  world.publish(...pods);
  await Promise.all([...nodes, ...others].map(async (node) => node.startProxy()));
  for (const pod of pods) await world.enrol(pod);
  const pair = startApps({ world, folder }, world.client, world.server);
  await new Promise((resolve) => setTimeout(resolve, 6_000)); // the waiting processes have loaded
  const nginx = readFileSync(join(folder, "nginx-server/pid"), "utf8").trim();
  for (const pid of family(Number(nginx))) must(["chrt", "--fifo", "--pid", "50", String(pid)]);
  for (const pid of [...nodes, ...others].flatMap((node) => family(node.proxyPid))) favour(pid);
  const proxies = (): number => memoryBytes(nodes.map((node) => node.proxyPid)) / (1 << 20);
  const small = proxies();
  for (const node of [...nodes, ...others]) await push(node, [...services, ...tables[1]]);
  done.pushed = 0;
  const load = (...words: readonly (string | number)[]): Beats => {
    const [kind = "", ...numbers] = words.map(String);
    const program = [process.execPath, new URL("data-path/load.ts", import.meta.url).pathname, kind];
    return new Beats([
      ...REAL_TIME,
      ...inside(pair.clientNetns),
      ...program,
      pair.serverIp,
      String(APP_PORTS.http),
      ...numbers,
    ]);
  };
  const generators = [load("beats", CONNECTIONS, RATE, BEAT_MS), load("dials", DIALS, BEAT_MS)] as const;
  await Promise.all(generators.map(async (generator) => generator.take(3)));
  const startMs = performance.now();
  for (let round = 0; round < rounds; round++) {
    // Own and control take turns in who comes first.
    for (const one of round % 2 === 0 ? disturbances : disturbances.toReversed()) {
      const stop = new AbortController();
      const disturbed = one.disturb(stop.signal);
      const [requests, connections] = await Promise.all(generators.map(async (generator) => generator.take(beats)));
      stop.abort();
      await disturbed;
      one.requests.push(requests ?? []);
      one.connections.push(connections ?? []);
      process.stderr.write(`${round + 1}/${rounds} ${one.name}: ${JSON.stringify([requests, connections])}\n`);
    }
  }
  for (const generator of generators) generator.stop();
  publish({ minutes: (performance.now() - startMs) / 60_000, small, large: proxies() });
} finally {
  stopAll();
  for (const node of others) await node[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
}
