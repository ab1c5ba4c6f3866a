import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { APP_PORTS, type Pair, type Place } from "./place.ts";
import { cpuSeconds, inside, memoryBytes, run, start, untilQuiet } from "./processes.ts";

/** Figures of one measurement, by name; the first is the row's own. */
export type Figures = Readonly<Record<string, number>>;

/** One row of the table. */
export interface Row {
  readonly title: string;
  /** What the figures are, in the order of the columns: name and unit. */
  readonly figures: Readonly<Record<string, string>>;
  /** Whether more of the first figure is better. */
  readonly moreIsBetter: boolean;
  /** Measured so often at most, whatever `--runs` says: it takes long and scatters little. */
  readonly mostRuns?: number;
  /** Measured in a world of its own. */
  readonly isAlone?: boolean;
  /** Undefined: the variant has no such thing. */
  measure(place: Place, seconds: number): Promise<Figures | undefined>;
}

const CPU_FIGURES = { clientCpu: "client", serverCpu: "server" } as const;
const IDLE_CONNECTIONS = 9_500;
/** So long nothing moves on them before they count: who opened them may have left garbage. */
const IDLE_MS = 15_000;
const BUSY_CONNECTIONS = 1_000;
const TRICKLE_BYTES_PER_SECOND = 10_000;
const HANDSHAKES_AT_A_TIME = 8;
const OTHER_PROCESSES = 2;

/** The middle one, or the mean of the two in the middle. */
export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2;
}

/** Runs one of this folder's programs in a namespace; its last line is JSON. */
function program(netns: string, name: string, words: readonly (string | number)[]): readonly string[] {
  const file = new URL(name, import.meta.url).pathname;
  return [...inside(netns), process.execPath, file, ...words.map(String)];
}

async function withCpu(
  place: Place,
  work: () => Promise<Figures>,
  units: (figures: Figures) => number,
): Promise<Figures> {
  const before = [cpuSeconds(place.client), cpuSeconds(place.server)] as const;
  const figures = await work();
  const per = units(figures);
  const [clientCpu, serverCpu] = [
    (cpuSeconds(place.client) - before[0]) / per,
    (cpuSeconds(place.server) - before[1]) / per,
  ];
  const { amount: _, ...rest } = figures;
  return { ...rest, cpu: clientCpu + serverCpu, clientCpu, serverCpu };
}

function first<T>(items: readonly T[]): T {
  const [item] = items;
  if (item === undefined) throw new Error("a place without pods");
  return item;
}

/** iperf3 takes one test at a time, and a moment between two. */
async function iperf(pair: Pair, seconds: number, words: readonly string[]): Promise<{ bytes: number; gbps: number }> {
  const command = ["iperf3", "-c", pair.serverIp, "-p", String(APP_PORTS.bytes), "-t", String(seconds), "-J", ...words];
  for (let tries = 0; ; tries++) {
    const text = await run([...inside(pair.clientNetns), ...command]).catch((error: Error) => error.message);
    const [, json = ""] = /(\{[\s\S]*\})/.exec(text) ?? [];
    const report = JSON.parse(json || "{}") as { end?: { sum_received?: { bytes: number; bits_per_second: number } } }; // iperf3's
    const received = report.end?.sum_received;
    if (received !== undefined && received.bytes > 0)
      return { bytes: received.bytes, gbps: received.bits_per_second / 1e9 };
    if (tries === 10) throw new Error(`iperf3: ${text.slice(-500)}`);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

function bytesRow(title: string, streams: number, words: readonly string[]): Row {
  return {
    title,
    figures: { gbps: "Gb/s", cpu: "CPU-s/GB", ...CPU_FIGURES },
    moreIsBetter: true,
    measure: async (place, seconds) =>
      withCpu(
        place,
        async () => {
          const pairs = place.pairs.slice(0, streams);
          const each = ["-P", String(streams / pairs.length), ...words];
          const all = await Promise.all(pairs.map(async (pair) => iperf(pair, seconds, each)));
          const sum = (pick: (one: (typeof all)[number]) => number): number =>
            all.reduce((total, one) => total + pick(one), 0);
          return { gbps: sum(({ gbps }) => gbps), amount: sum(({ bytes }) => bytes) / 1e9 };
        },
        ({ amount = Number.NaN }) => amount,
      ),
  };
}

/** wrk, on all pairs at once. Latencies in µs, the worst of the pairs. */
async function wrk(
  place: Place,
  connections: number,
  { seconds, words = [] }: { seconds: number; words?: readonly string[] },
): Promise<Figures> {
  const pairs = place.pairs.slice(0, connections);
  const one = async (pair: Pair): Promise<{ count: number; p50: number; p99: number }> => {
    const url = `http://${pair.serverIp}:${APP_PORTS.http}/`;
    const command = [
      "wrk",
      "-t",
      "1",
      "-c",
      String(connections / pairs.length),
      "-d",
      `${seconds}s`,
      "--latency",
      ...words,
      url,
    ];
    const text = await run([...inside(pair.clientNetns), ...command]);
    const latency = (share: string): number => {
      const [, value = "", unit = ""] = new RegExp(`${share}%\\s+([\\d.]+)(us|ms|s)`).exec(text) ?? [];
      return Number(value) * (unit === "s" ? 1e6 : unit === "ms" ? 1e3 : 1);
    };
    return { count: Number(/(\d+) requests in/.exec(text)?.[1]), p50: latency("50"), p99: latency("99") };
  };
  const all = await Promise.all(pairs.map(one));
  const amount = all.reduce((sum, { count }) => sum + count, 0);
  const worst = (pick: (one: (typeof all)[number]) => number): number => Math.max(...all.map(pick));
  return {
    perSecond: amount / seconds,
    p50: worst(({ p50 }) => p50),
    p99: worst(({ p99 }) => p99),
    amount: amount / 1e6,
  };
}

/** A new connection for each request. */
const EACH_CLOSES = ["-H", "Connection: close"];

interface WrkOptions {
  readonly words?: readonly string[];
  /**
   * How long a place has the load before it is measured for the first time: its sessions are open then, its code is compiled. Before each
   * further time it has a second of it: others have had their turn in between, and what idleness costs is another question.
   */
  readonly warmUpSeconds?: number;
}

function wrkRow(title: string, connections: number, { words = [], warmUpSeconds = 2 }: WrkOptions = {}): Row {
  const warm = new WeakSet<Place>();
  return {
    title,
    figures: { perSecond: "per second", p50: "p50 µs", p99: "p99 µs", cpu: "CPU µs each", ...CPU_FIGURES },
    moreIsBetter: true,
    measure: async (place, seconds) => {
      await wrk(place, connections, { seconds: warm.has(place) ? 1 : warmUpSeconds, words });
      warm.add(place);
      return withCpu(
        place,
        async () => wrk(place, connections, { seconds, words }),
        ({ amount = Number.NaN }) => amount,
      );
    },
  };
}

/** The same beside processes that would take all there is of the machine: the kernel shares it among all. */
function busyMachineRow(title: string, connections: number): Row {
  const requests = wrkRow(title, connections);
  return {
    title,
    figures: { p99: "p99 µs", p50: "p50 µs", perSecond: "per second", cpu: "CPU µs each", ...CPU_FIGURES },
    moreIsBetter: false,
    measure: async (place, seconds) => {
      const others = Array.from({ length: OTHER_PROCESSES }, () => start([process.execPath, "-e", "for (;;);"]));
      try {
        return await requests.measure(place, seconds);
      } finally {
        for (const { pid = 0 } of others) process.kill(-pid, "SIGKILL");
      }
    },
  };
}

const LATENCIES = { p50: "p50 µs", p99: "p99 µs", p999: "p99.9 µs" } as const;

/** Requests at a steady rate; variants are compared by the latency that is named first. Warmed up as rows of wrk are. */
function latencyRow(connections: number, perSecond: number, judge: keyof typeof LATENCIES): Row {
  const warm = new WeakSet<Place>();
  return {
    title: `latency at ${perSecond} requests a second, ${connections} connections`,
    figures: { [judge]: LATENCIES[judge], ...LATENCIES, cpu: "CPU µs each", ...CPU_FIGURES },
    moreIsBetter: false,
    measure: async (place, seconds) => {
      const pair = first(place.pairs);
      const words = ["rate", pair.serverIp, APP_PORTS.http, connections, perSecond, seconds + 1];
      await wrk(place, connections, { seconds: warm.has(place) ? 1 : 2 });
      warm.add(place);
      return withCpu(
        place,
        async () => {
          const { p50, p99, p999, requests } = JSON.parse(
            await run(program(pair.clientNetns, "load.ts", words)),
          ) as Record<string, number>; // of load.ts
          return {
            p50: p50 ?? Number.NaN,
            p99: p99 ?? Number.NaN,
            p999: p999 ?? Number.NaN,
            amount: (requests ?? 0) / 1e6,
          };
        },
        ({ amount = Number.NaN }) => amount,
      );
    },
  };
}

const handshakes: Row = {
  mostRuns: 3,
  title: "full handshakes that the server's proxy takes, each of another identity",
  figures: { perCore: "per second and core", perSecond: "per second, the load's own cost included" },
  moreIsBetter: true,
  measure: async ({ pairs, server, tunnel }, seconds) => {
    if (tunnel === undefined) return undefined;
    const pair = first(pairs);
    const words = [pair.serverIp, tunnel.port, HANDSHAKES_AT_A_TIME, seconds, tunnel.identitiesFile];
    const before = cpuSeconds(server);
    const text = await run(program(tunnel.netns, "handshakes.ts", words));
    const { made = 0, seconds: took = 1 } = JSON.parse(text) as Record<string, number>; // of handshakes.ts
    return { perCore: made / (cpuSeconds(server) - before), perSecond: made / took };
  },
};

/** A program of ours that does its part until it is told to end. Resolves once it has said its line. */
async function background(words: readonly string[]): Promise<{ child: ChildProcess; line: string }> {
  const [command = "", ...args] = words;
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
  const line = await Promise.race([
    once(child.stdout, "data").then(([data]) => String(data)),
    once(child, "exit").then(() => {
      throw new Error(`${words.join(" ")}: it ended`);
    }),
  ]);
  return { child, line };
}

async function end({ child }: { child: ChildProcess }): Promise<void> {
  const ended = once(child, "exit");
  child.stdin?.end();
  await ended;
}

type BothSides = readonly [client: number, server: number];

function memoryOf({ client, server }: Place): BothSides {
  return [memoryBytes(client), memoryBytes(server)];
}

/** At rest, after some requests. */
async function memoryAtRest(place: Place): Promise<BothSides> {
  await wrk(place, FEW_CONNECTIONS, { seconds: 2 });
  await untilQuiet([...place.client, ...place.server]);
  return memoryOf(place);
}

/** While so many connections are busy: the middle one of some looks. */
async function memoryUnderLoad(place: Place, connections: number): Promise<BothSides> {
  const load = wrk(place, connections, { seconds: 8 });
  const looks: BothSides[] = [];
  for (const _ of [1, 2, 3, 4, 5]) {
    await Promise.race([load, new Promise((resolve) => setTimeout(resolve, 1_200))]);
    looks.push(memoryOf(place));
  }
  await load;
  return looks.toSorted(([a, b], [c, d]) => a + b - c - d)[looks.length >> 1] ?? [Number.NaN, Number.NaN];
}

interface MemoryLooks extends Readonly<Record<"rest" | "few" | "many", BothSides>> {
  /** What the few had grown by in the same time, with no connection more. */
  readonly grown?: BothSides;
}

/** Memory that each of `connections` takes, and all of it. */
function memoryFigures({ rest, few, many, grown = [0, 0] }: MemoryLooks, connections: number): Figures {
  const each = (side: 0 | 1): number => (many[side] - few[side] - grown[side]) / connections / 1024;
  return {
    each: each(0) + each(1),
    clientEach: each(0),
    serverEach: each(1),
    total: (many[0] + many[1]) / (1 << 20),
    before: (rest[0] + rest[1]) / (1 << 20),
  };
}

const MEMORY_FIGURES = {
  each: "KiB each",
  clientEach: "client",
  serverEach: "server",
  total: "MiB in all",
  before: "MiB at rest",
};
const FEW_CONNECTIONS = 100;

const idle: Row = {
  title: `memory of ${IDLE_CONNECTIONS} idle connections, beyond that at rest`,
  figures: MEMORY_FIGURES,
  moreIsBetter: false,
  mostRuns: 1,
  isAlone: true,
  measure: async (place) => {
    const rest = await memoryAtRest(place);
    const pair = first(place.pairs);
    const words = ["hold", pair.serverIp, APP_PORTS.http, IDLE_CONNECTIONS];
    const held = await background(program(pair.clientNetns, "load.ts", words));
    await untilQuiet([...place.client, ...place.server]);
    await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
    const many = memoryOf(place);
    await end(held);
    return memoryFigures({ rest, few: rest, many }, IDLE_CONNECTIONS);
  },
};

const busy: Row = {
  title: `memory of ${BUSY_CONNECTIONS} busy connections, beyond that of ${FEW_CONNECTIONS}`,
  figures: { ...MEMORY_FIGURES, grown: "MiB grown with 100" },
  moreIsBetter: false,
  mostRuns: 5,
  isAlone: true,
  measure: async (place) => {
    const rest = await memoryAtRest(place);
    // Code is compiled, whichever connections it is for: what compilers take for a moment is no connection's memory.
    await wrk(place, FEW_CONNECTIONS, { seconds: 12, words: EACH_CLOSES });
    await wrk(place, FEW_CONNECTIONS, { seconds: 12 });
    // A heap that is collected now and then grows in between, however many connections there are: what it grows by with the few is taken off.
    const first = await memoryUnderLoad(place, FEW_CONNECTIONS);
    const few = await memoryUnderLoad(place, FEW_CONNECTIONS);
    const many = await memoryUnderLoad(place, BUSY_CONNECTIONS);
    const grown: BothSides = [few[0] - first[0], few[1] - first[1]];
    const figures = memoryFigures({ rest, few, many, grown }, BUSY_CONNECTIONS - FEW_CONNECTIONS);
    return { ...figures, grown: (grown[0] + grown[1]) / (1 << 20) };
  },
};

/** In this order nothing that changes slowly favours one of the two. */
const ALONE_AND_BESIDE = ["alone", "beside", "beside", "alone", "alone", "beside", "beside", "alone"] as const;

const slowReader: Row = {
  title: "1 stream, server sends, beside a slow reader",
  mostRuns: 2,
  figures: {
    share: "share of its speed alone",
    gbps: "Gb/s",
    alone: "Gb/s alone",
    cpu: "CPU-s/GB",
    cpuAlone: "CPU-s/GB alone",
  },
  moreIsBetter: true,
  measure: async (place, seconds) => {
    const fast = bytesRow("", 1, ["-R"]);
    await fast.measure(place, 1);
    const measured = { alone: [] as Figures[], beside: [] as Figures[] };
    for (const state of ALONE_AND_BESIDE) {
      const slow = state === "beside" ? await slowly(place) : undefined;
      const figures = await fast.measure(place, seconds);
      if (slow !== undefined) await end(slow);
      if (figures !== undefined) measured[state].push(figures);
    }
    const middle = (state: keyof typeof measured, figure: string): number =>
      median(measured[state].map((figures) => figures[figure] ?? Number.NaN));
    const [gbps, alone] = [middle("beside", "gbps"), middle("alone", "gbps")];
    return { share: gbps / alone, gbps, alone, cpu: middle("beside", "cpu"), cpuAlone: middle("alone", "cpu") };
  },
};

/** Somebody who reads slowly through the same session. */
async function slowly({ pairs }: Place): ReturnType<typeof background> {
  const { clientNetns, serverIp } = first(pairs);
  return background(program(clientNetns, "load.ts", ["trickle", serverIp, APP_PORTS.http, TRICKLE_BYTES_PER_SECOND]));
}

const SHORT: WrkOptions = { words: EACH_CLOSES, warmUpSeconds: 10 };

/** All rows, in the order of the table. */
export const rows: Readonly<Record<string, Row>> = {
  send1: bytesRow("1 stream, client sends", 1, []),
  receive1: bytesRow("1 stream, server sends", 1, ["-R"]),
  send8: bytesRow("8 streams, client sends", 8, []),
  receive8: bytesRow("8 streams, server sends", 8, ["-R"]),
  requests16: wrkRow("requests, 16 kept connections", 16),
  requests64: wrkRow("requests, 64 kept connections", 64),
  crowded64: busyMachineRow(`requests, 64 kept connections, beside ${OTHER_PROCESSES} busy processes`, 64),
  latency: latencyRow(16, 1_000, "p50"),
  latency64: latencyRow(64, 6_000, "p99"),
  /** With two cores some 50 % and 80 % of what the reference can do. */
  loaded64: latencyRow(64, 12_000, "p99"),
  full64: latencyRow(64, 18_000, "p99"),
  connections1: wrkRow("new connections, 1 at a time", 1, SHORT),
  connections16: wrkRow("new connections, 16 at a time", 16, SHORT),
  handshakes,
  slow: slowReader,
  idle,
  busy,
};
