/**
 * Bytes per second and CPU per gigabyte of Veil's whole path (redirection, two proxies, mutual TLS, records, metrics), against
 * haproxy as a TLS tunnel with client certificates and against nothing, between two pods on two nodes of one lab, in one run, interleaved.
 *
 *     node --conditions=veil-source bench/path.ts [--rounds 5] [--seconds 4]      (root; iperf3 and haproxy from Debian)
 *
 * Writes bench/results/path.md and path.json. haproxy and each of Veil's proxies have one data thread.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Pod } from "#kube";
import type { LabStatus } from "#lab";
import { must, run, startLab, type TestLab } from "../test/netns/harness.ts";
import { enrolled, enterPod, idlePod, label, namespaceObject } from "../test/netns/mesh.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "5" }, seconds: { type: "string", default: "4" } },
});
const ROUNDS = Number(values.rounds);
const SECONDS = Number(values.seconds);
const VARIANTS = ["nothing", "veil", "haproxy"] as const;
const SHAPES = [
  { name: "1 stream, client sends", words: [] },
  { name: "1 stream, server sends", words: ["-R"] },
  { name: "8 streams, client sends", words: ["-P", "8"] },
] as const;
const TICKS_PER_SECOND = 100;
const IPERF_PORT = 5201;
const TUNNEL_PORT = 7443;

type Variant = (typeof VARIANTS)[number];

interface Measurement {
  readonly gbps: number;
  /** CPU seconds per gigabyte, user and system, of all threads. */
  readonly clientCpu: number;
  readonly serverCpu: number;
}

/** A variant's pair of pods: where iperf3's client runs, what it dials, and which processes carry the bytes on either side. */
interface Bed {
  readonly enter: readonly string[];
  readonly target: string;
  readonly clientPids: () => number[];
  readonly serverPids: () => number[];
}

const background: ChildProcess[] = [];

function start(command: readonly string[]): ChildProcess {
  const [program = "", ...args] = command;
  const child = spawn(program, args, { stdio: "ignore" });
  background.push(child);
  return child;
}

function cpuTicks(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? [];
    return sum + Number(fields[11]) + Number(fields[12]);
  }, 0);
}

function descendants(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
    .split(" ")
    .filter((text) => text !== "")
    .map(Number);
  return [pid, ...children.flatMap(descendants)];
}

async function measure(bed: Bed, words: readonly string[]): Promise<Measurement> {
  const before = { client: cpuTicks(bed.clientPids()), server: cpuTicks(bed.serverPids()) };
  const iperf = ["iperf3", "-c", bed.target, "-p", String(IPERF_PORT), "-t", String(SECONDS), "-J", ...words];
  const report = JSON.parse(await must([...bed.enter, ...iperf])) as {
    end: { sum_received: { bytes: number; bits_per_second: number } };
  };
  const { bytes, bits_per_second } = report.end.sum_received;
  const cpu = (from: number, pids: readonly number[]): number =>
    (cpuTicks(pids) - from) / TICKS_PER_SECOND / (bytes / 1e9);
  return {
    gbps: bits_per_second / 1e9,
    clientCpu: cpu(before.client, bed.clientPids()),
    serverCpu: cpu(before.server, bed.serverPids()),
  };
}

async function pair(lab: TestLab, namespace: string): Promise<{ client: Pod; server: Pod }> {
  await lab.apply([
    namespaceObject(namespace),
    idlePod(namespace, "server", "node2"),
    idlePod(namespace, "client", "node1"),
  ]);
  const [server, client] = await Promise.all([lab.readyPod(namespace, "server"), lab.readyPod(namespace, "client")]);
  start([...(await enterPod(lab, server)), "iperf3", "-s", "-p", String(IPERF_PORT)]);
  return { client, server };
}

async function proxyPids(lab: TestLab, node: string): Promise<() => number[]> {
  const { stdout } = await run([
    join(import.meta.dirname, "../bin/veil"),
    "lab",
    "status",
    "--name",
    lab.name,
    "-o",
    "json",
  ]);
  const status = JSON.parse(stdout) as LabStatus;
  const pid = status.nodes.find(({ name }) => name === node)?.roles.find(({ role }) => role === "proxy")?.pid;
  if (pid === undefined) throw new Error(`no proxy on ${node}`);
  return () => descendants(pid);
}

async function haproxyBed(lab: TestLab, folder: string): Promise<Bed> {
  const { client, server } = await pair(lab, "tunnel");
  await certificates(folder);
  const tls = `ssl crt ${folder}/leaf.pem ca-file ${folder}/root.pem verify required`;
  const config = (name: string, frontend: string, backend: string): string => {
    const file = join(folder, `${name}.cfg`);
    const head =
      "global\n nbthread 1\n ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256\n";
    const defaults = "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n";
    writeFileSync(file, `${head}${defaults}listen tunnel\n bind ${frontend}\n server peer ${backend}\n`);
    return file;
  };
  const inner = `127.0.0.1:${IPERF_PORT}`;
  const clientFile = config("client", inner, `${server.status?.podIP}:${TUNNEL_PORT} ${tls}`);
  const serverFile = config("server", `0.0.0.0:${TUNNEL_PORT} ${tls}`, inner);
  const enter = await enterPod(lab, client);
  const clientProxy = start([...enter, "haproxy", "-db", "-f", clientFile]);
  const serverProxy = start([...(await enterPod(lab, server)), "haproxy", "-db", "-f", serverFile]);
  await wait(500);
  return {
    enter,
    target: "127.0.0.1",
    clientPids: () => descendants(clientProxy.pid ?? 0),
    serverPids: () => descendants(serverProxy.pid ?? 0),
  };
}

/** One root, one leaf for both ends: the cost of TLS does not depend on who is who. */
async function certificates(folder: string): Promise<void> {
  const subject = (name: string): string[] => [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-subj",
    `/CN=${name}`,
  ];
  await must([
    "openssl",
    "req",
    "-x509",
    ...subject("root"),
    "-days",
    "1",
    "-keyout",
    `${folder}/root.key`,
    "-out",
    `${folder}/root.pem`,
  ]);
  await must(["openssl", "req", ...subject("leaf"), "-keyout", `${folder}/leaf.key`, "-out", `${folder}/leaf.csr`]);
  const sign = [
    "openssl",
    "x509",
    "-req",
    "-in",
    `${folder}/leaf.csr`,
    "-CA",
    `${folder}/root.pem`,
    "-CAkey",
    `${folder}/root.key`,
  ];
  await must([...sign, "-CAcreateserial", "-days", "1", "-out", `${folder}/leaf.crt`]);
  writeFileSync(
    `${folder}/leaf.pem`,
    readFileSync(`${folder}/leaf.crt`, "utf8") + readFileSync(`${folder}/leaf.key`, "utf8"),
  );
}

function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

const folder = mkdtempSync(join(tmpdir(), "veil-bench-"));
const lab = await startLab("bench");
try {
  const bare = await pair(lab, "bare");
  const mesh = await pair(lab, "mesh");
  await label(lab, ["mesh"], true);
  await enrolled(lab, ["mesh"], true);
  const beds: Readonly<Record<Variant, Bed>> = {
    nothing: {
      enter: await enterPod(lab, bare.client),
      target: bare.server.status?.podIP ?? "",
      clientPids: () => [],
      serverPids: () => [],
    },
    veil: {
      enter: await enterPod(lab, mesh.client),
      target: mesh.server.status?.podIP ?? "",
      clientPids: await proxyPids(lab, "node1"),
      serverPids: await proxyPids(lab, "node2"),
    },
    haproxy: await haproxyBed(lab, folder),
  };
  const results: { shape: string; variant: Variant; rounds: Measurement[] }[] = [];
  for (const shape of SHAPES) {
    const rounds: Record<Variant, Measurement[]> = { nothing: [], veil: [], haproxy: [] };
    for (let round = 0; round < ROUNDS; round++) {
      for (const variant of VARIANTS) {
        rounds[variant].push(await measure(beds[variant], shape.words));
        process.stderr.write(
          `${shape.name}, round ${round + 1}, ${variant}: ${rounds[variant].at(-1)?.gbps.toFixed(2)} Gb/s\n`,
        );
      }
    }
    for (const variant of VARIANTS) results.push({ shape: shape.name, variant, rounds: rounds[variant] });
  }
  const row = ({ shape, variant, rounds }: (typeof results)[number]): string => {
    const of = (key: keyof Measurement): number => median(rounds.map((round) => round[key]));
    const peer = results.find((other) => other.shape === shape && other.variant === "haproxy");
    const cpu = of("clientCpu") + of("serverCpu");
    const peerCpu = median((peer?.rounds ?? []).map((round) => round.clientCpu + round.serverCpu));
    const ratio = of("gbps") / median((peer?.rounds ?? []).map((round) => round.gbps));
    const figures = [of("gbps"), ratio, of("clientCpu"), of("serverCpu"), cpu / peerCpu].map((figure) =>
      figure.toFixed(2),
    );
    return `| ${shape} | ${variant} | ${figures.join(" | ")} |`;
  };
  const where = `${cpus().length} cores (${cpus()[0]?.model.trim()}), kernel ${(await must(["uname", "-r"])).trim()}, Node ${process.version}`;
  const text = [
    "# The path: bytes and CPU",
    "",
    `\`node --conditions=veil-source bench/path.ts --rounds ${ROUNDS} --seconds ${SECONDS}\` on ${where}, ${new Date().toISOString().slice(0, 10)}.`,
    "Two pods on two nodes of one lab; medians; variants interleaved; ratios are to haproxy in the same run. CPU is that of the proxies alone.",
    "",
    "| iperf3 | through | Gb/s | ratio | CPU-s/GB client | CPU-s/GB server | CPU ratio |",
    "|---|---|---:|---:|---:|---:|---:|",
    ...results.map(row),
    "",
  ].join("\n");
  const out = join(import.meta.dirname, "results");
  writeFileSync(join(out, "path.md"), text);
  writeFileSync(join(out, "path.json"), `${JSON.stringify(results, undefined, 1)}\n`);
  process.stdout.write(text);
} finally {
  for (const child of background) child.kill("SIGKILL");
  await lab[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
  if (readdirSync("/run/netns").some((name) => name.includes(lab.name))) process.exitCode = 1;
}
