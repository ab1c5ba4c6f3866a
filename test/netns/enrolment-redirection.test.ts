import assert from "node:assert/strict";
import { execFileSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, test } from "node:test";
import { checkRedirection, nftRedirector, REDIRECTION_TABLE } from "#enrolment";
import { systemClock } from "#base/clock";
import { parseIp } from "#base/ip";
import { CellSet } from "#base/metrics";
import { systemRandom } from "#base/random";
import { dnsMetrics, DNS_PORT, PodDns } from "#dns";
import {
  connectTcp,
  connectUdp,
  listenUdp,
  removeMarkRoute,
  runNft,
  TcpSocket,
  type UdpConnection,
  type UdpListener,
} from "#linux";
import { dnsQuestion } from "../../src/dns/testing.ts";
import { firstLine, TestWorld, type TestPod } from "./enrolment-world.ts";

const CAPTURE = { inbound: true, dns: true };
let world: TestWorld;

interface LoadResult {
  readonly long: { readonly opened: number; readonly alive: number; readonly bytes: number };
  readonly short: { readonly tried: number; readonly done: number };
  readonly failures: Readonly<Record<string, number>>;
  readonly corrupt: number;
}

/** A load from one pod to another; `stop` ends it and tells what happened. */
function load(from: TestPod, to: TestPod, ...args: string[]): { stop(): Promise<LoadResult> } {
  const path = fileURLToPath(new URL("load.ts", import.meta.url));
  const child = world.spawn(from, process.execPath, path, "client", "--target", `${to.ip}:9000`, ...args);
  const line = firstLine(child);
  return {
    stop: async () => {
      child.kill("SIGTERM");
      return JSON.parse(await line) as LoadResult; // the load's own format
    },
  };
}

/** What the proxy of a pod has passed on so far. */
async function counts(proxy: ChildProcess): Promise<{ outbound: number; inbound: number; failed: number }> {
  const line = firstLine(proxy);
  proxy.kill("SIGUSR2");
  return JSON.parse(await line) as { outbound: number; inbound: number; failed: number }; // the test proxy's own format
}

// Sockets that a killed process leaves behind live on for a while: each test gets namespaces of its own.
beforeEach(async () => {
  world = new TestWorld("enr");
  await Promise.all([world.pods.b1, world.pods.a2].map(async (pod) => world.program(pod, "load.ts", "server")));
});
afterEach(() => world[Symbol.dispose]());

/** Waits until `pod` has as many connections to port 9000 as wanted. */
async function connected(pod: TestPod, count: number): Promise<void> {
  await until(() => connections(pod) >= count, `${count} connections`);
}

/** Open connections of `pod` to port 9000, of its proxy too. */
function connections(pod: TestPod): number {
  return world.exec(pod, "ss", "-Htn", "state", "established", "dport = :9000").split("\n").length - 1;
}

async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const endMs = performance.now() + 60_000;
  while (!(await condition())) {
    assert.ok(performance.now() < endMs, `${what}: not within a minute`);
    await delay(50);
  }
}

async function passedOn(proxy: ChildProcess, direction: "outbound" | "inbound", count: number): Promise<void> {
  await until(async () => (await counts(proxy))[direction] >= count, `${count} ${direction} connections`);
}

test("rules and routes come once, are seen by ip and nft, and leave nothing, also where some have gone already", async () => {
  const { a1 } = world.pods;
  const shell = (words: string): string =>
    execFileSync("nsenter", ["--net=/proc/self/fd/3", "sh", "-c", words], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore", a1.netns.fd],
    });
  const seen = (): string =>
    shell("ip rule; ip -6 rule; ip route show table 100; ip -6 route show table 100; nft list tables; true");
  const before = seen();
  shell("ip link set lo down"); // as it is when a pod's network is being made
  await nftRedirector.install(a1.netns, CAPTURE);
  const once = seen();
  await nftRedirector.install(a1.netns, CAPTURE);
  assert.equal(seen(), once);
  assert.equal(once.match(/^32764:\s+from all fwmark 0x111\/0xfff lookup 100/gm)?.length, 2);
  assert.equal(once.match(/^local default dev lo/gm)?.length, 2);
  assert.equal(await nftRedirector.read(a1.netns), "capturing");
  removeMarkRoute(a1.netns, 6, { mark: 0x111, mask: 0xfff, priority: 32_764, table: 100 });
  for (let time = 0; time < 2; time++) await nftRedirector.remove(a1.netns);
  assert.equal(seen(), before);
  assert.equal(await nftRedirector.read(a1.netns), "absent");
});

test("this machine can redirect, and one where nft is missing is told so", async () => {
  await checkRedirection(CAPTURE);
  const path = process.env["PATH"];
  try {
    const folder = mkdtempSync("/tmp/vt-enr-");
    symlinkSync("/usr/bin/unshare", `${folder}/unshare`);
    process.env["PATH"] = folder;
    await assert.rejects(checkRedirection(CAPTURE), { code: "ENROLMENT_KERNEL", message: /nft/ });
    rmSync(folder, { recursive: true });
  } finally {
    process.env["PATH"] = path;
  }
});

test("a connection that is open already survives the label, on both ends", async () => {
  const { a1, b1 } = world.pods;
  const proxies = [await world.program(a1, "enrolment-proxy.ts"), await world.program(b1, "enrolment-proxy.ts")];
  const open = load(a1, b1, "--long", "5");
  await connected(a1, 5);
  for (const pod of [a1, b1]) await nftRedirector.install(pod.netns, CAPTURE);
  await delay(500);
  const result = await open.stop();
  assert.deepEqual(result.failures, {});
  assert.equal(result.long.alive, 5);
  for (const proxy of proxies) assert.deepEqual(await counts(proxy), { outbound: 0, inbound: 0, failed: 0 });
});

test("twin: a plain redirect of every packet resets it", async () => {
  const { a1, b1 } = world.pods;
  await world.program(a1, "enrolment-proxy.ts");
  const open = load(a1, b1, "--long", "5");
  await connected(a1, 5);
  await runNft(
    "table inet vt { chain o { type nat hook output priority -100; meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001; }; }",
    { netns: a1.netns },
  );
  await until(() => connections(a1) < 5, "a connection that ends");
  const result = await open.stop();
  assert.ok((result.failures["long:ECONNRESET"] ?? 0) > 0, JSON.stringify(result.failures));
});

for (const [where, target] of [
  ["across nodes", "b1"],
  ["on one node", "a2"],
] as const) {
  test(`new connections go through the proxies of both ends ${where}`, async () => {
    const [from, to] = [world.pods.a1, world.pods[target]];
    const client = await world.program(from, "enrolment-proxy.ts");
    const server = await world.program(to, "enrolment-proxy.ts");
    for (const pod of [from, to]) await nftRedirector.install(pod.netns, CAPTURE);
    const running = load(from, to, "--rate", "50");
    await passedOn(server, "inbound", 30);
    const result = await running.stop();
    assert.deepEqual(result.failures, {});
    const [outbound, inbound] = [await counts(client), await counts(server)];
    assert.ok(outbound.outbound >= result.short.done && outbound.inbound === 0, JSON.stringify(outbound));
    assert.ok(inbound.inbound >= result.short.done && inbound.outbound === 0, JSON.stringify(inbound));
  });
}

test("redirected connections go on when capturing stops, new ones go their own way, and the count finds the end", async () => {
  const { a1, b1 } = world.pods;
  const counted = (): number[] => [a1, b1].map((pod) => nftRedirector.countRedirected(pod.netns));
  const client = await world.program(a1, "enrolment-proxy.ts");
  await world.program(b1, "enrolment-proxy.ts");
  for (const pod of [a1, b1]) await nftRedirector.install(pod.netns, CAPTURE);
  assert.equal(await nftRedirector.read(a1.netns), "capturing");
  const open = load(a1, b1, "--long", "5");
  await until(() => counted().every((count) => count === 5), "5 redirected connections at both ends");
  for (const pod of [a1, b1]) await nftRedirector.keep(pod.netns);
  assert.equal(await nftRedirector.read(a1.netns), "kept");
  const fresh = load(a1, b1, "--rate", "50", "--long", "1");
  await connected(a1, 11); // five of the application, five of its proxy, and a new one that is direct
  await delay(500);
  const [freshResult, openResult] = [await fresh.stop(), await open.stop()];
  assert.deepEqual([freshResult.failures, openResult.failures], [{}, {}]);
  assert.ok(freshResult.short.done > 0);
  assert.equal(openResult.long.alive, 5);
  assert.equal((await counts(client)).outbound, 5);
  await until(() => counted().every((count) => count === 0), "no redirected connection");
  for (const pod of [a1, b1]) await nftRedirector.remove(pod.netns);
  assert.equal(await nftRedirector.read(a1.netns), "absent");
  assert.equal(world.exec(a1, "nft", "list", "ruleset"), "");
  assert.ok(!world.exec(a1, "ip", "rule").includes("0x111"));
});

test("twin: taking the whole table away breaks them", async () => {
  const { a1, b1 } = world.pods;
  await world.program(a1, "enrolment-proxy.ts");
  await nftRedirector.install(a1.netns, CAPTURE);
  const open = load(a1, b1, "--long", "5");
  await until(() => nftRedirector.countRedirected(a1.netns) === 5, "5 redirected connections");
  const before = connections(a1);
  await runNft(`delete table ${REDIRECTION_TABLE}`, { netns: a1.netns });
  await until(() => connections(a1) < before, "a connection that ends");
  const result = await open.stop();
  assert.ok((result.failures["long:ECONNRESET"] ?? 0) > 0, JSON.stringify(result.failures));
});

test("ten flips of both ends under load reset nothing and lose no byte", { timeout: 120_000 }, async (context) => {
  const { a1, a2, b1 } = world.pods;
  const pods = [a1, a2, b1];
  const proxies = await Promise.all(pods.map(async (pod) => world.program(pod, "enrolment-proxy.ts")));
  const loads = [load(a1, b1, "--long", "20", "--rate", "20"), load(a1, a2, "--long", "20", "--rate", "20")];
  await connected(a1, 40);
  const tookMs: number[] = [];
  for (let flip = 0; flip < 10; flip++) {
    for (const pod of pods) {
      const startMs = performance.now();
      await nftRedirector.install(pod.netns, CAPTURE);
      tookMs.push(performance.now() - startMs);
    }
    await delay(300);
    for (const pod of pods) await nftRedirector.keep(pod.netns);
    await delay(300);
    const mayGo = pods.every((pod) => nftRedirector.countRedirected(pod.netns) === 0);
    if (mayGo) for (const pod of pods) await nftRedirector.remove(pod.netns);
  }
  const results = await Promise.all(loads.map(async (running) => running.stop()));
  const passed = await Promise.all(proxies.map(counts));
  for (const result of results) {
    assert.deepEqual(result.failures, {});
    assert.equal(result.corrupt, 0);
    assert.equal(result.long.alive, 20);
    assert.ok(result.short.done > 50, JSON.stringify(result.short));
  }
  assert.ok(
    passed.every(({ outbound, inbound, failed }) => outbound + inbound > 10 && failed === 0),
    JSON.stringify(passed),
  );
  const median = tookMs.toSorted((a, b) => a - b)[tookMs.length / 2] ?? 0;
  context.diagnostic(
    `redirection of a pod installed in ${median.toFixed(1)} ms (median of ${tookMs.length}, under load)`,
  );
});

test("a connection under a client's address never takes a port that the client may use itself", async () => {
  const { a1, b1 } = world.pods;
  await nftRedirector.install(b1.netns, CAPTURE); // brings the answers back to the borrowed address
  await nftRedirector.install(b1.netns, CAPTURE); // brings the answers back to the borrowed address
  for (let i = 0; i < 20; i++) {
    const socket = await connectTcp({
      netns: b1.netns,
      sourceIp: parseIp(a1.ip),
      mark: 0x539,
      ip: parseIp(b1.ip),
      port: 9000,
      timeoutMs: 2000,
      clock: systemClock(),
    }).catch((error: unknown) => error);
    assert.ok(socket instanceof TcpSocket, String(socket));
    assert.ok(socket.local.port >= 1024 && socket.local.port < 32_768, String(socket.local.port));
    socket.close();
  }
  await nftRedirector.remove(b1.netns);
});

/** Connects from a fixed port and ends the connection when it is told to; resolves when it is open. */
async function fixedPort(from: TestPod, to: TestPod): Promise<ChildProcess> {
  const script = `const s = require("net").connect({ host: "${to.ip}", port: 9000, localPort: 45001 }, () => console.log("open"));
    s.on("error", (error) => console.log(error.code)); process.on("SIGTERM", () => { s.resetAndDestroy(); setTimeout(process.exit, 50); });`;
  const child = world.spawn(from, process.execPath, "-e", script);
  assert.equal(await firstLine(child), "open");
  return child;
}

for (const [title, otherTable, expected] of [
  ["what was tracked before the pod was plain does not lead a new connection past the proxy", false, 1],
  ["twin: with the old entries still there it does", true, 0],
] as const) {
  test(title, async () => {
    const { a1, b1 } = world.pods;
    await nftRedirector.install(a1.netns, CAPTURE);
    await nftRedirector.keep(a1.netns);
    const first = await fixedPort(a1, b1); // tracked, not redirected
    if (otherTable) await runNft("table inet other", { netns: a1.netns }); // keeps the entries from being forgotten
    await nftRedirector.remove(a1.netns); // nothing is tracked from here on
    first.kill("SIGTERM");
    await once(first, "exit");
    const proxy = await world.program(a1, "enrolment-proxy.ts");
    await nftRedirector.install(a1.netns, CAPTURE);
    await fixedPort(a1, b1);
    assert.equal((await counts(proxy)).outbound, expected);
  });
}

test("in ingress mode inbound connections do not pass the proxy, and outbound ones do", async () => {
  const { a1, b1 } = world.pods;
  const [near, far] = [await world.program(a1, "enrolment-proxy.ts"), await world.program(b1, "enrolment-proxy.ts")];
  await nftRedirector.install(a1.netns, { inbound: false, dns: false });
  await nftRedirector.install(b1.netns, { inbound: false, dns: false });
  (await fixedPort(a1, b1)).kill("SIGTERM");
  assert.deepEqual(await counts(near), { outbound: 1, inbound: 0, failed: 0 });
  assert.deepEqual(await counts(far), { outbound: 0, inbound: 0, failed: 0 });
});

test("a virtual machine behind a pod is captured as what the pod dials, by the interface that the pod names", async () => {
  const { a1, b1 } = world.pods;
  const machine = world.addMachine(a1, "vm0");
  const proxy = await world.program(a1, "enrolment-proxy.ts");
  await nftRedirector.install(a1.netns, { inbound: true, dns: false, virtualInterfaces: ["vm0"] });
  (await fixedPort(machine, b1)).kill("SIGTERM");
  assert.deepEqual(await counts(proxy), { outbound: 1, inbound: 0, failed: 0 });
});

/** Answers every question with itself, late, as a nameserver of the cluster would. */
function nameserver(pod: TestPod): Disposable {
  const server: UdpListener = listenUdp(
    { netns: pod.netns, ip: pod.ip, port: 53 },
    {
      onError: assert.fail,
      onMessage: (question, from) => {
        const answer = Buffer.from(question);
        answer.writeUInt16BE(0x8180, 2);
        systemClock().after(20, () => server.send(answer, from));
      },
    },
  );
  return { [Symbol.dispose]: () => server.close() };
}

/** The DNS that the proxy opens in a pod; it knows no name, and counts what it is asked. */
function capturedDns(pod: TestPod, server: TestPod): AsyncDisposable & { asked: () => number } {
  const cells = new CellSet(dnsMetrics);
  const dns = new PodDns({
    netns: pod.netns,
    port: DNS_PORT,
    resolver: {
      table: { servicesByHostname: () => [], endpoints: () => [] },
      scope: { namespace: "shop", clusterDomain: "cluster.local" },
      network: "",
      preferredNamespace: "",
      ipv6: true,
      random: systemRandom,
    },
    forwarder: { nameservers: [parseIp(server.ip)], port: 53, mark: 0x539 },
    whenReady: () => Promise.resolve(true),
    source: () => undefined,
    record: () => {},
    clock: systemClock(),
    cells,
  });
  dns.start();
  return {
    [Symbol.asyncDispose]: () => dns.drain(0),
    asked: () => cells.bind("istio_dns_requests_total", { request_query_type: "a", request_protocol: "udp" }).value,
  };
}

interface Questions extends Disposable {
  /** How many have got their answer. */
  answered(): number;
  /** Ends it, and waits for answers that are still to come, `patienceMs` at most. */
  stop(patienceMs?: number): Promise<{ asked: number; lost: number }>;
  /** Asks once more what has no answer, as resolvers do: a datagram may be lost, and on a busy machine one is. */
  repeat(): void;
}

/** Asks all the time, from one socket that stays and from new ones, until it is told to stop; then says how many got no answer. */
function askAlways(pod: TestPod, server: TestPod): Questions {
  const waiting = new Map<number, { readonly take: () => void; readonly ask: () => void }>();
  let asked = 0;
  const stopped = new AbortController();
  const sockets = new DisposableStack();
  const where = { netns: pod.netns, ip: server.ip, port: 53 };
  const connect = (): UdpConnection => {
    const onMessage = (answer: Buffer): void => waiting.get(answer.readUInt16BE(0))?.take();
    const socket = connectUdp(where, { onMessage, onError: () => {} });
    sockets.defer(() => socket.close());
    return socket;
  };
  const lasting = connect();
  const run = async (): Promise<void> => {
    while (!stopped.signal.aborted) {
      for (const socket of [lasting, connect()]) {
        const id = ++asked;
        const take = (): void => {
          waiting.delete(id);
          if (socket !== lasting) socket.close();
        };
        const ask = (): void => socket.send(dnsQuestion("name.test", "A", { id }));
        waiting.set(id, { take, ask });
        ask();
      }
      await delay(4);
    }
  };
  const running = run();
  return {
    [Symbol.dispose]: () => {
      stopped.abort();
      sockets.dispose();
    },
    answered: () => asked - waiting.size,
    repeat: () => {
      for (const { ask } of waiting.values()) ask();
    },
    stop: async (patienceMs = 60_000) => {
      stopped.abort();
      await running;
      const endMs = performance.now() + patienceMs;
      while (waiting.size > 0 && performance.now() < endMs) await delay(20);
      return { asked, lost: waiting.size };
    },
  };
}

test("labels flip, and no DNS question of the pod is lost, of sockets that stay and of new ones", async () => {
  const { a1, b1 } = world.pods;
  using _ = nameserver(b1);
  await using dns = capturedDns(a1, b1);
  const { asked } = dns;
  using client = askAlways(a1, b1);
  for (let flip = 0; flip < 8; flip++) {
    await nftRedirector.install(a1.netns, CAPTURE);
    const before = asked();
    await until(() => asked() > before + 10, "captured questions");
    await nftRedirector.keep(a1.netns);
    await until(async () => {
      const [captured, answered] = [asked(), client.answered()];
      await until(() => client.answered() > answered + 20, "answers");
      return asked() === captured;
    }, "no more captured questions, not even of the socket that stays");
    if (flip % 2 === 0) await nftRedirector.remove(a1.netns);
  }
  const { asked: all, lost } = await client.stop();
  assert.ok(all > asked() && asked() > 80, `${asked()} of ${all} were captured`);
  assert.equal(lost, 0);
});

test("a pod that is handed over before its network is set up gets its answers from where it asked", async () => {
  const { a1, b1 } = world.pods;
  using _ = nameserver(b1);
  world.exec(a1, "ip", "address", "flush", "dev", "eth0"); // a new namespace: no address, no loopback, no table of local addresses
  world.exec(a1, "ip", "link", "set", "lo", "down");
  await using dns = capturedDns(a1, b1);
  world.exec(a1, "ip", "address", "add", `${a1.ip}/32`, "dev", "eth0");
  world.exec(a1, "ip", "route", "replace", "default", "via", "10.244.1.1", "dev", "eth0", "onlink");
  await nftRedirector.install(a1.netns, CAPTURE);
  using client = askAlways(a1, b1);
  await until(() => dns.asked() > 10, "captured questions");
  await client.stop(5_000);
  client.repeat();
  assert.equal((await client.stop()).lost, 0);
});

test("twin: rules that go at once take the answers that are under way with them", async () => {
  const { a1, b1 } = world.pods;
  using _ = nameserver(b1);
  await using __ = capturedDns(a1, b1);
  using client = askAlways(a1, b1);
  for (let flip = 0; flip < 4; flip++) {
    await nftRedirector.install(a1.netns, CAPTURE);
    await delay(100);
    await nftRedirector.remove(a1.netns);
    await delay(100);
  }
  assert.ok((await client.stop(1_000)).lost > 0);
});
