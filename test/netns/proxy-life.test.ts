import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import type { Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import type { LoadResult } from "./mesh.ts";
import { dial, listen, netnsPath, ProxyWorld, readAll, say, until, type Pod } from "./proxy-world.ts";

const LOAD = fileURLToPath(new URL("load.ts", import.meta.url));
const LOAD_PORT = 9000;
const WORDS = "words";
const DRAIN = ["--drain", "3"];

let world: ProxyWorld;
const processes: ChildProcess[] = [];

before(async () => {
  world = await ProxyWorld.create();
  const { a, b, client, server } = world;
  world.publish(client, server);
  await a.certify(client);
  await b.certify(server);
  await Promise.all([a.startAgent(), b.startAgent()]);
  await Promise.all([a.startProxy(...DRAIN), b.startProxy(...DRAIN)]);
  await Promise.all([world.enrol(client), world.enrol(server)]);
  listen(server, 8080, (socket) => socket.pipe(socket));
  const loadServer = inPod(server, "server", "--port", String(LOAD_PORT));
  await new Promise((resolve) => loadServer.stdout?.once("data", resolve));
});

after(async () => {
  for (const child of processes) child.kill("SIGKILL");
  await world[Symbol.asyncDispose]();
});

/** Runs the load's program in a pod. */
function inPod(pod: Pod, ...words: readonly string[]): ChildProcess {
  const netns = netnsPath(`${pod.node}-${pod.name}`);
  const child = spawn("nsenter", [`--net=${netns}`, process.execPath, LOAD, ...words], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  processes.push(child);
  return child;
}

/** New connections from the client, four at a time, every byte checked, while `body` runs. */
async function underLoad(body: () => Promise<void>): Promise<LoadResult> {
  const load = inPod(world.client, "client", "--target", `${world.server.ip}:${LOAD_PORT}`, "--closed", "4");
  let said = "";
  load.stdout?.setEncoding("utf8").on("data", (text: string) => (said += text));
  const ended = new Promise((resolve) => load.once("close", resolve));
  const { b } = world;
  const since = b.records.length;
  await until("the load runs", () => b.records.length > since + 20, 20_000);
  await body();
  const then = b.records.length;
  await until("the load still runs", () => b.records.length > then + 20, 20_000);
  load.kill("SIGTERM");
  await ended;
  return JSON.parse(said) as LoadResult; // printed by load.ts
}

/** A long connection through both proxies that has carried something. */
async function longConnection(): Promise<Socket> {
  const socket = await dial(world.client, world.server.ip, 8080);
  socket.write(WORDS);
  await new Promise((resolve) => socket.once("data", resolve));
  return socket;
}

describe("an upgrade", { timeout: 240_000 }, () => {
  for (const side of ["a", "b"] as const) {
    it(`(node ${side}) with both proxies at once fails no new connection, lets long ones finish, and resets what is left at the deadline`, async (t) => {
      const node = world[side];
      const [finishes, stays] = [await longConnection(), await longConnection()];
      const broken = new Promise((resolve) => stays.once("error", resolve));
      const sinceRecords = node.records.length;
      const result = await underLoad(async () => {
        const { exitCode } = await node.upgradeProxy(...DRAIN);
        finishes.end("the rest");
        assert.equal(await readAll(finishes), "the rest");
        assert.equal(await exitCode, 0);
      });
      assert.deepEqual(result.failures, {}, result.firstFailures.join("; "));
      assert.equal(result.corrupt, 0);
      assert.equal(((await broken) as NodeJS.ErrnoException).code, "ECONNRESET");
      const reset = node.records.slice(sinceRecords).filter(({ reason }) => reason === "drained");
      assert.deepEqual(
        reset.map(({ verdict, detail }) => `${verdict} ${detail.split(":")[0]}`),
        ["forwarded HBONE_DRAINING"],
      );
      assert.match(node.log, /"reset":1,"msg":"drained"/);
      t.diagnostic(`${result.short.done} new connections, none failed`);
    });

    it(`(node ${side}) with one proxy after the other fails connections, and the load sees it`, async (t) => {
      const node = world[side];
      const result = await underLoad(async () => {
        await node.stopProxy();
        await node.startProxy(...DRAIN);
      });
      assert.notDeepEqual(result.failures, {});
      assert.equal(result.corrupt, 0);
      t.diagnostic(JSON.stringify(result.failures));
    });
  }
});

describe("a proxy that is asked to quit", { timeout: 120_000 }, () => {
  it("on its admin port ends, with its supervisor, after a drain, and exits with 0", async () => {
    const { b, client, server } = world;
    const socket = await longConnection();
    const ended = new Promise((resolve) => b.proxy?.once("exit", resolve));
    assert.match(await b.post("/quitquitquit"), /shut/);
    await until(
      "no new connections",
      async () => (await say(client, { ip: server.ip, port: 8080 }, WORDS)) === "refused",
    );
    socket.end("the rest");
    assert.equal(await readAll(socket), "the rest");
    assert.equal(await ended, 0);
    await b.startProxy(...DRAIN);
  });

  it("twice by SIGTERM ends at once, with resets and records, and exits with 130", async () => {
    const { b } = world;
    await b.stopProxy();
    await b.startProxy("--drain", "600");
    const socket = await longConnection();
    const broken = new Promise((resolve) => socket.once("error", resolve));
    const since = b.records.length;
    const ended = new Promise((resolve) => b.proxy?.once("exit", resolve));
    const said = b.log.length;
    b.proxy?.kill("SIGTERM");
    await until("it drains", () => b.log.slice(said).includes('"draining: no new connections"'), 20_000);
    socket.write(WORDS);
    await new Promise((resolve) => socket.once("data", resolve));
    b.proxy?.kill("SIGTERM");
    assert.equal(await ended, 130);
    assert.equal(((await broken) as NodeJS.ErrnoException).code, "ECONNRESET");
    await until("its record", () => b.records.slice(since).some(({ reason }) => reason === "drained"));
    await b.startProxy(...DRAIN);
  });
});
