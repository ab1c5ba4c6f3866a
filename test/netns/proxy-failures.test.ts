import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { systemClock } from "#base/clock";
import { findWords, startCapture } from "#capture";
import type { FlowRecord } from "#model/flow";
import { cpuTicks, dial, listen, netnsPath, pause, ProxyWorld, readAll, run, say, until } from "./proxy-world.ts";

const clock = systemClock();
const WORDS = "words-that-nobody-may-read";
const DRAIN = ["--drain", "3"];

let world: ProxyWorld;

before(async () => {
  world = await ProxyWorld.createEnrolled(...DRAIN);
  const { server } = world;
  // 8080: echo with half-close. 8081: greets first. 8082: hashes what it gets.
  listen(server, 8080, (socket) => socket.pipe(socket));
  listen(server, 8081, (socket) => socket.end("greeting"));
  listen(server, 8082, (socket) => {
    const hash = createHash("sha256");
    socket.on("data", (part) => hash.update(part));
    socket.on("end", () => socket.end(hash.digest("hex")));
  });
});

after(async () => {
  await world[Symbol.asyncDispose]();
});

/** How a connection ends: with an end of data, or with an error. */
async function ending(socket: Socket): Promise<string> {
  return new Promise((resolve) => {
    socket.once("end", () => resolve("end"));
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.resume();
  });
}

async function isRefused(): Promise<boolean> {
  const { client, server } = world;
  return (await say(client, { ip: server.ip, port: 8080 }, WORDS)) === "refused";
}

/** Tries until a connection is served; how long that took. */
async function servedAgain(): Promise<number> {
  const { client, server } = world;
  return until(
    "a connection is served",
    async () => (await say(client, { ip: server.ip, port: 8080 }, WORDS)) === WORDS,
  );
}

describe("bytes through two proxies", () => {
  it("arrive whole, both ways, on many connections at once", async () => {
    const sizes = [0, 1, 1_000, 65_536, 1_000_000, 5_000_000];
    const tries = [...sizes, ...sizes].map(async (size) => {
      const bytes = randomBytes(size);
      const socket = await dial(world.client, world.server.ip, 8082);
      socket.end(bytes);
      assert.equal(await readAll(socket), createHash("sha256").update(bytes).digest("hex"), `${size} bytes`);
      const echo = await dial(world.client, world.server.ip, 8080);
      const parts: Buffer[] = [];
      echo.on("data", (part) => parts.push(part));
      echo.end(bytes);
      await new Promise((resolve) => echo.once("end", resolve));
      assert.ok(Buffer.concat(parts).equals(bytes), `${size} bytes came back as they were`);
    });
    await Promise.all(tries);
  });

  it("flow when the server speaks first", async () => {
    const socket = await dial(world.client, world.server.ip, 8081);
    assert.equal(await readAll(socket), "greeting");
  });
});

describe("a proxy that is killed", () => {
  for (const side of ["a", "b"] as const) {
    it(`(node ${side}) is replaced at once: connections break with a reset, nothing goes in clear, and new ones are served`, async (t) => {
      const node = world[side];
      await node.untilReady();
      await until("the next process waits", () => node.childPids.length === 2);
      await untilIdle(node.childPids[1] ?? 0); // it is loaded
      const socket = await world.hold(WORDS);
      const end = ending(socket);
      const capture = await startCapture({ netns: netnsPath("a"), interface: "vt-proxy-ul", clock });
      const killedAt = performance.now();
      process.kill(node.dataPathPid, "SIGKILL");
      assert.equal(await end, "ECONNRESET", "an end of data would look like a whole answer");
      await servedAgain();
      const tookMs = performance.now() - killedAt;
      t.diagnostic(`served again ${Math.round(tookMs)} ms after kill -9`);
      assert.deepEqual(findWords(await capture.stop(), [WORDS]), []);
      await node.untilReady();
    });
  }

  it("gives its data threads the processor before its main thread, once that has taken the pods over", async () => {
    const niceness = (name: string): string[] => {
      const threads = run("ps", "-L", "-o", "comm=,ni=", "-p", String(world.b.dataPathPid)).split("\n");
      return threads.flatMap((line) => (line.startsWith(name) ? (line.split(/ +/)[1] ?? "") : []));
    };
    await until("the main thread is lowered", () => niceness("MainThread").join() === "10");
    assert.deepEqual(niceness("WorkerThread"), ["0"]);
  });

  it("leaves no stray children when its supervisor is killed", async () => {
    const { b } = world;
    const children = b.childPids;
    assert.ok(children.length > 0);
    await b.stopProxy("SIGKILL");
    await until("the children are gone", () => children.every((child) => !isAlive(child)));
    assert.equal(
      await say(world.client, { ip: world.server.ip, port: 8080 }, WORDS),
      "refused",
      "nobody serves: refused",
    );
    await b.startProxy(...DRAIN);
    await servedAgain();
  });
});

describe("a proxy that is told to stop", () => {
  it("lets running connections finish and takes no new ones", async () => {
    const { b } = world;
    await b.stopProxy();
    await b.startProxy("--drain", "60");
    await servedAgain();
    const socket = await world.hold(WORDS);
    const stopped = b.stopProxy("SIGTERM");
    await until("new ones are refused", isRefused);
    socket.end("the rest");
    assert.equal(await readAll(socket), "the rest");
    assert.equal(await stopped, 0);
    await b.startProxy(...DRAIN);
    await servedAgain();
  });

  it("breaks what is left at the deadline, with a reset and a record", async () => {
    const { b } = world;
    const socket = await world.hold(WORDS);
    const end = ending(socket);
    const since = b.records.length;
    const start = performance.now();
    await b.stopProxy("SIGTERM");
    const tookMs = performance.now() - start;
    assert.ok(tookMs > 2_500, `stopped after ${Math.round(tookMs)} ms`);
    assert.equal(await end, "ECONNRESET");
    const drained = (): FlowRecord[] => b.records.slice(since).filter(({ reason }) => reason === "drained");
    await until("its record", () => drained().length > 0);
    assert.deepEqual(
      drained().map(({ verdict }) => verdict),
      ["forwarded"],
    );
    await b.startProxy(...DRAIN);
    await servedAgain();
  });
});

describe("an agent that is away", () => {
  it("is not missed by pods that are served; a proxy that restarts meanwhile refuses, and serves when the agent is back", async () => {
    const { b, client, server } = world;
    await b.stopAgent();
    const pending = /^ready, pending: the agent's list of pods/;
    await until("the proxy misses its agent", async () => pending.test(await b.get(15_021, "/healthz/ready")));
    assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), WORDS);
    const before = b.dataPathPid;
    process.kill(before, "SIGKILL");
    await until("another data path process", () => b.dataPathPid !== before && b.dataPathPid > 0);
    assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), "refused");
    await b.startAgent();
    await servedAgain();
  });
});

describe("a pod without a certificate", () => {
  it("is not acknowledged, is refused with the reason, and is served once the certificate comes", async () => {
    const { a, plain, server } = world;
    a.publish([plain.workload("hbone")]);
    await assert.rejects(a.handOver(plain), /no certificate for spiffe:.*plain|certificate/);
    await until("not ready", async () => /pending: shop\/plain/.test(await a.get(15_021, "/healthz/ready")));
    const since = a.records.length;
    await world.redirect(plain);
    const capture = await startCapture({ netns: netnsPath("a"), interface: "vt-proxy-ul", clock });
    assert.equal(await say(plain, { ip: server.ip, port: 8080 }, WORDS), "refused");
    assert.deepEqual(findWords(await capture.stop(), [WORDS]), []);
    await until("a record", () => a.records.length > since);
    assert.equal(a.records[since]?.reason, "no_certificate");
    await a.certify(plain);
    await until("ready", async () => (await a.get(15_021, "/healthz/ready")) === "ready\n");
    assert.equal(await say(plain, { ip: server.ip, port: 8080 }, WORDS), WORDS);
    await a.takeBack(plain);
    await until("refused", async () => (await say(plain, { ip: server.ip, port: 8080 }, WORDS)) === "refused");
  });
});

/** Waits until a process has done nothing for half a second. */
async function untilIdle(pid: number): Promise<void> {
  let before = -1;
  await until("an idle process", async () => {
    const now = cpuTicks(pid);
    const isIdle = now === before;
    before = now;
    if (!isIdle) await pause(500);
    return isIdle;
  });
}

/** False for one that has ended and only waits to be taken note of. */
function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}
