/**
 * One variant of the data-path benchmark as a process: two nodes, pods, applications, and what carries their connections.
 *
 *     world.ts VARIANT        one line of JSON (`Place`) on standard output once it stands; ends with its standard input
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ProxyWorld } from "../../test/netns/proxy-world.ts";
import { APP_PORTS, type Place } from "./place.ts";
import { inside, must, run, stopAll } from "./processes.ts";
import { variants } from "./variants.ts";

const name = process.argv[2] ?? "";
const folder = mkdtempSync(join(tmpdir(), "vt-bench-"));
const world = await ProxyWorld.create();

/** Connection tracking of redirected connections must not fill up either. */
function tuneTracking(netns: string): void {
  must([...inside(netns), "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1"]);
}

async function untilServed({ pairs }: Place): Promise<void> {
  for (const { clientNetns, serverNetns, serverIp } of pairs) {
    for (let tries = 0; ; tries++) {
      const url = `http://${serverIp}:${APP_PORTS.http}/`;
      const answer = await run([...inside(clientNetns), "curl", "-s", "-m", "2", url]).catch(() => "");
      if (answer === "0123456789abcdef") break;
      if (tries === 50) throw new Error(`${name}: no answer through it`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    for (const netns of [clientNetns, serverNetns]) tuneTracking(netns);
  }
}

async function leave(code: number): Promise<never> {
  stopAll();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
  process.exit(code);
}

process.stdin.once("end", () => void leave(0)).resume();
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void leave(0));

try {
  const build = variants[name];
  if (build === undefined) throw new Error(`no variant ${name}; there are ${Object.keys(variants).join(", ")}`);
  const place = await build({ world, folder });
  await untilServed(place);
  process.stdout.write(`${JSON.stringify(place)}\n`);
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`);
  await leave(1);
}
