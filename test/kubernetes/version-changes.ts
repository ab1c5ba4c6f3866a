import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { formatHostPort } from "#base/ip";
import { readTls, tcpStreams, type Packet } from "#capture";
import type { Pod } from "#kube";
import { eventually } from "../netns/harness.ts";
import {
  assertFlawless,
  clearStreams,
  LOAD_PORT,
  LOAD_PROGRAM,
  runLoad,
  startLoad,
  TUNNEL_PORT,
  type LoadResult,
} from "../netns/mesh.ts";
import { startCluster, type TestCluster } from "./cluster.ts";
import { BUSYBOX_IMAGE } from "./images.ts";
import { enterPodNetwork } from "./pod-network.ts";
import { ProxyLogs, startMs, type LogLine, type ProxyLog } from "./proxy-logs.ts";
import { bringReleases, CONTROLLER_ADDRESS, helm, rolledOut, VEIL_NAMESPACE } from "./veil.ts";

/** This checkout's version, and the next minor one: what it is called after an upgrade. */
const { version: OLD } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as {
  version: string;
};
const NEW = OLD.replace(/^(\d+)\.(\d+).*$/, (_, major: string, minor: string) => `${major}.${Number(minor) + 1}.0`);
const GRACE_SECONDS = 15;
/** What a proxy makes of it: 5 s are for itself, and some moments for the end of what it is told. */
const LEAST_DRAIN_MS = (GRACE_SECONDS - 6) * 1000;
/** Timers, and times in whole milliseconds. */
const TOLERANCE_MS = 50;
/** So long after a proxy has begun to drain, next to all new connections are the next one's: who has not heard of it may be late. */
const HEARD_MS = 1_000;
const MOST_LATE = { count: 10, share: 0.1 };
const LONG = 4;
/** All roles start anew, beside the load. */
const CHANGE_MS = 300_000;

/** Pods, and what runs programs in their networks. */
const PLACES = {
  client: { namespace: "shop", node: "node1" },
  talker: { namespace: "shop", node: "node1" },
  server: { namespace: "shop", node: "node2" },
  reader: { namespace: "plain", node: "node1" },
  board: { namespace: "plain", node: "node2" },
} as const;
type Name = keyof typeof PLACES;

interface Place {
  readonly pod: Pod;
  readonly enter: readonly string[];
}

/** What came of a change of versions, and of what went on meanwhile. */
export interface Change {
  /** Until all that was asked for runs, and what it replaces is gone. */
  readonly tookMs: number;
  readonly load: LoadResult;
  readonly talk: LoadResult;
  readonly packets: readonly Packet[];
  /** Of the proxies that went, and of those that came. */
  readonly before: readonly ProxyLog[];
  readonly after: readonly ProxyLog[];
}

/** An installation under load, whose version changes. */
export class VersionChanges implements AsyncDisposable {
  readonly #cluster: TestCluster;
  readonly #newChart: string;
  readonly #places: Readonly<Record<Name, Place>>;
  readonly #servers: readonly (() => void)[];
  /** New connections a second that are asked for. */
  rate = 0;
  /** The same load while nothing changes. */
  #twin: LoadResult | undefined;

  private constructor(parts: { cluster: TestCluster; newChart: string; places: Readonly<Record<Name, Place>> }) {
    this.#cluster = parts.cluster;
    this.#newChart = parts.newChart;
    this.#places = parts.places;
    this.#servers = [parts.places.server, parts.places.board].map(({ enter }) => serveLoad(enter));
  }

  /**
   * Brings up a cluster with the old version; `share` is the load's part of what the pair of pods can carry, which is measured.
   * `from`: the checkout of the old version, with its modules; without it the old version is this checkout's, under another name.
   */
  static async start(share: number, from?: string): Promise<VersionChanges> {
    const cluster = await startCluster();
    try {
      const newChart = await install(cluster, from);
      const changes = new VersionChanges({ cluster, newChart, places: await findPlaces(cluster) });
      await changes.#measure(share);
      return changes;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const end of this.#servers) end();
    await this.#cluster[Symbol.asyncDispose]();
  }

  /** From the old version to the new one. */
  async up(): Promise<Change> {
    return this.#change({ from: OLD, to: NEW }, ["upgrade", "veil", this.#newChart, "--reset-then-reuse-values"]);
  }

  /** Back again. */
  async down(): Promise<Change> {
    return this.#change({ from: NEW, to: OLD }, ["rollback", "veil", "1"]);
  }

  get twin(): LoadResult {
    assert.ok(this.#twin);
    return this.#twin;
  }

  async #measure(share: number): Promise<void> {
    const { client, server } = this.#places;
    await (await startLoad(client.enter, server.pod, ["--rate", "10"])).stop(); // it serves
    await runLoad(client.enter, server.pod, ["--closed", "8", "--seconds", "2"]); // it has been compiled
    const { short } = await runLoad(client.enter, server.pod, ["--closed", "8", "--seconds", "2"]);
    this.rate = Math.ceil((short.done / 2) * share);
    this.#twin = await runLoad(client.enter, server.pod, ["--rate", String(this.rate), "--seconds", "6"]);
  }

  /** Changes versions while connections come and go, two end by themselves while a proxy drains, and four stay. */
  async #change(tags: { from: string; to: string }, command: readonly string[]): Promise<Change> {
    const { client, talker, server, reader, board } = this.#places;
    const ip = ({ pod }: Place): string => pod.status?.podIP ?? "";
    const inClear = `host ${ip(client)} and not port ${TUNNEL_PORT}`; // its tunnels are too many to be kept
    const filter = `tcp and (host ${ip(talker)} or host ${ip(reader)} or (${inClear}))`;
    await using logs = new ProxyLogs(this.#cluster);
    await using capture = await this.#cluster.captureNode("node1", { filter });
    const plain = await startLoad(reader.enter, board.pod, ["--rate", "2"]);
    const talk = await startLoad(talker.enter, server.pod, ["--rate", "2", "--long", String(LONG)]);
    const leaver = await startLoad(talker.enter, server.pod, ["--rate", "1", "--long", "2"]);
    const load = await startLoad(client.enter, server.pod, ["--rate", String(this.rate)]);
    const startedMs = performance.now();
    await helm(this.#cluster, ...command);
    await eventually(
      "a proxy to drain",
      () => logs.of(tags.from).some(({ lines }) => drainOf(lines) !== undefined) || undefined,
      CHANGE_MS,
    );
    assertFlawless(await leaver.stop(), 2); // at once: its connections have until the deadline
    await rolledOut(this.#cluster);
    await this.#cluster.readyPods(VEIL_NAMESPACE, "app=ztunnel", 2);
    const tookMs = performance.now() - startedMs;
    const { short } = await load.until("a look", () => true);
    await load.until("connections after it", (now) => now.short.done > short.done + 20);
    const results = { tookMs, load: await load.stop(), talk: await talk.stop() };
    assertFlawless(await plain.stop(), 0);
    await eventually(
      "records of the new proxies",
      () => logs.of(tags.to).every(({ lines }) => recordsOf(lines).length > 0) || undefined,
    );
    return { ...results, packets: await capture.stop(), before: logs.of(tags.from), after: logs.of(tags.to) };
  }

  /** Asserts that nobody has noticed: neither whoever connects, nor whoever listens between the nodes. */
  assertUnnoticed(change: Change): void {
    const { load, talk, before, after } = change;
    const reasons = [...before, ...after].flatMap(({ pod, lines }) =>
      recordsOf(lines).flatMap((line) => (line.error === undefined ? [] : [{ pod, ...line }])),
    );
    const failed = JSON.stringify([load, reasons.slice(0, 20)]);
    assert.ok(failuresOf(load) <= failuresOf(this.twin), failed);
    assert.deepEqual([load.corrupt, talk.corrupt], [0, 0]);
    assert.deepEqual([before.length, after.length], [2, 2]);
    assert.deepEqual(talk.failures, { "long:ECONNRESET": LONG, "long:closed": LONG }, failed);
    assertHandedOver(change);
    this.#assertUnread(change);
  }

  #assertUnread({ packets }: Change): void {
    const { client, talker, server, reader, board } = this.#places;
    assert.ok(clearStreams(packets, reader.pod, board.pod).length > 0, "the capture shows what is in clear");
    for (const { pod } of [client, talker]) assert.deepEqual(clearStreams(packets, pod, server.pod), []);
    const fresh = openers(packets);
    const tunnels = tcpStreams(packets).filter(({ from, to }) => from === tunnelEnd(server) && fresh.has(to));
    assert.ok(tunnels.length > 0, "sessions with the next proxies began while it was captured");
    for (const tunnel of tunnels) {
      const { wellFormed, version } = readTls(tunnel);
      assert.deepEqual({ wellFormed, version }, { wellFormed: true, version: "TLS 1.3" });
    }
  }

  /** In words. */
  figures({ load, tookMs }: Change): string {
    const { twin, rate } = this;
    const all = `${load.short.done} connections in ${(tookMs / 1000).toFixed(0)} s, ${rate} a second asked for`;
    return `${all}: ${failuresOf(load)} failed (twin: ${failuresOf(twin)} of ${twin.short.done}), p99 ${load.latencyMs.p99} ms (${twin.latencyMs.p99} ms)`;
  }
}

function tunnelEnd({ pod }: Place): string {
  return formatHostPort(pod.status?.podIP ?? "", TUNNEL_PORT);
}

/** The ends from which connections were opened. */
function openers(packets: readonly Packet[]): ReadonlySet<string> {
  const SYN = 0x02;
  return new Set(
    packets.filter(({ flags }) => (flags & SYN) !== 0).map((one) => formatHostPort(one.source, one.sourcePort)),
  );
}

/** Installs the old version, with the pods of the load; answers the new one's chart. */
async function install(cluster: TestCluster, from: string | undefined): Promise<string> {
  const old = from === undefined ? { version: OLD } : { version: OLD, checkout: from };
  const [chart = "", next = ""] = await bringReleases(cluster, old, { version: NEW });
  const grace = `proxy.terminationGracePeriodSeconds=${GRACE_SECONDS}`;
  const address = `controller.clusterIP=${CONTROLLER_ADDRESS}`;
  await helm(cluster, "install", "veil", chart, "--set", `${address},${grace},proxy.logFormat=json`);
  await rolledOut(cluster);
  await cluster.apply([
    namespaceOf("shop", { "istio.io/dataplane-mode": "ambient" }),
    namespaceOf("plain"),
    ...Object.entries(PLACES).map(([name, place]) => podOf(name, place)),
  ]);
  return next;
}

async function findPlaces(cluster: TestCluster): Promise<Record<Name, Place>> {
  const find = async (name: Name): Promise<Place> => {
    const pod = await cluster.readyPod(PLACES[name].namespace, name);
    return { pod, enter: await enterPodNetwork(cluster, pod) };
  };
  return {
    client: await find("client"),
    talker: await find("talker"),
    server: await find("server"),
    reader: await find("reader"),
    board: await find("board"),
  };
}

/** Old connections end with the old proxies, at their deadlines and not before; new ones are the new proxies' from then on. */
function assertHandedOver({ before, after }: Change): void {
  const early = before.flatMap(({ lines }) => {
    const { atMs = 0, deadlineMs = 0 } = drainOf(lines) ?? {};
    assert.ok(deadlineMs >= LEAST_DRAIN_MS, `${deadlineMs} ms to drain`);
    const drained = recordsOf(lines).filter(({ reason }) => reason === "drained");
    return drained.map(({ time }) => atMs + deadlineMs - Date.parse(time));
  });
  assert.equal(early.length, LONG, "those that stay are reset by the first proxy that goes");
  assert.ok(Math.max(...early) < TOLERANCE_MS, `${early.join(", ")} ms before its deadline`);
  for (const { pod, node, lines } of before) {
    const { atMs = 0, deadlineMs = 0 } = drainOf(lines) ?? {};
    const isLate = (record: LogLine): boolean =>
      startMs(record) > atMs + HEARD_MS && startMs(record) < atMs + deadlineMs;
    const late = recordsOf(lines).filter(isLate);
    const next = recordsOf(after.find((one) => one.node === node)?.lines ?? []);
    const times = late.map((record) => `${record.direction} ${startMs(record) - atMs} ms`).join(", ");
    assert.ok(
      next.some((record) => startMs(record) > atMs),
      `the next proxy of ${node} takes new connections`,
    );
    const beside = next.filter(isLate).length;
    const most = MOST_LATE.count + beside * MOST_LATE.share;
    assert.ok(late.length <= most, `${pod}, beside ${beside} of the next one: ${times}`);
  }
}

/** When a proxy said that it takes no new connections, and how long others may go on. */
function drainOf(lines: readonly LogLine[]): { atMs: number; deadlineMs: number } | undefined {
  const line = lines.find(({ msg }) => msg?.startsWith("draining"));
  return line === undefined ? undefined : { atMs: Date.parse(line.time), deadlineMs: line.deadlineMs ?? 0 };
}

function recordsOf(lines: readonly LogLine[]): LogLine[] {
  return lines.filter(({ message }) => message !== undefined);
}

function failuresOf({ failures }: LoadResult): number {
  return Object.values(failures).reduce((sum, count) => sum + count, 0);
}

/** Starts the load's server; the result ends it. */
function serveLoad(enter: readonly string[]): () => void {
  const program = [process.execPath, LOAD_PROGRAM, "server", "--port", String(LOAD_PORT)];
  const child = spawn("setpriv", ["--pdeathsig", "KILL", ...enter, ...program], { stdio: "ignore" });
  return () => child.kill("SIGKILL");
}

function namespaceOf(name: string, labels: Record<string, string> = {}): object {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

function podOf(name: string, { namespace, node }: (typeof PLACES)[Name]): object {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { namespace, name },
    spec: { nodeName: node, terminationGracePeriodSeconds: 0, containers: [{ name: "main", image: BUSYBOX_IMAGE }] },
  };
}
