/**
 * A table of 100,000 workloads beside the connections: latency of requests (1,000 a second, 16 kept connections) and of new connections
 * (one at a time) through the path, quiet, beside a stranger that computes on another core, during full pushes of the whole table to
 * both proxies, and during dumps of it on both. Pushes come from agents in this process, which cost CPU on the same two cores:
 * the stranger shows what that alone does.
 *
 *     node --conditions=veil-source bench/table.ts [--workloads 100000] [--runs 5] [--seconds 6] [--out NAME]
 *
 * Needs root, wrk, nginx. With `--out NAME` writes bench/results/NAME.{md,json}.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { parseIp } from "#base/ip";
import type { Workload } from "#model/workload";
import { ProxyWorld } from "../test/netns/proxy-world.ts";
import { testService, testWorkload } from "../src/proxy/testing.ts";
import { APP_PORTS, startApps, type Pair } from "./data-path/place.ts";
import { inside, memoryBytes, run, stopAll } from "./data-path/processes.ts";

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
const RATE = 1_000;
const CONNECTIONS = 16;

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

async function untilKnown(): Promise<void> {
  for (const node of nodes) {
    for (;;) {
      const known = /^veil_proxy_addresses (\d+)/m.exec(await node.get(15_020, "/metrics"))?.[1];
      if (Number(known) >= count) break;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

/** Latency of requests, then of new connections; `disturb` runs beside each. */
async function measure(pair: Pair, disturb: (signal: AbortSignal) => Promise<void>): Promise<Figures> {
  const beside = async (command: readonly string[]): Promise<string> => {
    const stop = new AbortController();
    const disturbed = disturb(stop.signal);
    const text = await run([...inside(pair.clientNetns), ...command]);
    stop.abort();
    await disturbed;
    await untilKnown(); // and so at rest
    return text;
  };
  const load = [process.execPath, new URL("data-path/load.ts", import.meta.url).pathname, "rate"];
  const numbers = [pair.serverIp, APP_PORTS.http, CONNECTIONS, RATE, seconds].map(String);
  const requests = JSON.parse(await beside([...load, ...numbers])) as { p50: number; p99: number }; // of load.ts
  const url = `http://${pair.serverIp}:${APP_PORTS.http}/`;
  const wrk = ["wrk", "-t", "1", "-c", "1", "-d", `${seconds}s`, "--latency", "-H", "Connection: close", url];
  const text = await beside(wrk);
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

const done = { pushes: 0, dumps: 0, dumpBytes: 0 };
let healthy = false;

const disturbances: Readonly<Record<string, (signal: AbortSignal) => Promise<void>>> = {
  "nothing beside it": async () => {},
  "a stranger computes": async (signal) => {
    const child = spawn(process.execPath, ["-e", "for (;;);"], { stdio: "ignore" });
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    child.kill("SIGKILL");
  },
  "full pushes to both": async (signal) => {
    while (!signal.aborted) {
      healthy = !healthy;
      const all = workloads(healthy);
      for (const node of nodes) {
        // In parts, as an agent gets them from its controller.
        for (let at = 0; at < all.length && !signal.aborted; at += 2_000) {
          node.publish(all.slice(at, at + 2_000));
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
      }
      done.pushes++;
    }
  },
  "dumps of both": async (signal) => {
    while (!signal.aborted) {
      const dumps = await Promise.all(nodes.map(async (node) => node.get(15_000, "/config_dump")));
      done.dumps += dumps.length;
      done.dumpBytes = dumps[0]?.length ?? 0;
    }
  },
};

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

try {
  for (const node of nodes) {
    node.readsRecords = false;
    await node.startAgent();
  }
  const pods = [world.client, world.server];
  for (const pod of pods) await world.nodeOf(pod).certify(pod);
  world.publish(...pods);
  await Promise.all(nodes.map(async (node) => node.startProxy()));
  for (const pod of pods) await world.enrol(pod);
  const pair = startApps({ world, folder }, world.client, world.server);
  await new Promise((resolve) => setTimeout(resolve, 6_000)); // the waiting processes have loaded
  const proxies = (): number => memoryBytes(nodes.map((node) => node.proxyPid)) / (1 << 20);
  const small = proxies();
  for (const node of nodes) node.publish([...services, ...workloads(true)]);
  await untilKnown();
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
    `\`node --conditions=veil-source bench/table.ts ${process.argv.slice(2).join(" ")}\`, ${cpus().length} cores (${cpus()[0]?.model.trim()}), Node ${process.version}, ${new Date().toISOString().slice(0, 10)}, ${minutes} min.`,
    `Microseconds, medians of ${runs} runs of ${seconds} s each, interleaved. ${done.pushes} full pushes to both nodes and ${done.dumps} dumps of ${(done.dumpBytes / 1e6).toFixed(0)} MB went on meanwhile.`,
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
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
}
