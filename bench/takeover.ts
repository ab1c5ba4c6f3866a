/**
 * How long pods are without a proxy when theirs is killed: node b's, with 1, 30 and 110 enrolled pods, each of which an enrolled client of
 * node a calls anew until it answers. Killed are the process that carries the data (its supervisor has the next one waiting), and that process
 * with its supervisor (this program starts it again at once, where a kubelet would).
 *
 *     node --conditions=veil-source bench/takeover.ts [--rounds 5] [--pods 1,30,110]     (root)
 *
 * Writes bench/results/takeover.md.
 */
import { writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { cpuTicks, listen, pause, ProxyWorld, say, until, type Pod } from "../test/netns/proxy-world.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "5" }, pods: { type: "string", default: "1,30,110" } },
});
const PORT = 8080;
/** Each pod is called so often: more would be a load of its own. */
const RETRY_MS = 50;
/** The next process has loaded when it has taken less than a tick of 10 ms in this time. */
const IDLE_MS = 1_000;

const kills = {
  "the process that carries the data": async (): Promise<void> => {
    process.kill(world.b.dataPathPid, "SIGKILL");
    return Promise.resolve();
  },
  "it and its supervisor, started again at once": async (): Promise<void> => {
    const carrying = world.b.dataPathPid;
    process.kill(world.b.proxyPid, "SIGKILL");
    process.kill(carrying, "SIGKILL");
    await world.b.startProxy();
  },
} as const;

/** Milliseconds after the kill at which each pod answered a new connection. */
async function measure(pods: readonly Pod[], kill: () => Promise<void>): Promise<number[]> {
  await untilSpare();
  const startMs = performance.now();
  const killed = kill();
  const times = await Promise.all(
    pods.map(async (pod) => {
      while ((await say(world.client, { ip: pod.ip, port: PORT }, pod.name)) !== pod.name) await pause(RETRY_MS);
      return performance.now() - startMs;
    }),
  );
  await killed;
  return times;
}

/** The supervisor has a process in waiting, and that one has loaded. */
async function untilSpare(): Promise<void> {
  await until("the next process waits", () => world.b.childPids.length === 2);
  const waiting = world.b.childPids[1] ?? 0;
  for (let before = -1; before !== cpuTicks(waiting); await pause(IDLE_MS)) before = cpuTicks(waiting);
}

const median = (all: readonly number[]): number => all.toSorted((x, y) => x - y)[all.length >> 1] ?? Number.NaN;

await using world = await ProxyWorld.createEnrolled();
const enrolled: Pod[] = [];
const lines: string[] = [];
for (const count of values.pods.split(",").map(Number)) {
  for (let at = enrolled.length; at < count; at++) {
    const pod = world.addPod(`pod-${at}`, "b", `10.201.2.${4 + at}`);
    listen(pod, PORT, (socket) => socket.pipe(socket));
    enrolled.push(pod);
  }
  world.publish(world.client, world.server, ...enrolled);
  for (const pod of enrolled) await world.b.certify(pod);
  for (const pod of enrolled) await world.enrol(pod);
  for (const [what, kill] of Object.entries(kills)) {
    const first: number[] = [];
    const last: number[] = [];
    for (let round = 0; round < Number(values.rounds); round++) {
      const times = await measure(enrolled, kill);
      first.push(Math.min(...times));
      last.push(Math.max(...times));
    }
    const figures = [median(first), median(last), Math.max(...last)].map((ms) => ms.toFixed(0));
    lines.push(`| ${what} | ${count} | ${figures.join(" | ")} |`);
    process.stdout.write(`${lines.at(-1)}\n`);
  }
}
const text = `# Pods without a proxy

\`node --conditions=veil-source bench/takeover.ts --rounds ${values.rounds} --pods ${values.pods}\`: ${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end.
Milliseconds from kill -9 until a new connection was answered by the first pod and by the last (medians of the rounds), and the worst round.

| killed | pods | first | last | last, worst round |
|---|---:|---:|---:|---:|
${lines.join("\n")}
`;
writeFileSync(join(import.meta.dirname, "results/takeover.md"), text);
