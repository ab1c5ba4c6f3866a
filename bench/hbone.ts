/**
 * Measures the data path: bytes per second, CPU per gigabyte, requests and new connections per second, through Veil's
 * tunnels (client proxy and server proxy as processes), through haproxy as a TLS tunnel, and with nothing in between, in
 * one run, interleaved. Needs iperf3, wrk, nginx, haproxy (Debian packages).
 *
 *     node --conditions=veil-source bench/hbone.ts [--seconds 3] [--rounds 3] [--variants direct,haproxy,veil,public]
 *         [--tests stream,reverse,streams8,requests,connections] [-o json]
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { TlsIdentity } from "#model/tls-identity";
import { identities, testId } from "../src/hbone/testing.ts";

const { values: flags } = parseArgs({
  options: {
    seconds: { type: "string", default: "3" },
    rounds: { type: "string", default: "3" },
    variants: { type: "string", default: "direct,haproxy,veil" },
    tests: { type: "string", default: "stream,reverse,streams8,requests,connections" },
    output: { type: "string", short: "o", default: "table" },
  },
});

const seconds = Number(flags.seconds);
const folder = mkdtempSync(join(tmpdir(), "vt-hbone-bench-"));
const children: ChildProcess[] = [];
const TICKS_PER_SECOND = 100;
/** What Veil prefers: the comparison is of proxies, not of ciphers. */
const SUITE = "TLS_AES_128_GCM_SHA256";

/** Two proxies (or none) in front of iperf3 and nginx. */
interface Variant {
  readonly name: string;
  /** Ports of clients, and the processes whose CPU time counts. */
  readonly iperfPort: number;
  readonly httpPort: number;
  readonly client: readonly number[];
  readonly server: readonly number[];
}

interface Sample {
  readonly variant: string;
  readonly test: string;
  readonly value: number;
  readonly clientCpu: number;
  readonly serverCpu: number;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address !== null ? address.port : 0;
}

/** Starts a process that ends with this one; its number is the result. */
function start(command: string, args: readonly string[]): number {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
  child.stdout?.on("data", (text: Buffer) => {
    const words = text.toString().trim();
    if (words !== "ready" && command === process.execPath) process.stderr.write(`${words}\n`);
  });
  children.push(child);
  return child.pid ?? 0;
}

/** User and system time of a process, seconds. */
function cpuOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

function cpuOfAll(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + cpuOf(pid), 0);
}

async function waitFor(port: number): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const probe = spawnSync("bash", ["-c", `exec 3<>/dev/tcp/127.0.0.1/${port}`], { stdio: "ignore" });
    if (probe.status === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`nobody listens on port ${port}`);
}

interface Apps {
  readonly iperf: number;
  readonly http: number;
}

async function startApps(): Promise<Apps> {
  const apps = { iperf: await freePort(), http: await freePort() };
  start("iperf3", ["-s", "-B", "127.0.0.1", "-p", String(apps.iperf)]);
  const config = join(folder, "nginx.conf");
  writeFileSync(
    config,
    `daemon off; worker_processes 1; pid ${folder}/nginx.pid; error_log /dev/null;
     events { worker_connections 4096; }
     http { access_log off; keepalive_requests 10000000; client_body_temp_path ${folder}/b; proxy_temp_path ${folder}/p;
       fastcgi_temp_path ${folder}/f; uwsgi_temp_path ${folder}/u; scgi_temp_path ${folder}/s;
       server { listen 127.0.0.1:${apps.http} backlog=4096; location / { return 200 "0123456789abcdef"; } } }`,
  );
  start("nginx", ["-c", config, "-e", "/dev/null"]);
  await waitFor(apps.http);
  return apps;
}

async function veil(name: string, path: "handles" | "public", apps: Apps): Promise<Variant> {
  const { client, server } = await identities();
  const args = ["--conditions=veil-source", "--disable-warning=DEP0111", "--max-semi-space-size=64"];
  const launch = (setup: { role: string; listen: number; peerPort: number; target: string; identity: TlsIdentity }) => {
    const file = join(folder, `${name}-${setup.listen}.json`);
    writeFileSync(file, JSON.stringify({ ...setup, path, accepted: [testId("server")] }), { mode: 0o600 });
    return start(process.execPath, [...args, new URL("hbone-proxy.ts", import.meta.url).pathname, file]);
  };
  const [peerPort, iperfPort, httpPort] = [await freePort(), await freePort(), await freePort()];
  const serverPid = launch({ role: "server", listen: peerPort, peerPort: 0, target: "", identity: server });
  await waitFor(peerPort);
  const clients = [
    { listen: iperfPort, target: `127.0.0.1:${apps.iperf}` },
    { listen: httpPort, target: `127.0.0.1:${apps.http}` },
  ].map((part) => launch({ role: "client", peerPort, identity: client, ...part }));
  await waitFor(httpPort);
  return { name, iperfPort, httpPort, client: clients, server: [serverPid] };
}

async function haproxy(apps: Apps): Promise<Variant> {
  const { client, server } = await identities();
  for (const [file, { chainPem, keyPem }] of Object.entries({ client, server })) {
    writeFileSync(join(folder, `${file}.pem`), chainPem + keyPem, { mode: 0o600 });
  }
  writeFileSync(join(folder, "roots.pem"), client.rootsPem);
  const ports = { iperf: await freePort(), http: await freePort() };
  const tunnels = { iperf: await freePort(), http: await freePort() };
  const tls = `crt ${folder}/client.pem ca-file ${folder}/roots.pem verify required force-tlsv13 ciphersuites ${SUITE}`;
  const head =
    "global\n nbthread 1\n tune.bufsize 65536\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n";
  const section = (kind: string, name: string, text: string): string => `${kind} ${name}\n ${text}\n`;
  const clientText = (["iperf", "http"] as const).map((app) =>
    section("listen", app, `bind 127.0.0.1:${ports[app]}\n server s 127.0.0.1:${tunnels[app]} ssl ${tls}`),
  );
  const serverText = (["iperf", "http"] as const).map((app) =>
    section(
      "listen",
      app,
      `bind 127.0.0.1:${tunnels[app]} ssl crt ${folder}/server.pem ca-file ${folder}/roots.pem verify required ` +
        `ssl-min-ver TLSv1.3 ciphersuites ${SUITE}\n server s 127.0.0.1:${apps[app]}`,
    ),
  );
  const pids = [clientText, serverText].map((parts, index) => {
    const file = join(folder, `haproxy-${index}.cfg`);
    writeFileSync(file, head + parts.join(""));
    return start("haproxy", ["-db", "-q", "-f", file]);
  });
  await waitFor(ports.http);
  return {
    name: "haproxy",
    iperfPort: ports.iperf,
    httpPort: ports.http,
    client: pids.slice(0, 1),
    server: pids.slice(1),
  };
}

/** Runs a load generator; its output is the result. */
async function run(command: string, args: readonly string[]): Promise<string> {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  child.stdout.on("data", (chunk: Buffer) => {
    text += chunk.toString();
  });
  await new Promise((resolve) => child.on("close", resolve));
  return text;
}

/** Bytes that arrived. iperf3's server takes one test at a time, and a moment between two. */
async function iperf(port: number, extra: readonly string[]): Promise<number> {
  const args = ["-c", "127.0.0.1", "-p", String(port), "-t", String(seconds), "-J", ...extra];
  for (let tries = 0; ; tries++) {
    const text = await run("iperf3", args);
    const report = JSON.parse(text) as { end?: { sum_received?: { bytes: number } }; error?: string };
    if (report.end?.sum_received !== undefined) return report.end.sum_received.bytes;
    if (tries === 20) throw new Error(`iperf3: ${report.error}`);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

/** Gigabits per second, or per second; CPU seconds per gigabyte, or microseconds each. */
const tests: Readonly<Record<string, { unit: string; work: (variant: Variant) => Promise<{ amount: number }> }>> = {
  stream: { unit: "Gb/s", work: async ({ iperfPort }) => ({ amount: await iperf(iperfPort, []) }) },
  reverse: { unit: "Gb/s", work: async ({ iperfPort }) => ({ amount: await iperf(iperfPort, ["-R"]) }) },
  streams8: { unit: "Gb/s", work: async ({ iperfPort }) => ({ amount: await iperf(iperfPort, ["-P", "8"]) }) },
  requests: {
    unit: "requests/s",
    work: async ({ httpPort }) => {
      const args = ["-t", "1", "-c", "16", "-d", `${seconds}s`, `http://127.0.0.1:${httpPort}/`];
      return { amount: Number(/(\d+) requests in/.exec(await run("wrk", args))?.[1]) };
    },
  },
  connections: {
    unit: "connections/s",
    work: async ({ httpPort }) => {
      const url = `http://127.0.0.1:${httpPort}/`;
      const args = ["-t", "1", "-c", "16", "-d", `${seconds}s`, "-H", "Connection: close", url];
      return { amount: Number(/(\d+) requests in/.exec(await run("wrk", args))?.[1]) };
    },
  },
};

async function measure(variant: Variant, name: string): Promise<Sample> {
  const one = tests[name];
  if (one === undefined) throw new Error(`unknown test ${name}: ${Object.keys(tests).join(", ")}`);
  const before = [cpuOfAll(variant.client), cpuOfAll(variant.server)] as const;
  const startMs = performance.now();
  const { amount } = await one.work(variant);
  const tookSeconds = (performance.now() - startMs) / 1000;
  const bytes = one.unit === "Gb/s";
  const per = bytes ? amount / 1e9 : amount / 1e6;
  return {
    variant: variant.name,
    test: name,
    value: bytes ? (amount * 8) / 1e9 / tookSeconds : amount / seconds,
    clientCpu: (cpuOfAll(variant.client) - before[0]) / per,
    serverCpu: (cpuOfAll(variant.server) - before[1]) / per,
  };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

function report(samples: readonly Sample[], variants: readonly Variant[]): void {
  if (flags.output === "json") {
    process.stdout.write(`${JSON.stringify({ seconds, node: process.version, samples }, undefined, 2)}\n`);
    return;
  }
  const lines = ["| test | variant | median | all | CPU client | CPU server |", "|---|---|---|---|---|---|"];
  for (const [name, { unit }] of Object.entries(tests)) {
    for (const variant of variants) {
      const own = samples.filter((sample) => sample.test === name && sample.variant === variant.name);
      if (own.length === 0) continue;
      const digits = unit === "Gb/s" ? 2 : 0;
      const cpu = (pick: (sample: Sample) => number): string =>
        variant.client.length === 0 ? "" : median(own.map(pick)).toFixed(unit === "Gb/s" ? 2 : 1);
      const all = own.map(({ value }) => value.toFixed(digits)).join(" ");
      const middle = median(own.map(({ value }) => value)).toFixed(digits);
      const columns = [`${name}, ${unit}`, variant.name, middle, all, cpu((s) => s.clientCpu), cpu((s) => s.serverCpu)];
      lines.push(`| ${columns.join(" | ")} |`);
    }
  }
  process.stdout.write(`${lines.join("\n")}\n\nCPU: seconds per GB, or microseconds per request or connection.\n`);
}

try {
  const apps = await startApps();
  const makers: Readonly<Record<string, () => Promise<Variant> | Variant>> = {
    direct: () => ({ name: "direct", iperfPort: apps.iperf, httpPort: apps.http, client: [], server: [] }),
    haproxy: async () => haproxy(apps),
    veil: async () => veil("veil", "handles", apps),
    public: async () => veil("public", "public", apps),
  };
  const variants: Variant[] = [];
  for (const name of flags.variants.split(",")) {
    const make = makers[name];
    if (make === undefined) throw new Error(`unknown variant ${name}: ${Object.keys(makers).join(", ")}`);
    variants.push(await make());
  }
  const samples: Sample[] = [];
  for (const name of flags.tests.split(",")) {
    for (let round = 0; round < Number(flags.rounds); round++) {
      for (const variant of variants) samples.push(await measure(variant, name));
    }
  }
  report(samples, variants);
} finally {
  for (const child of children) child.kill();
  rmSync(folder, { recursive: true, force: true });
}
