/**
 * A table of 100,000 workloads beside the connections: latency of requests (1,000 a second, 16 kept connections) and of new connections
 * (one at a time) through the path, quiet, during full pushes of the whole table to both proxies, and during dumps of it on both.
 * Pushes come from agents in this process and dumps are read by it, which costs CPU on the same cores. The control of each is
 * the very same done to two other proxies of the same machine, which carry nothing: what differs is what a proxy's own
 * connections feel of its own table. Generators and application run at real-time priority: their waiting for the processor is
 * no part of the path.
 *
 *     node --conditions=veil-source bench/table.ts [--workloads 100000] [--runs 5] [--seconds 6] [--out NAME]
 *
 * Needs root, wrk, nginx. With `--out NAME` writes bench/results/NAME.{md,json}.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { parseIp } from "#base/ip";
import type { Address, Workload } from "#model/workload";
import { Node, ProxyWorld } from "../test/netns/proxy-world.ts";
import { testService, testWorkload } from "../src/proxy/testing.ts";
import { APP_PORTS, startApps, type Pair } from "./data-path/place.ts";
import { family, inside, memoryBytes, must, run, stopAll } from "./data-path/processes.ts";

const { values: flags } = parseArgs({
  options: {
    workloads: { type: "string", default: "100000" },
    runs: { type: "string", default: "5" },
    seconds: { type: "string", default: "6" },
    out: { type: "string", default: "" },
  },
});
const [count, runs, seconds] = [flags.workloads, flags.runs, flags.seconds].map(Number) as [number, number, number];
const ENDPOINTS_PER_SERVICE = 20;
/** Addresses that come at once. */
const PART = 2_000;
const RATE = 1_000;
const CONNECTIONS = 16;
const REAL_TIME = ["chrt", "--fifo", "1"];

/** Figures in microseconds. */
interface Figures {
  readonly requestP50: number;
  readonly requestP99: number;
  readonly connectionP50: number;
  readonly connectionP99: number;
}

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

const folder = mkdtempSync(join(tmpdir(), "vt-bench-"));
const world = await ProxyWorld.create();
const nodes = [world.a, world.b];
const others = ["c", "d"].map((name) => new Node(name, world));

/** Latency of requests, then of new connections; `disturb` runs beside each. */
async function measure(pair: Pair, disturb: (signal: AbortSignal) => Promise<void>): Promise<Figures> {
  const beside = async (command: readonly string[]): Promise<string> => {
    const stop = new AbortController();
    const disturbed = disturb(stop.signal);
    const text = await run([...inside(pair.clientNetns), ...command]);
    stop.abort();
    await disturbed;
    return text;
  };
  const load = [...REAL_TIME, process.execPath, new URL("data-path/load.ts", import.meta.url).pathname, "rate"];
  const numbers = [pair.serverIp, APP_PORTS.http, CONNECTIONS, RATE, seconds].map(String);
  const requests = JSON.parse(await beside([...load, ...numbers])) as { p50: number; p99: number }; // of load.ts
  const url = `http://${pair.serverIp}:${APP_PORTS.http}/`;
  const wrk = ["wrk", "-t", "1", "-c", "1", "-d", `${seconds}s`, "--latency", "-H", "Connection: close", url];
  const text = await beside([...REAL_TIME, ...wrk]);
  return {
    requestP50: requests.p50,
    requestP99: requests.p99,
    connectionP50: percentile(text, 50),
    connectionP99: percentile(text, 99),
  };
}

/** Microseconds, of what wrk says. */
function percentile(text: string, percent: number): number {
  const [, number = "", unit = ""] = new RegExp(`\\n\\s+${percent}%\\s+([\\d.]+)(us|ms|s)`).exec(text) ?? [];
  return Number(number) * (unit === "us" ? 1 : unit === "ms" ? 1e3 : 1e6);
}

const done = { pushed: 0, dumps: 0, dumpBytes: 0 };
let healthy = false;

/** Pushes addresses in parts, as an agent gets them from its controller, each when the last one is in force. */
async function push(node: Node, all: readonly Address[], signal?: AbortSignal): Promise<void> {
  for (let at = 0; at < all.length; at += PART) {
    if (signal?.aborted === true) return;
    const part = all.slice(at, at + PART);
    await node.untilInForce(node.publish(part));
    done.pushed += part.length;
  }
}

/** Pushes the whole table to these, again and again. */
async function pushes(to: readonly Node[], signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    healthy = !healthy;
    const all = workloads(healthy);
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

const disturbances: Readonly<Record<string, (signal: AbortSignal) => Promise<void>>> = {
  "nothing beside it": async () => {},
  "full pushes to two other proxies": async (signal) => pushes(others, signal),
  "full pushes to both": async (signal) => pushes(nodes, signal),
  "dumps of two other proxies": async (signal) => dumps(others, signal),
  "dumps of both": async (signal) => dumps(nodes, signal),
};

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
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
  for (const pid of family(Number(nginx))) must(["chrt", "--fifo", "--pid", "1", String(pid)]);
  const proxies = (): number => memoryBytes(nodes.map((node) => node.proxyPid)) / (1 << 20);
  const small = proxies();
  for (const node of [...nodes, ...others]) await push(node, [...services, ...workloads(true)]);
  done.pushed = 0;
  const startMs = performance.now();
  const results = Object.entries(disturbances).map(([name, disturb]) => ({ name, disturb, figures: [] as Figures[] }));
  await measure(pair, async () => {});
  for (let at = 0; at < runs; at++) {
    for (const { name, disturb, figures } of results) {
      figures.push(await measure(pair, disturb));
      process.stderr.write(`${at + 1}/${runs} ${name}: ${JSON.stringify(figures.at(-1))}\n`);
    }
  }
  const row = ({ name, figures }: (typeof results)[number]): string => {
    const of = (key: keyof Figures): string => Math.round(median(figures.map((one) => one[key]))).toLocaleString("en");
    return `| ${name} | ${of("requestP50")} | ${of("requestP99")} | ${of("connectionP50")} | ${of("connectionP99")} |`;
  };
  const minutes = ((performance.now() - startMs) / 60_000).toFixed(0);
  const text = [
    `# ${count.toLocaleString("en")} workloads in the table`,
    "",
    `\`node --conditions=veil-source bench/table.ts ${process.argv.slice(2).join(" ")}\`, ${cpus().length} cores (${cpus()[0]?.model.trim()}), Node ${process.version}, ${new Date().toISOString().slice(0, 10)}, ${minutes} min, load average ${(loadavg()[1] ?? 0).toFixed(0)}.`,
    `Microseconds, medians of ${runs} runs of ${seconds} s each, interleaved. ${done.pushed.toLocaleString("en")} addresses were pushed and ${done.dumps} dumps of ${(done.dumpBytes / 1e6).toFixed(0)} MB read meanwhile, own and others together.`,
    "",
    "| beside | requests p50 | p99 | new connections p50 | p99 |",
    "|---|---:|---:|---:|---:|",
    ...results.map(row),
    "",
    `Memory of both proxies together (PSS; supervisors, data paths, waiting processes): ${small.toFixed(0)} MiB with 2 workloads, ${proxies().toFixed(0)} MiB at the end.`,
    "",
  ].join("\n");
  process.stdout.write(text);
  if (flags.out !== "") {
    const file = (extension: string): string => join(import.meta.dirname, "results", `${flags.out}.${extension}`);
    writeFileSync(file("md"), text);
    writeFileSync(
      file("json"),
      `${JSON.stringify(
        results.map(({ name, figures }) => ({ name, figures })),
        undefined,
        1,
      )}\n`,
    );
  }
} finally {
  stopAll();
  for (const node of others) await node[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
}
