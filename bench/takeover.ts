/**
 * How long pods are without a proxy when theirs is killed: node b's, with 1, 30 and 110 enrolled pods, which an enrolled client of
 * node a calls. Killed are the process that carries the data (its supervisor has the next one waiting), and that process
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

/** Milliseconds after the kill at which the first pod answered a new connection, and at which the proxy said that it serves all. */
async function measure(pods: readonly Pod[], kill: () => Promise<void>): Promise<{ first: number; all: number }> {
  await untilSpare();
  const killedPid = world.b.dataPathPid;
  const startMs = performance.now();
  const killed = kill();
  const answers = async (pod: Pod): Promise<boolean> =>
    (await say(world.client, { ip: pod.ip, port: PORT }, pod.name)) === pod.name;
  const [first, all] = await Promise.all([
    until("a pod answers", async () => answers(pods[0] ?? world.server)).then(() => performance.now() - startMs),
    until("another process", () => world.b.dataPathPid !== killedPid && world.b.dataPathPid > 0)
      .then(async () => world.b.untilReady())
      .then(() => performance.now() - startMs),
  ]);
  await killed;
  for (const pod of pods) if (!(await answers(pod))) throw new Error(`${pod.name} does not answer`);
  return { first, all };
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
    const rounds: { first: number; all: number }[] = [];
    for (let round = 0; round < Number(values.rounds); round++) rounds.push(await measure(enrolled, kill));
    const all = rounds.map((round) => round.all);
    const figures = [median(rounds.map(({ first }) => first)), median(all), Math.max(...all)].map((ms) =>
      ms.toFixed(0),
    );
    lines.push(`| ${what} | ${count} | ${figures.join(" | ")} |`);
    process.stdout.write(`${lines.at(-1)}\n`);
  }
}
const text = `# Pods without a proxy

\`node --conditions=veil-source bench/takeover.ts --rounds ${values.rounds} --pods ${values.pods}\`: ${cpus()[0]?.model.trim()}, ${cpus().length} processors, load ${loadavg()[0]?.toFixed(1)} at the end.
Milliseconds from kill -9 until the first pod answered a new connection, and until the proxy was ready, which it says when it serves all (medians of the rounds, and the worst); each then answered.

| killed | pods | first | all | all, worst round |
|---|---:|---:|---:|---:|
${lines.join("\n")}
`;
writeFileSync(join(import.meta.dirname, "results/takeover.md"), text);
