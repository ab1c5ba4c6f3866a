/**
 * From `kubectl label` to the first encrypted connection of a running pod, and from un-labelling to the first plain one.
 *
 *     node --conditions=veil-source bench/label-latency.ts [--trials 50]     (root)
 *
 * A client in a pod dials a server on another node every 10 ms, a new connection each time. tcpdump on the underlay says, for each
 * connection of the pair, when it was opened and on which port: the first request on port 15008 after the label is the encrypted one. Writes bench/results/label-latency.md and .json.
 */
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Packet } from "#capture";
import { must, startLab } from "../test/netns/harness.ts";
import { buildScene, enrolled, label, labMesh, LOAD_PORT, runLoad, TUNNEL_PORT } from "../test/netns/mesh.ts";

const { values } = parseArgs({ options: { trials: { type: "string", default: "50" } } });
const TRIALS = Number(values.trials);
const SETTLE_MS = 700;

interface Flip {
  readonly on: boolean;
  /** Before kubectl was started, and after it had returned; microseconds since the epoch. */
  readonly startUs: number;
  readonly returnedUs: number;
}

function quantile(numbers: readonly number[], share: number): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}

/** Milliseconds from the start of each flip to the first connection of the kind that it asks for. */
function delays(flips: readonly Flip[], packets: readonly Packet[], on: boolean): number[] {
  // A request is longer than a PING of a session that is about to end; a plain connection begins with SYN.
  const counts = (packet: Packet): boolean =>
    on
      ? packet.destinationPort === TUNNEL_PORT && packet.payload.length > 100
      : packet.destinationPort === LOAD_PORT && (packet.flags & 0x02) !== 0;
  return flips
    .filter((flip) => flip.on === on)
    .map((flip) => {
      const next = flips.find((other) => other.startUs > flip.startUs)?.startUs ?? Number.POSITIVE_INFINITY;
      const first = packets.find((packet) => counts(packet) && packet.timeUs >= flip.startUs && packet.timeUs < next);
      return first === undefined ? Number.POSITIVE_INFINITY : (first.timeUs - flip.startUs) / 1000;
    });
}

const lab = await startLab("latency");
try {
  const mesh = labMesh(lab);
  const scene = await buildScene(mesh, "latency");
  const seconds = Math.ceil((TRIALS * 2 * (SETTLE_MS + 600)) / 1000) + 10;
  const filter = `tcp and src host ${scene.far.status?.podIP} and (dst port ${LOAD_PORT} or dst port ${TUNNEL_PORT})`;
  const capture = await lab.captureNode("node1", { filter });
  const load = runLoad(await mesh.enterPod(scene.far), scene.server, ["--rate", "100", "--seconds", String(seconds)]);
  await wait(1_000);
  const flips: Flip[] = [];
  for (let trial = 0; trial < TRIALS; trial++) {
    for (const on of [true, false]) {
      const startUs = Date.now() * 1000;
      await label(mesh, scene.namespaces, on);
      flips.push({ on, startUs, returnedUs: Date.now() * 1000 });
      await enrolled(mesh, scene.namespaces, on);
      await wait(SETTLE_MS);
    }
  }
  const packets = await capture.stop();
  const result = await load;
  const kubectl = flips.map((flip) => (flip.returnedUs - flip.startUs) / 1000);
  const rows = [
    { name: "label to first encrypted connection", ms: delays(flips, packets, true) },
    { name: "un-label to first plain connection", ms: delays(flips, packets, false) },
    { name: "of these, kubectl itself", ms: kubectl },
  ];
  const line = ({ name, ms }: (typeof rows)[number]): string =>
    `| ${name} | ${[0.5, 0.95, 1].map((share) => quantile(ms, share).toFixed(0)).join(" | ")} |`;
  const where = `${cpus().length} cores, kernel ${(await must(["uname", "-r"])).trim()}, Node ${process.version}`;
  const text = [
    "# From label to encrypted",
    "",
    `\`node --conditions=veil-source bench/label-latency.ts --trials ${TRIALS}\` on ${where}, ${new Date().toISOString().slice(0, 10)}.`,
    `Two pods on two nodes, 100 new connections a second throughout (${result.short.tried} in all, failures: ${JSON.stringify(result.failures)}); milliseconds from before kubectl starts.`,
    "",
    "| | p50 | p95 | max |",
    "|---|---:|---:|---:|",
    ...rows.map(line),
    "",
  ].join("\n");
  const out = join(import.meta.dirname, "results");
  writeFileSync(join(out, "label-latency.md"), text);
  writeFileSync(
    join(out, "label-latency.json"),
    `${JSON.stringify({ rows, failures: result.failures }, undefined, 1)}\n`,
  );
  process.stdout.write(text);
  if (quantile(rows[0]?.ms ?? [], 0.95) > 1000) process.exitCode = 1;
} finally {
  await lab[Symbol.asyncDispose]();
}
