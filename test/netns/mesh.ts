import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { tcpStreams, type Packet, type Stream } from "#capture";
import { findHostPort } from "#base/ip";
import { resources, type Pod } from "#kube";
import { enterPlace, type LabStatus } from "#lab";
import { systemClock } from "#base/clock";
import { eventually, must, veil, type TestLab } from "./harness.ts";
import { replaceLabProxies } from "./lab-proxies.ts";

/** The program that puts load on connections and checks every byte at both ends. */
export const LOAD_PROGRAM = fileURLToPath(new URL("load.ts", import.meta.url));
/** Port of the load's server. */
export const LOAD_PORT = 9000;
/** Port on which proxies accept tunnels. */
export const TUNNEL_PORT = 15008;
/** Architecture §3: for this long after a label, plaintext of a stale view may still pass. */
export const PROPAGATION_BOUND_MS = 10_000;
/** A load that has not ended so long after its time has got stuck. */
const LOAD_GRACE_MS = 60_000;
/** Longer than any load. */
const SERVER_SECONDS = 86_400;
const LABEL = "io.cilium/mtls-enabled";
const REDIRECTED = "ambient.istio.io/redirection";

/** What the load's client prints at its end. */
export interface LoadResult {
  readonly long: {
    readonly opened: number;
    readonly alive: number;
    readonly bytes: number;
    readonly stalled: number;
    readonly waitingMs: number;
  };
  readonly short: { readonly tried: number; readonly done: number };
  readonly failures: Readonly<Record<string, number>>;
  readonly firstFailures: readonly string[];
  readonly failedFromMs: number;
  readonly failedToMs: number;
  readonly lastDoneMs: number;
  readonly corrupt: number;
  readonly latencyMs: { readonly p50: number; readonly p99: number; readonly max: number };
}

/** What tests of a mesh want of the cluster underneath them: a lab's, or that of real kubelets. */
export interface Mesh extends Pick<
  TestLab,
  "client" | "kubectl" | "apply" | "readyPod" | "captureNode" | "capturePod"
> {
  /** What makes a pod's container run this machine's programs, and what its pod needs for that. */
  readonly programs: { readonly container: object; readonly spec: object };
  /** Words that run a program of this machine in a pod's network; they work while the API is away, too. */
  enterPod(pod: Pod): Promise<readonly string[]>;
  /** Kills a role, on one node or everywhere, with SIGKILL; resolves when it runs again. */
  kill(role: MeshRole, node?: string): Promise<void>;
  /** Replaces all proxies beside each other; resolves when the old ones have gone. Once in a mesh's life. */
  replaceProxies(): Promise<void>;
  /** The metrics of a node's proxy. */
  proxyMetrics(node: string): Promise<string>;
}

/** What can be killed. `data path`: the process of a proxy that carries connections; the one above it lives on. */
export type MeshRole = "controller" | "agent" | "apiserver" | "data path";

/** A pod that only waits: commands are run in it. */
export function idlePod(mesh: Mesh, place: PodPlace): object {
  return podObject(mesh, place, ["sleep", "100000"]);
}

/** A pod that serves the load. */
export function loadServer(mesh: Mesh, place: PodPlace): object {
  const pod = podObject(mesh, place, [
    process.execPath,
    LOAD_PROGRAM,
    "server",
    "--port",
    String(LOAD_PORT),
    "--seconds",
    String(SERVER_SECONDS),
  ]);
  pod.spec.containers[0] = {
    ...pod.spec.containers[0],
    readinessProbe: { tcpSocket: { port: LOAD_PORT }, periodSeconds: 1 },
  };
  return pod;
}

interface PodPlace {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
}

interface PodObject {
  readonly spec: { readonly containers: object[] };
}

function podObject({ programs }: Mesh, place: PodPlace, command: readonly string[]): PodObject & object {
  const { namespace, name, node } = place;
  const main = { name: "main", command, ...programs.container };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name, labels: { app: name } },
    spec: { nodeName: node, terminationGracePeriodSeconds: 1, containers: [main], ...programs.spec },
  } as PodObject & object; // written just above
}

export function namespaceObject(name: string): object {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name } };
}

/** A scene of its own in two namespaces: a server, and a client on either node. None is labelled yet. */
export interface Scene {
  readonly namespaces: readonly string[];
  readonly server: Pod;
  /** On the other node than the server. */
  readonly far: Pod;
  /** On the server's node. */
  readonly near: Pod;
}

/** Builds a scene whose namespaces begin with `prefix`, and waits until it stands. */
export async function buildScene(mesh: Mesh, prefix: string): Promise<Scene> {
  const [east, west] = [`${prefix}-east`, `${prefix}-west`];
  const objects = [
    namespaceObject(east),
    namespaceObject(west),
    loadServer(mesh, { namespace: east, name: "server", node: "node2" }),
    idlePod(mesh, { namespace: west, name: "far", node: "node1" }),
    idlePod(mesh, { namespace: west, name: "near", node: "node2" }),
  ];
  // Pods are refused until their namespace has its account.
  await eventually(`the pods of ${prefix} to be accepted`, async () => {
    await mesh.apply(objects);
    return true;
  });
  const [server, far, near] = await Promise.all([
    mesh.readyPod(east, "server"),
    mesh.readyPod(west, "far"),
    mesh.readyPod(west, "near"),
  ]);
  return { namespaces: [east, west], server, far, near };
}

/** Labels namespaces (or takes the label off) with kubectl. */
export async function label(mesh: Mesh, namespaces: readonly string[], on: boolean): Promise<void> {
  await mesh.kubectl("label", "namespace", ...namespaces, on ? `${LABEL}=true` : `${LABEL}-`, "--overwrite");
}

/** Waits until every pod of the namespaces says that it is redirected, or that it is not. */
export async function enrolled(mesh: Mesh, namespaces: readonly string[], on: boolean): Promise<void> {
  await eventually(`pods of ${namespaces.join(", ")} to be ${on ? "enrolled" : "un-enrolled"}`, async () => {
    for (const namespace of namespaces) {
      const { items } = await mesh.client.list(resources.pods, { namespace });
      const annotations = items.map(({ metadata }) => metadata?.annotations?.[REDIRECTED]);
      if (!annotations.every((value) => (value === "enabled") === on)) return undefined;
    }
    return true;
  });
}

/** A lab as the cluster underneath. */
export function labMesh(lab: TestLab): Mesh {
  return {
    ...lab,
    programs: { container: { image: "none" }, spec: {} },
    enterPod: ({ metadata }) =>
      enterPlace({ lab: lab.layout, clock: systemClock() }, `${metadata?.namespace}/${metadata?.name}`),
    kill: (role, node) => (role === "data path" ? killDataPath(lab, node) : killRole(lab, role, node)),
    replaceProxies: () => replaceLabProxies(lab),
    proxyMetrics(node) {
      const netns = lab.nodes.find(({ name }) => name === node)?.netns ?? "";
      return must(["ip", "netns", "exec", netns, "curl", "-sf", "http://127.0.0.1:15020/metrics"]);
    },
  };
}

async function killRole(lab: TestLab, role: string, node?: string): Promise<void> {
  const pids = await pidsOf(lab, role, node);
  assert.ok(pids.length > 0, `the lab shows no ${role}`);
  for (const pid of pids) process.kill(pid, "SIGKILL");
  await eventually(`another ${role}`, async () => {
    const now = await pidsOf(lab, role, node);
    return now.length > 0 && now.every((pid) => !pids.includes(pid)) ? true : undefined;
  });
}

async function killDataPath(lab: TestLab, node?: string): Promise<void> {
  const [pid] = await pidsOf(lab, "proxy", node);
  assert.ok(pid !== undefined);
  const [data] = childrenOf(pid);
  assert.ok(data !== undefined, "the proxy's supervisor has no child");
  process.kill(data, "SIGKILL");
}

/** Process ids of a role, by `veil lab status`. */
export async function pidsOf(lab: TestLab, role: string, node?: string): Promise<number[]> {
  const { stdout } = await veil("lab", "status", "--name", lab.name, "-o", "json");
  const status = JSON.parse(stdout) as LabStatus;
  const places =
    node === undefined ? [status.control, ...status.nodes] : status.nodes.filter(({ name }) => name === node);
  return places
    .flatMap(({ roles }) => roles)
    .flatMap((one) => (one.role === role && one.pid !== undefined ? [one.pid] : []));
}

/** Process ids of what a process has started. */
export function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
    .split(" ")
    .filter((text) => text !== "")
    .map(Number);
}

/** Starts the load's client in a pod; resolves with its result. `words` as `load.ts client` takes them. */
export async function runLoad(enter: readonly string[], server: Pod, words: readonly string[]): Promise<LoadResult> {
  const target = `${server.status?.podIP}:${LOAD_PORT}`;
  const seconds = Number(words[words.indexOf("--seconds") + 1]);
  const stdout = await must([...enter, process.execPath, LOAD_PROGRAM, "client", "--target", target, ...words], {
    timeoutMs: seconds * 1000 + LOAD_GRACE_MS,
  });
  return JSON.parse(stdout) as LoadResult; // printed by load.ts
}

/** How a load goes, while it goes. */
export type LoadProgress = Omit<LoadResult, "latencyMs"> & { readonly elapsedMs: number };

/** A load that goes on until it is stopped. */
export interface RunningLoad {
  /** Waits until a look at how it goes says yes; fails the test with `what` after two minutes. */
  until(what: string, look: (now: LoadProgress) => boolean): Promise<LoadProgress>;
  /** Ends it; resolves with what happened in all. */
  stop(): Promise<LoadResult>;
}

/** Starts the load's client in a pod; resolves once all of its long connections are open and a short one has been served. */
export async function startLoad(enter: readonly string[], server: Pod, words: readonly string[]): Promise<RunningLoad> {
  const target = `${server.status?.podIP}:${LOAD_PORT}`;
  const [program = "", ...args] = [
    ...enter,
    process.execPath,
    LOAD_PROGRAM,
    "client",
    "--target",
    target,
    "--watched",
    ...words,
  ];
  const child = spawn("setpriv", ["--pdeathsig", "KILL", program, ...args], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = once(child, "close");
  let last = "";
  createInterface({ input: child.stdout }).on("line", (line) => (last = line));
  const load: RunningLoad = {
    until: (what, look) =>
      eventually(
        what,
        () => {
          assert.equal(child.exitCode, null, "the load has ended");
          const now = JSON.parse(last) as LoadProgress; // printed by load.ts
          if (look(now)) return now;
          throw new Error(last);
        },
        120_000,
      ),
    stop: async () => {
      child.stdin.end();
      await ended;
      return JSON.parse(last) as LoadResult; // printed by load.ts
    },
  };
  const long = words.includes("--long") ? Number(words[words.indexOf("--long") + 1]) : 0;
  await load.until("the load to run", (now) => now.long.opened === long && now.short.done > 0);
  return load;
}

/** Asserts that nothing was lost, refused, reset, reordered or changed. */
export function assertFlawless(result: LoadResult, long: number): void {
  assert.deepEqual(result.failures, {}, result.firstFailures.join("; "));
  assert.equal(result.corrupt, 0);
  assert.equal(result.long.opened, long);
  assert.equal(result.long.alive, long);
  assert.ok(result.short.done > 0 || long > 0);
}

/** Connections between two pods that began within the capture and carried bytes to any port but the tunnels'. */
export function clearStreams(packets: readonly Packet[], a: Pod, b: Pod): Stream[] {
  const ips = new Set([a.status?.podIP, b.status?.podIP]);
  const between = packets.filter(({ source, destination }) => ips.has(source) && ips.has(destination));
  const begun = new Set(between.filter(({ flags }) => (flags & 0x02) !== 0).map(connectionKey));
  const fresh = between.filter((packet) => begun.has(connectionKey(packet)));
  const ports = (stream: Stream): (number | undefined)[] => [
    findHostPort(stream.from)?.port,
    findHostPort(stream.to)?.port,
  ];
  return tcpStreams(fresh).filter((stream) => stream.bytes.length > 0 && !ports(stream).includes(TUNNEL_PORT));
}

function connectionKey(packet: Packet): string {
  return [`${packet.source}:${packet.sourcePort}`, `${packet.destination}:${packet.destinationPort}`].sort().join(" ");
}
