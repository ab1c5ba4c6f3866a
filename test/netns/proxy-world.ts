import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { create } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import { systemClock } from "#base/clock";
import { parseIp } from "#base/ip";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { enrolmentMetrics, nftRedirector, ZdsServer, type ZdsPod } from "#enrolment";
import { connectTcp, listenTcp, openNetns, type Netns, type TcpListener } from "#linux";
import { findAccessRecord } from "#model/access-log";
import type { FlowRecord } from "#model/flow";
import { formatSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { addressName, type Address, type TunnelProtocol, type Workload } from "#model/workload";
import { CertificateUpdateSchema, encodeAddress, WorkloadCertificates, type WatchRequest } from "#proto";
import { RpcServer } from "#rpc";
import { ResourceCache, TYPE_ADDRESS, XdsServer } from "#xds";
import { testWorkload } from "../../src/proxy/testing.ts";
import { TestAuthority } from "../../src/x509/testing.ts";

const clock = systemClock();
/** What has not happened by then does not happen, on however slow a machine. */
const PATIENCE_MS = 60_000;
/** Two runs at once do not meet: namespaces and folders carry the run's process. */
const PREFIX = `vt-proxy-${process.pid}-`;
const root = fileURLToPath(new URL("../../", import.meta.url));

/** Runs a program to its end; throws with its output when it fails. */
export function run(program: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw error ?? new Error(`${program} ${args.join(" ")}: ${stderr}${stdout}`);
  return stdout;
}

export async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}

/** Waits until `what` is true; says what it waited for otherwise. */
export async function until(said: string, what: () => boolean | Promise<boolean>, ms = PATIENCE_MS): Promise<number> {
  const start = performance.now();
  while (!(await what())) {
    if (performance.now() - start > ms) throw new Error(`not within ${ms} ms: ${said}`);
    await pause(5);
  }
  return performance.now() - start;
}

/** User and system time of a process, in ticks of 10 ms. */
export function cpuTicks(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return Number(fields[11]) + Number(fields[12]);
}

/** When a process was started; Infinity when it has ended. */
function startTicks(pid: number): number {
  try {
    return Number(readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ")[19]);
  } catch {
    return Infinity;
  }
}

/** A pod: a network namespace with one address. */
export interface Pod {
  readonly name: string;
  readonly uid: string;
  readonly node: string;
  readonly ip: string;
  /** Its other address; not published unless a test does. */
  readonly ip6: string;
  readonly netns: Netns;
  readonly identity: SpiffeId;
  readonly workload: (tunnelProtocol: TunnelProtocol) => Workload;
}

/**
 * Two nodes that route, with pods on bridges of their own, and for each node an agent of this process's making: what it
 * says is what the test wants. Everything is named `vt-proxy-…` and goes with `dispose`.
 *
 *     client, plain ── node a (10.201.1.0/24) ══ underlay 172.31.0.0/24 ══ node b (10.201.2.0/24) ── server, other
 */
export class ProxyWorld implements AsyncDisposable {
  readonly authority: TestAuthority;
  readonly a: Node;
  readonly b: Node;
  readonly client: Pod;
  readonly plain: Pod;
  readonly server: Pod;
  readonly other: Pod;
  readonly folder = mkdtempSync(join(tmpdir(), PREFIX));
  readonly #replaced: Pod[] = [];
  readonly #added: Pod[] = [];

  static async create(): Promise<ProxyWorld> {
    if (process.getuid?.() !== 0) throw new Error("this test needs root: it makes network namespaces");
    return new ProxyWorld(await TestAuthority.create());
  }

  /** A world whose client and server are enrolled, with both agents and both proxies running. */
  static async createEnrolled(...flags: readonly string[]): Promise<ProxyWorld> {
    const world = await ProxyWorld.create();
    const { a, b, client, server } = world;
    world.publish(client, server);
    await a.certify(client);
    await b.certify(server);
    await Promise.all([a.startAgent(), b.startAgent()]);
    await Promise.all([a.startProxy(...flags), b.startProxy(...flags)]);
    await Promise.all([world.enrol(client), world.enrol(server)]);
    return world;
  }

  /** A long connection from the client to the server through both proxies, to a port where an echo serves; it has carried `words`. */
  async hold(words: string, port = 8080): Promise<Socket> {
    const socket = await dial(this.client, this.server.ip, port);
    socket.write(words);
    await once(socket, "data");
    return socket;
  }

  private constructor(authority: TestAuthority) {
    this.authority = authority;
    removeNamespaces();
    removeFolders();
    for (const [node, at] of [
      ["a", 1],
      ["b", 2],
    ] as const)
      makeNode(node, at);
    ip(
      "link",
      "add",
      "vt-proxy-ul",
      "netns",
      netnsOf("a"),
      "type",
      "veth",
      "peer",
      "name",
      "vt-proxy-ul",
      "netns",
      netnsOf("b"),
    );
    for (const [node, at, other] of [
      ["a", 1, 2],
      ["b", 2, 1],
    ] as const) {
      ip("-n", netnsOf(node), "addr", "add", `172.31.0.${at}/24`, "dev", "vt-proxy-ul");
      ip("-n", netnsOf(node), "link", "set", "vt-proxy-ul", "up");
      ip("-n", netnsOf(node), "route", "add", `10.201.${other}.0/24`, "via", `172.31.0.${other}`);
      ip("-n", netnsOf(node), "addr", "add", `fd00:172::${at}/64`, "dev", "vt-proxy-ul", "nodad");
      ip("-n", netnsOf(node), "route", "add", `fd00:201:${other}::/64`, "via", `fd00:172::${other}`);
    }
    this.client = makePod("client", "a", "10.201.1.2");
    this.plain = makePod("plain", "a", "10.201.1.3");
    this.server = makePod("server", "b", "10.201.2.2");
    this.other = makePod("other", "b", "10.201.2.3");
    this.a = new Node("a", this);
    this.b = new Node("b", this);
  }

  get pods(): readonly Pod[] {
    return [this.client, this.plain, this.server, this.other, ...this.#added];
  }

  /** One more pod, `10.201.1.x` on node a and `10.201.2.x` on node b with x from 4. It is not published yet. */
  addPod(name: string, node: "a" | "b", address: string): Pod {
    const pod = makePod(name, node, address);
    this.#added.push(pod);
    return pod;
  }

  /** Both nodes know these pods as enrolled, and the rest as not. */
  publish(...enrolled: readonly Pod[]): void {
    for (const node of [this.a, this.b]) {
      node.publish(this.pods.map((pod) => pod.workload(enrolled.includes(pod) ? "hbone" : "none")));
    }
  }

  nodeOf(pod: Pod): Node {
    return pod.node === "a" ? this.a : this.b;
  }

  /** The agent's part of enrolment: hand over, then redirect. */
  async enrol(pod: Pod): Promise<void> {
    await this.nodeOf(pod).handOver(pod);
    await this.redirect(pod);
  }

  /**
   * Cuts a pod off, and makes another of the same name, identity and address in its place. It is not enrolled yet. Nobody has
   * heard a word of the end.
   */
  async replace(pod: Pod): Promise<Pod> {
    ip("-n", netnsOf(pod.node), "link", "del", `v-${pod.name}`);
    ip("netns", "del", netnsOf(`${pod.node}-${pod.name}`));
    await this.nodeOf(pod).takeBack(pod);
    const next = { ...makePod(pod.name, pod.node, pod.ip), uid: `${pod.uid}-next` };
    ip("-n", netnsOf(pod.node), "neigh", "flush", "dev", "pods"); // as a network plugin does: it is another interface
    this.#replaced.push(next);
    return next;
  }

  async redirect(pod: Pod): Promise<void> {
    await nftRedirector.install(pod.netns, { inbound: true, dns: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const awake = setInterval(() => undefined, 1_000); // what is stopped here has nothing else that keeps a process alive
    for (const listener of listeners) listener.stop();
    for (const socket of served) socket.destroy();
    await Promise.all([this.a[Symbol.asyncDispose](), this.b[Symbol.asyncDispose]()]);
    for (const pod of [...this.pods, ...this.#replaced]) pod.netns[Symbol.dispose]();
    removeNamespaces();
    rmSync(this.folder, { recursive: true, force: true });
    clearInterval(awake);
  }
}

function ip(...args: string[]): void {
  run("ip", ...args);
}

/** The name of a node's namespace, or of a pod's. */
function netnsOf(place: string): string {
  return `${PREFIX}${place}`;
}

/** The path of a node's namespace (`a`, `b`), or of a pod's (`a-client`). */
export function netnsPath(place: string): string {
  return `/run/netns/${netnsOf(place)}`;
}

/** True for what is of a run that has ended. */
function isAbandoned(name: string): boolean {
  const pid = /^vt-proxy-(\d+)-/.exec(name)?.[1];
  return pid !== undefined && !existsSync(`/proc/${pid}`);
}

/** Those of this run, and those of runs that have ended without. */
function removeNamespaces(): void {
  for (const line of run("ip", "netns", "list").split("\n")) {
    const [name = ""] = line.split(" ");
    if (!name.startsWith(PREFIX) && !isAbandoned(name)) continue;
    spawnSync("ip", ["netns", "del", name]); // another run may be as quick with those of a third
    rmSync(`/etc/netns/${name}`, { recursive: true, force: true }); // files of its own that a test gave it
  }
}

function removeFolders(): void {
  for (const name of readdirSync(tmpdir()).filter(isAbandoned))
    rmSync(join(tmpdir(), name), { recursive: true, force: true });
}

function makeNode(node: string, at: number): void {
  const name = netnsOf(node);
  ip("netns", "add", name);
  ip("-n", name, "link", "set", "lo", "up");
  ip("-n", name, "link", "add", "pods", "type", "bridge");
  ip("-n", name, "addr", "add", `10.201.${at}.1/24`, "dev", "pods");
  ip("-n", name, "link", "set", "pods", "up");
  ip("-n", name, "addr", "add", `fd00:201:${at}::1/64`, "dev", "pods", "nodad");
  run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1");
}

function makePod(name: string, node: string, address: string): Pod {
  const netns = netnsOf(`${node}-${name}`);
  ip("netns", "add", netns);
  ip("-n", netns, "link", "set", "lo", "up");
  ip("link", "add", "eth0", "netns", netns, "type", "veth", "peer", "name", `v-${name}`, "netns", netnsOf(node));
  ip("-n", netnsOf(node), "link", "set", `v-${name}`, "master", "pods", "up");
  ip("-n", netns, "addr", "add", `${address}/24`, "dev", "eth0");
  ip("-n", netns, "link", "set", "eth0", "up");
  ip("-n", netns, "route", "add", "default", "via", address.replace(/\d+$/, "1"));
  const [, , at = "", last = ""] = address.split(".");
  const ip6 = `fd00:201:${at}::${last}`;
  ip("-n", netns, "addr", "add", `${ip6}/64`, "dev", "eth0", "nodad");
  ip("-n", netns, "route", "add", "default", "via", `fd00:201:${at}::1`);
  return {
    name,
    uid: `uid-${name}`,
    node,
    ip: address,
    ip6,
    netns: openNetns(`/run/netns/${netns}`),
    identity: formatSpiffeId({ trustDomain: "cluster.local", namespace: "shop", serviceAccount: name }),
    workload: (tunnelProtocol) => testWorkload(name, address, { tunnelProtocol, node, addresses: [parseIp(address)] }),
  };
}

/** One node: an agent in this process, and a real proxy beside it. */
export class Node implements AsyncDisposable {
  readonly name: string;
  readonly cache = new ResourceCache();
  /** What the control plane answers when it is asked for what is not in the cache; a rejection is no answer. */
  onDemand: (name: string) => Promise<unknown> = () => Promise.resolve();
  readonly certificates = new Map<string, TlsIdentity>();
  readonly #world: ProxyWorld;
  readonly #pods = new Map<string, Pod>();
  readonly #names = new Set<string>();
  readonly #watchers = new Set<() => void>();
  #server: RpcServer | undefined;
  #xds: XdsServer | undefined;
  #zds: ZdsServer | undefined;
  #version = 0;
  #proxy: ChildProcess | undefined;
  /** The node's ports of the running proxy begin here: two at once need different ones. */
  #portsFrom = 15_000;
  readonly records: FlowRecord[] = [];
  /** More of the proxy's environment. */
  env: Readonly<Record<string, string>> = {};
  /** False before the proxy's start: its records go nowhere, so that reading them costs nothing. */
  readsRecords = true;
  /** Before the proxy's start: where it writes, instead of here. */
  output: { readonly out: number; readonly error: number | "pipe" } | undefined;
  log = "";

  constructor(name: string, world: ProxyWorld) {
    this.name = name;
    this.#world = world;
  }

  get #agentSocket(): string {
    return join(this.#world.folder, `agent-${this.name}.sock`);
  }

  get #zdsSocket(): string {
    return join(this.#world.folder, `zds-${this.name}.sock`);
  }

  /** The node's proxy knows this and nothing else, and has it in force. */
  async know(addresses: readonly Address[]): Promise<void> {
    const names = new Set(addresses.map((address) => addressName(address)));
    const others = [...this.#names].filter((name) => !names.has(name));
    await this.impose(addresses, others);
  }

  /** As {@link publish}, and waits until it is in force. */
  async impose(addresses: readonly Address[], removes: readonly string[] = []): Promise<void> {
    await this.untilInForce(this.publish(addresses, removes));
  }

  /** Resolves when the node's proxy has what `publish` said. */
  async untilInForce(revision: number, timeoutMs = PATIENCE_MS): Promise<void> {
    await this.#xds?.whenAcknowledged({ typeUrl: TYPE_ADDRESS, revision }, AbortSignal.timeout(timeoutMs));
  }

  publish(addresses: readonly Address[], removes: readonly string[] = []): number {
    for (const name of removes) this.#names.delete(name);
    for (const address of addresses) this.#names.add(addressName(address));
    const upserts = addresses.map((address) => ({
      typeUrl: TYPE_ADDRESS,
      name: addressName(address),
      version: String(++this.#version),
      aliases: address.addresses.map((ip) => (typeof ip === "string" ? `/${ip}` : `${ip.network}/${ip.address}`)),
      value: encodeAddress(address),
    }));
    return this.cache.apply({ typeUrl: TYPE_ADDRESS, upserts, removes });
  }

  /** Gives a pod's identity a certificate: its own, or another one to see what happens. */
  async certify(pod: Pick<Pod, "identity">, identity?: TlsIdentity): Promise<void> {
    this.certificates.set(pod.identity, identity ?? (await this.#world.authority.identity(pod.identity)));
    for (const watcher of this.#watchers) watcher();
  }

  /** Starts the agent: addresses, certificates, ZDS. */
  async startAgent(): Promise<void> {
    const xds = new XdsServer({
      cache: this.cache,
      log: silentLog(),
      onDemand: async (_type, name) => this.onDemand(name),
    });
    this.#xds = xds;
    this.#server = new RpcServer({
      name: "agent",
      listen: { unix: this.#agentSocket },
      routes: (router) => {
        xds.routes(router);
        this.#certificateRoutes(router);
      },
      log: silentLog(),
    });
    await this.#server.start(new AbortController().signal);
    const cells = new CellSet(enrolmentMetrics);
    this.#zds = new ZdsServer({ path: this.#zdsSocket, clock, log: silentLog(), cells });
    await this.#zds.start(new AbortController().signal);
    for (const pod of this.#pods.values()) this.#zds.declare(zdsPod(pod));
    this.#zds.open();
  }

  async stopAgent(): Promise<void> {
    await this.#zds?.drain(0);
    this.#zds = undefined;
    this.#xds?.close();
    await this.#server?.drain(0);
  }

  /** Starts the proxy. Resolves when it is ready. */
  async startProxy(...flags: string[]): Promise<void> {
    this.launchProxy(...flags);
    await this.untilReady();
  }

  /**
   * Starts another proxy beside the one that runs, which is told to stop once the new one is ready, as the upgrade of a
   * DaemonSet with `maxSurge: 1` does. Resolves with the old one's end.
   */
  async upgradeProxy(...flags: string[]): Promise<{ readonly exitCode: Promise<number | null> }> {
    const old = this.#proxy;
    this.#portsFrom = this.#portsFrom === 15_000 ? 15_100 : 15_000;
    await this.startProxy(...flags);
    return { exitCode: stopChild(old, "SIGTERM") };
  }

  /** Starts a further proxy that is expected to end by itself; resolves with its exit code. */
  async tryProxy(...flags: string[]): Promise<number | null> {
    const running = this.#proxy;
    const child = this.launchProxy(...flags);
    this.#proxy = running;
    return new Promise((resolve) => child.once("exit", resolve));
  }

  /** Starts the proxy, and waits for nothing. It dies with this process, however that dies. */
  launchProxy(...flags: string[]): ChildProcess {
    const args = [
      "netns",
      "exec",
      netnsOf(this.name),
      process.execPath,
      "--conditions=veil-source",
      "--disable-warning=DEP0111",
    ];
    args.push(join(root, "src/main/veil.ts"), "proxy", "--node", this.name, "--threads", "1");
    args.push(
      "--agent-socket",
      this.#agentSocket,
      "--zds-socket",
      this.#zdsSocket,
      "--cluster-ranges",
      "10.201.0.0/16",
      ...["admin", "metrics", "ready"].flatMap((name, i) => [`--${name}-port`, String(this.#port([0, 20, 21][i]))]),
      ...flags,
    );
    const cache = join(homedir(), ".cache/veil/compile");
    const env = { ...process.env, ...this.env, NODE_COMPILE_CACHE: cache }; // as the start script does
    const child = spawn("setpriv", ["--pdeathsig", "KILL", "ip", ...args], {
      stdio: ["ignore", this.output?.out ?? (this.readsRecords ? "pipe" : "ignore"), this.output?.error ?? "pipe"],
      env,
    });
    this.#proxy = child;
    if (child.stdout !== null)
      createInterface({ input: child.stdout }).on("line", (line) => {
        const record = findAccessRecord(line);
        if (record !== undefined) this.records.push(record);
      });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (this.log += text));
    return child;
  }

  #port(offset = 0): number {
    return this.#portsFrom + offset;
  }

  async untilReady(): Promise<number> {
    return until(
      `proxy of node ${this.name} ready\n${this.log}`,
      async () => (await this.get(this.#port(21), "/healthz/ready")) === "ready\n",
    );
  }

  /** The proxy that was started last: its supervisor. */
  get proxy(): ChildProcess | undefined {
    return this.#proxy;
  }

  /** The supervisor's pid. */
  get proxyPid(): number {
    return this.#proxy?.pid ?? 0;
  }

  /** The supervisor's children: the one that carries the data, then the one that waits to take over. */
  get childPids(): readonly number[] {
    const { stdout } = spawnSync("pgrep", ["-P", String(this.proxyPid)], { encoding: "utf8" });
    const pids = stdout.split("\n").filter(Boolean).map(Number);
    return pids.toSorted((a, b) => startTicks(a) - startTicks(b)); // numbers begin anew one day
  }

  /** The pid of the process that carries the data. */
  get dataPathPid(): number {
    return this.childPids[0] ?? 0;
  }

  /** kill -9 of the process that carries the data. Resolves, when the next one is ready, with how long that took. */
  async restartDataPath(): Promise<number> {
    const before = this.dataPathPid;
    process.kill(before, "SIGKILL");
    const start = performance.now();
    await until("another data path process", () => this.dataPathPid !== before && this.dataPathPid > 0);
    await this.untilReady();
    return performance.now() - start;
  }

  async stopProxy(signal: NodeJS.Signals = "SIGTERM"): Promise<number | null> {
    return stopChild(this.#proxy, signal);
  }

  /** Asks the admin port of the running proxy for something. */
  async post(path: string): Promise<string> {
    return this.get(this.#port(), path, "POST");
  }

  /** A page of the proxy; empty when nobody answers. */
  async get(port: number, path: string, method = "GET"): Promise<string> {
    const netns = openNetns(netnsPath(this.name));
    try {
      const tcp = await connectTcp({ netns, ip: "127.0.0.1", port, timeoutMs: PATIENCE_MS, clock });
      const socket = tcp.toNetSocket();
      socket.write(`${method} ${path} HTTP/1.0\r\n\r\n`);
      const text = await readAll(socket);
      return text.slice(text.indexOf("\r\n\r\n") + 4);
    } catch {
      return "";
    } finally {
      netns[Symbol.dispose]();
    }
  }

  /** ZDS add. Rejects with the proxy's words when it refuses; without agent or proxy it is for the next snapshot. */
  async handOver(pod: Pod): Promise<void> {
    this.#pods.set(pod.uid, pod);
    if (this.#zds?.connections === 0) this.#zds.declare(zdsPod(pod));
    else await this.#zds?.add(zdsPod(pod), AbortSignal.timeout(PATIENCE_MS));
  }

  /** ZDS del. */
  async takeBack(pod: Pod): Promise<void> {
    this.#pods.delete(pod.uid);
    await this.#zds?.remove(pod.uid, AbortSignal.timeout(PATIENCE_MS));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stopProxy("SIGKILL");
    await this.stopAgent();
  }

  #certificateRoutes(router: ConnectRouter): void {
    router.service(WorkloadCertificates, { watch: (requests) => this.#watch(requests) });
  }

  async *#watch(requests: AsyncIterable<WatchRequest>) {
    let wanted: readonly string[] = [];
    let change = Promise.withResolvers<void>();
    const sent = new Map<string, TlsIdentity>();
    const state = { isOver: false };
    const wake = (): void => change.resolve();
    this.#watchers.add(wake);
    const follow = async (): Promise<void> => {
      try {
        for await (const { identities } of requests) {
          wanted = identities;
          for (const id of sent.keys()) if (!identities.includes(id)) sent.delete(id); // asked for again, it is sent again
          wake();
        }
      } finally {
        state.isOver = true;
        wake();
      }
    };
    follow().catch(() => undefined);
    try {
      while (!state.isOver) {
        change = Promise.withResolvers<void>();
        for (const id of wanted) {
          const identity = this.certificates.get(id);
          if (identity === undefined || sent.get(id) === identity) continue;
          sent.set(id, identity);
          const { chainPem, keyPem, rootsPem, notAfterMs } = identity;
          const value = { chainPem, keyPem, rootsPem, notBeforeMs: 0n, notAfterMs: BigInt(notAfterMs) };
          yield create(CertificateUpdateSchema, { identity: id, state: { case: "certificate", value } });
        }
        if (!state.isOver) await change.promise;
      }
    } finally {
      this.#watchers.delete(wake);
    }
  }
}

function zdsPod({ uid, name, netns }: Pod): ZdsPod {
  return { uid, name, namespace: "shop", serviceAccount: name, netns };
}

/** Sends a signal, and resolves with the exit code at the end. */
async function stopChild(child: ChildProcess | undefined, signal: NodeJS.Signals): Promise<number | null> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null;
  const gone = new Promise<number | null>((resolve) => child.once("exit", resolve));
  child.kill(signal);
  return gone;
}

const listeners = new Set<TcpListener>();
/** What they serve: a pod that was cut off hears of no end. */
const served = new Set<Socket>();

/** A server in a pod, until the world ends; `serve` gets each connection and who it says it is. */
export function listen(pod: Pod, port: number, serve: (socket: Socket, from: string) => void): void {
  const listener = listenTcp({ netns: pod.netns, ip: "::", port }, (tcp) => {
    const from = tcp.remote.ip;
    const socket = tcp.toNetSocket();
    socket.on("error", () => undefined);
    served.add(socket);
    socket.on("close", () => served.delete(socket));
    serve(socket, from);
  });
  listeners.add(listener);
}

/** A connection out of a pod. */
export async function dial(pod: Pod, to: string, port: number): Promise<Socket> {
  const tcp = await connectTcp({ netns: pod.netns, ip: to, port, timeoutMs: PATIENCE_MS, clock });
  const socket = tcp.toNetSocket();
  socket.on("error", () => undefined);
  return socket;
}

/** Everything until the other end ends. Rejects when it is reset. */
export async function readAll(socket: Socket): Promise<string> {
  const parts: Buffer[] = [];
  return new Promise((resolve, reject) => {
    socket.on("data", (part) => parts.push(part));
    socket.once("end", () => {
      resolve(Buffer.concat(parts).toString());
    });
    socket.once("error", reject);
    socket.once("close", () => {
      reject(new Error("closed without an end"));
    });
  });
}

/** Says `words` and hears what comes back until the end: `refused` when the connection is reset instead. */
export async function say(pod: Pod, to: { ip: string; port: number }, words: string): Promise<string> {
  try {
    const socket = await dial(pod, to.ip, to.port);
    socket.end(words);
    return await readAll(socket);
  } catch {
    return "refused";
  }
}
