import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { sleep, systemClock } from "#base/clock";
import { eventually } from "./harness.ts";

const PROGRAM = fileURLToPath(new URL("flows.ts", import.meta.url));
/** What is under way when sending ends arrives within this time. */
const SETTLE_MS = 300;

/** What flows.ts reports. */
interface FlowReport {
  readonly seconds: number;
  readonly sent: Readonly<Record<string, number>>;
  readonly failed: Readonly<Record<string, number>>;
  readonly received: Readonly<Record<string, Received>>;
  readonly overflow: number;
  readonly delayMs: { readonly p50: number; readonly p99: number; readonly p999: number };
}

interface Received {
  readonly distinct: number;
  readonly duplicates: number;
  readonly reordered: number;
  readonly longestGapMs: number;
}

/** Where flows begin and end. */
export interface FlowPlace {
  readonly ip: string;
  /** Words that run a program of this machine there. */
  readonly enter: readonly string[];
}

/** What became of all datagrams between all places. */
export interface FlowTotals {
  readonly sent: number;
  /** Sent, and never seen: neither by the receiver nor dropped by its own socket for want of room. */
  readonly lost: number;
  readonly overflow: number;
  readonly duplicates: number;
  readonly reordered: number;
  readonly longestGapMs: number;
  /** The worst of the places. */
  readonly delayP999Ms: number;
  /** Pairs between which some were lost, and how many. */
  readonly by: Readonly<Record<string, number>>;
  readonly failed: Readonly<Record<string, number>>;
  /** Datagrams that were taken in, per second, by all together. */
  readonly perSecond: number;
}

/** Flows that go on until they are stopped: from each place to each other one. */
export interface RunningFlows extends AsyncDisposable {
  /** How many have been taken in so far. */
  received(): Promise<number>;
  stop(): Promise<FlowTotals>;
}

/** Starts flows between places; `rate` datagrams a second from each to each other one, 0: as fast as can be. Resolves when all send. */
export async function startFlows(
  places: readonly FlowPlace[],
  rate: number,
  bytes = "200,1200",
): Promise<RunningFlows> {
  const ends = places.map((place) => {
    const peers = places.filter((other) => other !== place).map(({ ip }) => ip);
    const words = ["--self", place.ip, "--peers", peers.join(","), "--rate", String(rate), "--bytes", bytes];
    return { ip: place.ip, ...startEnd([...place.enter, process.execPath, PROGRAM, ...words]) };
  });
  const end = (): Promise<void> => {
    for (const { child } of ends) child.kill("SIGKILL");
    return Promise.resolve();
  };
  const reports = (): Promise<Map<string, FlowReport>> =>
    Promise.all(ends.map(async ({ ip, ask }) => [ip, JSON.parse(await ask("report")) as FlowReport] as const)).then(
      (list) => new Map(list), // printed by flows.ts
    );
  try {
    await Promise.all(ends.map(({ ready }) => ready));
  } catch (error) {
    await end();
    throw error;
  }
  for (const { tell } of ends) tell("start");
  const taken = async (): Promise<number> =>
    [...(await reports()).values()]
      .flatMap(({ received }) => Object.values(received))
      .reduce((sum, { distinct }) => sum + distinct, 0);
  return {
    received: taken,
    async stop() {
      for (const { tell } of ends) tell("stop");
      let before = -1;
      await eventually("what is under way to arrive", async () => {
        const now = await taken();
        const settled = now === before;
        before = now;
        await sleep(systemClock(), SETTLE_MS);
        return settled || undefined;
      });
      const all = await reports();
      await end();
      return totals(all);
    },
    [Symbol.asyncDispose]: end,
  };
}

function startEnd(command: readonly string[]): {
  child: ChildProcess;
  ready: Promise<string>;
  tell: (word: string) => void;
  ask: (word: string) => Promise<string>;
} {
  const child = spawn("setpriv", ["--pdeathsig", "KILL", ...command], { stdio: ["pipe", "pipe", "inherit"] });
  const waiting: ((line: string) => void)[] = [];
  const ended = new Promise<never>((_resolve, reject) => {
    child.once("error", reject).once("close", () => reject(new Error("the flows have ended")));
  });
  ended.catch(() => undefined); // whoever waits for a line hears of it
  createInterface({ input: child.stdout }).on("line", (line) => waiting.shift()?.(line));
  const next = (): Promise<string> => Promise.race([ended, new Promise<string>((resolve) => waiting.push(resolve))]);
  const tell = (word: string): void => {
    child.stdin.write(`${word}\n`);
  };
  const ask = (word: string): Promise<string> => {
    const answer = next();
    tell(word);
    return answer;
  };
  return { child, ready: next(), tell, ask };
}

function totals(reports: ReadonlyMap<string, FlowReport>): FlowTotals {
  const all = [...reports.values()];
  const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0);
  const received = all.flatMap((report) => Object.values(report.received));
  const by: Record<string, number> = {};
  for (const [from, { sent }] of reports) {
    for (const [to, count] of Object.entries(sent)) {
      const missing = count - (reports.get(to)?.received[from]?.distinct ?? 0);
      if (missing > 0) by[`${from}>${to}`] = missing;
    }
  }
  const sent = sum(all.flatMap((report) => Object.values(report.sent)));
  const overflow = sum(all.map((report) => report.overflow));
  const failed: Record<string, number> = {};
  for (const report of all)
    for (const [code, count] of Object.entries(report.failed)) failed[code] = (failed[code] ?? 0) + count;
  const distinct = sum(received.map((one) => one.distinct));
  assert.ok(sent > 0, "nothing was sent");
  return {
    sent,
    lost: Math.max(0, sent - distinct - overflow),
    overflow,
    duplicates: sum(received.map((one) => one.duplicates)),
    reordered: sum(received.map((one) => one.reordered)),
    longestGapMs: Math.max(0, ...received.map((one) => one.longestGapMs)),
    delayP999Ms: Math.max(...all.map(({ delayMs }) => delayMs.p999)),
    by,
    failed,
    perSecond: Math.round(distinct / Math.max(...all.map(({ seconds }) => seconds))),
  };
}
