import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { listenTcp, openNetns } from "#linux";
import type { FlowRecord } from "#model/flow";
import type { LoadResult } from "./mesh.ts";
import {
  cpuTicks,
  dial,
  listen,
  netnsPath,
  pause,
  ProxyWorld,
  readAll,
  run,
  say,
  until,
  type Pod,
} from "./proxy-world.ts";

const LOAD = fileURLToPath(new URL("load.ts", import.meta.url));
const LOAD_PORT = 9000;
const WORDS = "words";
const DRAIN = ["--drain", "5"];

let world: ProxyWorld;
const processes: ChildProcess[] = [];

before(async () => {
  world = await ProxyWorld.createEnrolled(...DRAIN);
  const { server } = world;
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
  const command = ["nsenter", `--net=${netns}`, process.execPath, LOAD, ...words];
  const child = spawn("setpriv", ["--pdeathsig", "KILL", ...command], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  processes.push(child);
  return child;
}

/** Fifty new connections a second from the client, every byte checked, while `body` runs. */
async function underLoad(body: () => Promise<void>): Promise<LoadResult> {
  const load = inPod(world.client, "client", "--target", `${world.server.ip}:${LOAD_PORT}`, "--rate", "50");
  let said = "";
  load.stdout?.setEncoding("utf8").on("data", (text: string) => (said += text));
  const ended = new Promise((resolve) => load.once("close", resolve));
  const { b } = world;
  const since = b.records.length;
  await until("the load runs", () => b.records.length > since + 20);
  await body();
  const then = b.records.length;
  await until("the load still runs", () => b.records.length > then + 20);
  load.kill("SIGTERM");
  await ended;
  return JSON.parse(said) as LoadResult; // printed by load.ts
}

describe("an upgrade", { timeout: 240_000 }, () => {
  for (const side of ["a", "b"] as const) {
    it(`(node ${side}) with both proxies at once fails no new connection, lets long ones finish, and resets what is left at the deadline`, async (t) => {
      const node = world[side];
      const [finishes, stays] = [await world.hold(WORDS), await world.hold(WORDS)];
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
      const reset = (): FlowRecord[] => node.records.slice(sinceRecords).filter(({ reason }) => reason === "drained");
      await until("its record", () => reset().length > 0);
      assert.deepEqual(
        reset().map(({ verdict, detail }) => `${verdict} ${detail.split(":")[0]}`),
        ["forwarded HBONE_DRAINING"],
      );
      await until("its log", () => /"reset":1,"msg":"drained"/.test(node.log));
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
    const socket = await world.hold(WORDS);
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
    await b.startProxy("--drain", "600", "--records", "required");
    const socket = await world.hold(WORDS);
    const broken = new Promise((resolve) => socket.once("error", resolve));
    const since = b.records.length;
    const ended = new Promise((resolve) => b.proxy?.once("exit", resolve));
    const said = b.log.length;
    b.proxy?.kill("SIGTERM");
    await until("it drains", () => b.log.slice(said).includes('"draining: no new connections"'));
    socket.write(WORDS);
    await new Promise((resolve) => socket.once("data", resolve));
    b.proxy?.kill("SIGTERM");
    assert.equal(await ended, 130);
    assert.equal(((await broken) as NodeJS.ErrnoException).code, "ECONNRESET");
    await until("its record", () => b.records.slice(since).some(({ reason }) => reason === "drained"));
    await b.startProxy(...DRAIN);
  });
});

describe("a proxy that runs short", { timeout: 120_000 }, () => {
  /** What the records of node a say about connections that it refused since then. */
  const refusals = (since: number): string[] =>
    world.a.records
      .slice(since)
      .flatMap(({ verdict, reason, detail }) => (verdict === "refused" ? [`${reason} ${detail.split(":")[0]}`] : []));

  it("of descriptors refuses what is new with that reason, keeps what runs, and takes new connections when there are enough again", async () => {
    const { a, client, server } = world;
    const runs = await world.hold(WORDS);
    const pid = a.dataPathPid;
    const before = /Max open files +(\d+)/.exec(readFileSync(`/proc/${pid}/limits`, "utf8"))?.[1] ?? "1024";
    const used = readdirSync(`/proc/${pid}/fd`).length;
    run("prlimit", `--pid=${pid}`, `--nofile=${Math.ceil((used + 40) / 0.875)}:`);
    const since = a.records.length;
    const sockets: Socket[] = [];
    const cpuBefore = cpuTicks(pid);
    try {
      for (let i = 0; i < 120; i++) {
        const socket = await dial(client, server.ip, 8080).catch(() => undefined); // reset before it was ours
        if (socket !== undefined) sockets.push(socket);
      }
      await until("refusals", () => refusals(since).length >= 40);
      assert.deepEqual(new Set(refusals(since)), new Set(["limit_reached PROXY_NO_FILES"]));
      await pause(500);
      assert.ok(cpuTicks(pid) - cpuBefore < 300, "it does not spin"); // ticks of 10 ms
      runs.write(WORDS);
      await new Promise((resolve) => runs.once("data", resolve));
      for (const socket of sockets) socket.destroy();
      const again = async (): Promise<boolean> => (await say(client, { ip: server.ip, port: 8080 }, WORDS)) === WORDS;
      await until("served again", again);
    } finally {
      run("prlimit", `--pid=${pid}`, `--nofile=${before}:`);
    }
    runs.destroy();
  });

  it("of source ports refuses what is new with that reason, and keeps what runs", async () => {
    const { a, client, plain } = world;
    listen(plain, 8090, (socket) => socket.pipe(socket));
    const path = netnsPath("a-client");
    // Seven ports: each connection takes one for the client and one for its proxy, and the fourth finds one only.
    const range = run("nsenter", `--net=${path}`, "sysctl", "-n", "net.ipv4.ip_local_port_range").trim();
    const since = a.records.length;
    run("nsenter", `--net=${path}`, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40006");
    const sockets: Socket[] = [];
    try {
      await until("a refusal", async () => {
        sockets.push(
          ...(await dial(client, plain.ip, 8090).then(
            (socket) => [socket],
            () => [],
          )),
        );
        return refusals(since).length > 0;
      });
    } finally {
      run("nsenter", `--net=${path}`, "sysctl", "-qw", `net.ipv4.ip_local_port_range=${range}`);
    }
    assert.deepEqual(new Set(refusals(since)), new Set(["limit_reached LINUX_CONNECT_NO_PORTS"]));
    for (const socket of sockets) socket.destroy();
    assert.equal(await say(client, { ip: plain.ip, port: 8090 }, WORDS), WORDS);
  });

  it("of memory refuses what is new with that reason, and keeps what runs", async () => {
    const { a, client, server } = world;
    const { exitCode } = await a.upgradeProxy(...DRAIN, "--memory-limit", "16");
    await exitCode;
    const since = a.records.length;
    await until("a refusal", async () => {
      await say(client, { ip: server.ip, port: 8080 }, WORDS);
      return refusals(since).length > 0;
    });
    assert.deepEqual(new Set(refusals(since)), new Set(["limit_reached PROXY_MEMORY"]));
    await a.upgradeProxy(...DRAIN);
    await until("served again", async () => (await say(client, { ip: server.ip, port: 8080 }, WORDS)) === WORDS);
  });
});

describe("ports that are taken", { timeout: 120_000 }, () => {
  for (const port of [15_001, 15_006, 15_008]) {
    it(`in a pod (${port}) refuse that pod with the port's name, and no other`, async () => {
      const { b, client, other, server } = world;
      await b.certify(other);
      const squatter = listenTcp({ netns: other.netns, ip: "::", port }, (socket) => socket.reset());
      try {
        await assert.rejects(b.handOver(other), (error: Error) => {
          assert.match(error.message, new RegExp(`port ${port}: Address already in use`));
          return true;
        });
        assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), WORDS);
      } finally {
        squatter.stop();
      }
      await b.takeBack(other);
    });
  }

  for (const [flag, port] of [
    ["--admin-port", 15_900],
    ["--metrics-port", 15_920],
    ["--ready-port", 15_921],
  ] as const) {
    it(`of the node (${flag}) end the proxy at its start, with the port's name and what to do`, async () => {
      const { b } = world;
      const netns = openNetns(netnsPath("b"));
      const squatter = listenTcp({ netns, ip: flag === "--admin-port" ? "127.0.0.1" : "::", port }, (socket) =>
        socket.reset(),
      );
      const before = b.log.length;
      try {
        const code = await b.tryProxy("--admin-port", "15900", "--metrics-port", "15920", "--ready-port", "15921");
        assert.equal(code, 1);
        assert.match(b.log.slice(before), new RegExp(`EADDRINUSE.*:${port}[^]*ss -ltnp shows which[^]*RPC_LISTEN`));
      } finally {
        squatter.stop();
        netns[Symbol.dispose]();
      }
    });
  }
});

describe("a path of 1,280 bytes", { timeout: 120_000 }, () => {
  for (const icmp of [true, false]) {
    it(`carries large transfers ${icmp ? "when routers say so" : "when nobody says so"}`, async () => {
      const { client, server } = world;
      const nodes = ["a", "b"].map((node) => [`--net=${netnsPath(node)}`, "--"]);
      for (const node of nodes) run("nsenter", ...node, "ip", "link", "set", "vt-proxy-ul", "mtu", "1280");
      const drop =
        "add table inet mtu; add chain inet mtu out { type filter hook output priority 0; }; add rule inet mtu out meta l4proto icmp drop";
      if (!icmp) for (const node of nodes) run("nsenter", ...node, "nft", drop);
      try {
        // What the kernel has learnt about the path before is forgotten; sessions begin anew.
        for (const place of ["a-client", "b-server"])
          run("nsenter", `--net=${netnsPath(place)}`, "ip", "route", "flush", "cache");
        const words = "0123456789abcdef".repeat(20_000);
        assert.equal(await say(client, { ip: server.ip, port: 8080 }, words), words);
      } finally {
        if (!icmp) for (const node of nodes) run("nsenter", ...node, "nft", "delete table inet mtu");
        for (const node of nodes) run("nsenter", ...node, "ip", "link", "set", "vt-proxy-ul", "mtu", "1500");
      }
    });
  }
});
