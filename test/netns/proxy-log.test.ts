import assert from "node:assert/strict";
import { closeSync, constants, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { connectUdp } from "#linux";
import { dnsQuestion } from "../../src/dns/testing.ts";
import { testService } from "../../src/proxy/testing.ts";
import { listen, ProxyWorld, run, say, until, type Node, type Pod } from "./proxy-world.ts";

// Both proxies write to what takes nothing any more: node a's standard output and error are one pipe whose reader has stopped,
// node b's output is a file on a disk that is full.

const WORDS = "words";
const DISK_KIB = 48 * 1024;
const LOG_KIB = 256;
const NAMESERVER = "10.96.0.10";
/** Long, so that fewer questions fill what may wait. */
const HOST = `${["a", "b", "c"].map((letter) => letter.repeat(60)).join(".")}.example.com`;
/** Questions on their way at a time, and for how long one of them may be. */
const AT_A_TIME = 64;
const LOST_AFTER_MS = 100;
const PATIENCE_MS = 240_000;
/** More than the garbage between two collections. */
const GROWTH_KIB = 48 * 1024;

let world: ProxyWorld;
let reader: Socket | undefined;
/** Of the disk. */
let files: readonly number[] = [];
/** Makes room again; the result is all that has been written. */
const release = new Map<string, () => () => string>();

before(async () => {
  world = await ProxyWorld.create();
  const { a, b, client, server, folder } = world;
  const pipe = join(folder, "pipe");
  run("mkfifo", pipe);
  const stopped = openSync(pipe, constants.O_RDWR | constants.O_NONBLOCK); // a reader that reads nothing
  a.output = { out: stopped, error: stopped };
  release.set("a", () => {
    let text = "";
    reader = new Socket({ fd: stopped }).on("data", (part) => (text += part.toString()));
    return () => text;
  });
  const disk = join(folder, "disk");
  mkdirSync(disk);
  run("mount", "-t", "tmpfs", "-o", `size=${DISK_KIB}k`, "vt-proxy-log", disk);
  const [log, filler] = [openSync(join(disk, "log"), "a+"), openSync(join(disk, "filler"), "w")];
  writeSync(filler, Buffer.alloc((DISK_KIB - LOG_KIB) * 1024));
  files = [log, filler];
  run("umount", "--lazy", disk); // it is there as long as its files are open
  b.output = { out: log, error: "pipe" };
  release.set("b", () => {
    ftruncateSync(filler);
    return () => readFileSync(`/proc/self/fd/${log}`, "utf8");
  });
  world.publish(client, server);
  for (const node of [a, b]) node.publish([testService("web", "10.201.200.1", { hostname: HOST })]);
  await Promise.all([a.certify(client), b.certify(server)]);
  await Promise.all([a.startAgent(), b.startAgent()]);
  await Promise.all([a.startProxy(), b.startProxy()]);
  await Promise.all([world.enrol(client), world.enrol(server)]);
  listen(server, 8080, (socket) => socket.pipe(socket));
});
after(async () => {
  reader?.destroy();
  await world[Symbol.asyncDispose]();
  for (const fd of files) closeSync(fd);
});

/** Asks the pod's DNS for the same name until `enough`: each question is a line of the access log. */
async function ask(pod: Pod, enough: () => Promise<boolean>): Promise<void> {
  let onTheirWay = 0;
  const question = dnsQuestion(HOST);
  const send = (): void => {
    for (; onTheirWay < AT_A_TIME; onTheirWay++) socket.send(question);
  };
  const onMessage = (): void => {
    onTheirWay--;
    if (onTheirWay < AT_A_TIME / 2) send();
  };
  const socket = connectUdp({ netns: pod.netns, ip: NAMESERVER, port: 53 }, { onMessage, onError: () => undefined });
  const again = setInterval(() => {
    onTheirWay = 0; // what was lost on its way
    send();
  }, LOST_AFTER_MS);
  await until("enough lines", enough, PATIENCE_MS).finally(() => {
    clearInterval(again);
    socket.close();
  });
}

async function droppedBy(node: Node): Promise<number> {
  const page = await node.get(15_020, "/metrics");
  assert.match(page, /records_dropped_total/, "the main thread answers");
  return Number(/^veil_proxy_records_dropped_total (\d+)$/m.exec(page)?.[1]);
}

const residentKib = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);

describe("a log that cannot be written", () => {
  for (const [side, what] of [
    ["a", "a pipe whose reader has stopped"],
    ["b", "a full disk"],
  ] as const) {
    it(`(${what}) stops no connection, is told of, and takes no more memory`, async (t) => {
      const { client, server } = world;
      const node = world[side];
      const pod = side === "a" ? client : server;
      const hears = async (): Promise<void> => {
        for (let i = 0; i < 20; i++) assert.equal(await say(client, { ip: server.ip, port: 8080 }, WORDS), WORDS);
      };
      await node.post("/logging?level=access=debug");
      await ask(pod, async () => (await droppedBy(node)) > 0);
      await hears();
      const [kib, dropped] = [residentKib(node.dataPathPid), await droppedBy(node)];
      await ask(pod, async () => (await droppedBy(node)) > dropped + 3_000);
      await hears();
      const grown = residentKib(node.dataPathPid) - kib;
      assert.ok(grown < GROWTH_KIB, `${grown} KiB more`);
      const written = release.get(side)?.();
      const told = (): number =>
        [...(written?.() ?? "").matchAll(/access records dropped.*count=(\d+)/g)].reduce(
          (sum, [, n]) => sum + Number(n),
          0,
        );
      const isTold = async (): Promise<boolean> => told() > 0 && told() === (await droppedBy(node));
      await until("lines that tell what was lost", isTold, PATIENCE_MS);
      await until("records of new connections", async () => {
        await hears();
        return /connection complete/.test((written?.() ?? "").split("access records dropped").at(-1) ?? "");
      });
      t.diagnostic(`${told()} lines dropped, ${grown} KiB more`);
    });
  }
});
