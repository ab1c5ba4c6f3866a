import assert from "node:assert/strict";
import { closeSync, existsSync, fstatSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { spawnSync } from "node:child_process";
import { after, test } from "node:test";
import fc from "fast-check";
import koffi from "koffi";
import { systemClock } from "#base/clock";
import { connectSeqpacket, listenSeqpacket, type SeqpacketConnection, type SeqpacketListener } from "./seqpacket.ts";

const folder = mkdtempSync(join(tmpdir(), "vt-linux-"));
const clock = systemClock();
after(() => rmSync(folder, { recursive: true }));
let sockets = 0;

// A second, careless implementation of the sender, which knows no limits.
const iovec = koffi.struct({ base: "void *", length: "size_t" });
const msghdr = koffi.struct({
  name: "void *",
  nameLength: "uint32_t",
  iov: koffi.pointer(iovec),
  iovCount: "size_t",
  control: "void *",
  controlLength: "size_t",
  flags: "int",
});
const libc = koffi.load("libc.so.6");
const sendmsg = libc.func("sendmsg", "long", ["int", koffi.pointer(msghdr), "int"]);

function rawConnect(path: string): number {
  const fd = Number(libc.func("int socket(int, int, int)")(1, 5, 0));
  const address = Buffer.from(`\x01\x00${path}\0`, "latin1");
  assert.equal(libc.func("int connect(int, void *, uint32_t)")(fd, address, address.length), 0);
  return fd;
}

function rawSend(fd: number, data: Buffer, fdCount: number): void {
  const control = Buffer.alloc(16 + 4 * fdCount);
  control.writeBigUInt64LE(BigInt(control.length), 0);
  control.writeInt32LE(1, 8);
  control.writeInt32LE(1, 12);
  const rights = fdCount === 0 ? { control: null, controlLength: 0 } : { control, controlLength: control.length };
  const iov = [{ base: data, length: data.length }];
  const message = { name: null, nameLength: 0, iov, iovCount: 1, ...rights, flags: 0 };
  assert.equal(sendmsg(fd, message, 0), data.length);
}

async function pair(): Promise<{
  listener: SeqpacketListener;
  client: SeqpacketConnection;
  server: SeqpacketConnection;
  [Symbol.dispose](): void;
}> {
  const accepted = Promise.withResolvers<SeqpacketConnection>();
  const listener = listenSeqpacket({ path: join(folder, `s${sockets++}`), clock }, accepted.resolve);
  const client = connectSeqpacket(listener.path);
  const server = await accepted.promise;
  const close = (): void => {
    listener.close();
    client.close();
    server.close();
  };
  return { listener, client, server, [Symbol.dispose]: close };
}

test("a descriptor arrives as another one of the same file", async () => {
  using ends = await pair();
  const fd = openSync("/proc/self/ns/net", "r");
  ends.server.send(Buffer.from("take it"), [fd]);
  const message = await ends.client.receive();
  assert.equal(Buffer.from(message?.data ?? []).toString(), "take it");
  const [received = -1] = message?.fds ?? [];
  assert.notEqual(received, fd);
  assert.equal(fstatSync(received).ino, fstatSync(fd).ino);
  closeSync(received);
  closeSync(fd);
});

test("packets keep their borders and their order, both ways, whatever is in them", async () => {
  using ends = await pair();
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 1024 }), { minLength: 1, maxLength: 8 }),
      fc.boolean(),
      async (packets, fromServer) => {
        const [from, to] = fromServer ? [ends.server, ends.client] : [ends.client, ends.server];
        for (const packet of packets) from.send(packet);
        for (const packet of packets) assert.deepEqual((await to.receive())?.data, packet);
      },
    ),
  );
});

test("receiving waits for a packet, and two connections wait side by side", async () => {
  using first = await pair();
  using second = await pair();
  const fromFirst = first.client.receive();
  const fromSecond = second.client.receive();
  await new Promise((resolve) => setTimeout(resolve, 20));
  second.server.send(Buffer.from("2"));
  assert.equal(Buffer.from((await fromSecond)?.data ?? []).toString(), "2");
  first.server.send(Buffer.from("1"));
  assert.equal(Buffer.from((await fromFirst)?.data ?? []).toString(), "1");
});

test("the end of the peer, an own close and an abort each end the wait in their own way", async () => {
  using one = await pair();
  const ended = one.client.receive();
  one.server.close();
  assert.equal(await ended, undefined);
  assert.throws(() => one.client.send(Buffer.from("x")), { code: "LINUX_SEQPACKET_CLOSED" });

  using two = await pair();
  const closed = two.client.receive();
  two.client.close();
  assert.equal(await closed, undefined);
  assert.throws(() => two.client.send(Buffer.from("x")), { code: "LINUX_SEQPACKET_CLOSED" });

  using three = await pair();
  const stop = new AbortController();
  const aborted = three.client.receive(stop.signal);
  stop.abort(new Error("enough"));
  await assert.rejects(aborted, /enough/);
  three.server.send(Buffer.from("still there"));
  assert.equal((await three.client.receive())?.data.length, 11);
});

test("a packet that is too long, or carries too many descriptors, is refused and leaks no descriptor", async () => {
  using ends = await pair();
  assert.throws(() => ends.client.send(new Uint8Array(1025)), { code: "LINUX_SEQPACKET_SIZE" });
  assert.throws(() => ends.client.send(new Uint8Array(0)), { code: "LINUX_SEQPACKET_SIZE" });
  const accepted = Promise.withResolvers<SeqpacketConnection>();
  using listener = listenSeqpacket({ path: join(folder, `s${sockets++}`), clock }, accepted.resolve);
  const before = readdirSync("/proc/self/fd").length;
  const fd = rawConnect(listener.path);
  rawSend(fd, Buffer.from("many"), 8);
  rawSend(fd, Buffer.from("more"), 40);
  rawSend(fd, Buffer.alloc(2000), 0);
  rawSend(fd, Buffer.from("good"), 0);
  using server = await accepted.promise;
  for (let i = 0; i < 3; i++) await assert.rejects(server.receive(), { code: "LINUX_SEQPACKET_TRUNCATED" });
  assert.equal(Buffer.from((await server.receive())?.data ?? []).toString(), "good");
  assert.equal(readdirSync("/proc/self/fd").length, before + 2);
  closeSync(fd);
});

test("a peer that does not read is reported, not waited for", async () => {
  using ends = await pair();
  const fill = (): void => {
    for (let i = 0; i < 10_000; i++) ends.server.send(new Uint8Array(1024));
  };
  assert.throws(fill, { code: "LINUX_SEQPACKET_FULL" });
});

test("a stale socket file is replaced, a served one and a plain file are not", async () => {
  using ends = await pair();
  assert.throws(() => listenSeqpacket({ path: ends.listener.path, clock }, () => {}), {
    code: "LINUX_SEQPACKET_IN_USE",
  });
  const plain = join(folder, "plain");
  writeFileSync(plain, "");
  assert.throws(() => listenSeqpacket({ path: plain, clock }, () => {}), { code: "LINUX_SYSCALL" });
  assert.throws(() => connectSeqpacket(plain), { code: "LINUX_SEQPACKET_CONNECT" });
  assert.throws(() => connectSeqpacket("/".repeat(108)), { code: "LINUX_SEQPACKET_PATH" });

  const stale = join(folder, "stale");
  spawnSync(process.execPath, [
    "-e",
    `require("net").createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, "SIGKILL"))`,
  ]);
  assert.ok(existsSync(stale));
  const listener = listenSeqpacket({ path: stale, clock }, () => {});
  listener.close();
  assert.ok(!existsSync(stale));
});
