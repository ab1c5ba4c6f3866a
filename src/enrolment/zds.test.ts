import assert from "node:assert/strict";
import { closeSync, fstatSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { FakeClock, systemClock, type Clock } from "#base/clock";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import { CellSet } from "#base/metrics";
import { connectSeqpacket, openNetns, type SeqpacketConnection } from "#linux";
import { WorkloadRequestSchema, WorkloadResponseSchema, ZdsHelloSchema } from "#proto";
import { enrolmentMetrics } from "./metrics.ts";
import { decodeZdsAck, decodeZdsHello, encodeZdsRequest } from "./zds-codec.ts";
import { ZdsServer, type ZdsPod } from "./zds-server.ts";

const folder = mkdtempSync(join(tmpdir(), "vt-enrolment-"));
const netns = openNetns("/proc/self/ns/net");
after(() => {
  rmSync(folder, { recursive: true });
  netns[Symbol.dispose]();
});
const forever = new AbortController().signal;
let servers = 0;

function pod(uid: string, found = true): ZdsPod {
  return { uid, name: `pod-${uid}`, namespace: "shop", serviceAccount: "cart", netns: found ? netns : undefined };
}

/** What ztunnel does, written after its wire format alone: says hello, then answers each request. */
class FakeProxy {
  readonly socket: SeqpacketConnection;
  /** Answers a request: a text is the error of the acknowledgement, undefined is silence. */
  reply: (words: string) => string | undefined = () => "";
  readonly heard: string[] = [];
  readonly inodes: number[] = [];

  constructor(path: string, hello: Uint8Array = toBinary(ZdsHelloSchema, create(ZdsHelloSchema, { version: 1 }))) {
    this.socket = connectSeqpacket(path);
    this.socket.send(hello);
    void this.#run();
  }

  ack(error: string): void {
    const answer = create(WorkloadResponseSchema, { payload: { case: "ack", value: { error } } });
    this.socket.send(toBinary(WorkloadResponseSchema, answer));
  }

  async #run(): Promise<void> {
    for (;;) {
      const message = await this.socket.receive();
      if (message === undefined) return;
      const { payload } = fromBinary(WorkloadRequestSchema, message.data);
      assert.equal(message.fds.length, payload.case === "add" ? 1 : 0);
      for (const fd of message.fds) {
        this.inodes.push(fstatSync(fd).ino);
        closeSync(fd);
      }
      const uid = payload.value !== undefined && "uid" in payload.value ? ` ${payload.value.uid}` : "";
      const words = `${payload.case}${uid}`;
      this.heard.push(words);
      const answer = this.reply(words);
      if (answer !== undefined) this.ack(answer);
    }
  }
}

async function serve(
  clock: Clock = systemClock(),
): Promise<{ server: ZdsServer; path: string; [Symbol.asyncDispose](): Promise<void> }> {
  const path = join(folder, `zds${servers++}`);
  const server = new ZdsServer({ path, clock, log: silentLog(), cells: new CellSet(enrolmentMetrics) });
  await server.start(forever);
  return { server, path, [Symbol.asyncDispose]: () => server.drain(0) };
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 12_000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(condition(), "did not happen in 10 s");
}

test("a proxy gets all pods with their namespaces, then the end of the snapshot, then changes", async () => {
  await using at = await serve();
  at.server.declare(pod("a"));
  at.server.declare(pod("b", false));
  const proxy = new FakeProxy(at.path);
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.deepEqual(proxy.heard, [], "nothing is said before the agent knows its pods");
  at.server.open();
  await until(() => proxy.heard.length === 3);
  assert.deepEqual(proxy.heard, ["add a", "keep b", "snapshotSent"]);
  await at.server.add(pod("c"), forever);
  await at.server.remove("a", forever);
  at.server.declare(pod("d", false));
  at.server.declare(pod("b"));
  await until(() => proxy.heard.length === 6);
  assert.deepEqual(proxy.heard.slice(3), ["add c", "del a", "add b"], "keep is never said after the snapshot");
  assert.deepEqual(new Set(proxy.inodes), new Set([fstatSync(netns.fd).ino]));
  proxy.socket.close();
});

test("adding waits for a proxy, survives its restart, and reports its objection", async () => {
  await using at = await serve();
  at.server.open();
  const added = at.server.add(pod("a"), forever);
  const first = new FakeProxy(at.path);
  first.reply = (words) => (words === "add a" ? undefined : "");
  await until(() => first.heard.length === 1);
  first.socket.close();
  const second = new FakeProxy(at.path);
  await added;
  assert.deepEqual(second.heard[0], "add a");
  second.reply = () => "no such namespace";
  await assert.rejects(at.server.add(pod("b"), forever), {
    code: "ENROLMENT_PROXY_REFUSED",
    message: /no such namespace/,
  });
  second.reply = () => "";
  await at.server.add(pod("b"), forever);
  const stop = new AbortController();
  second.socket.close();
  await until(() => at.server.connections === 0);
  const waiting = at.server.add(pod("c"), stop.signal);
  stop.abort(new Error("label removed"));
  await assert.rejects(waiting, /label removed/);
  await at.server.remove("c", forever);
});

test("pods are handed over without waiting for each answer, and answers count in their order", async () => {
  await using at = await serve();
  const uids = Array.from({ length: 100 }, (_, i) => `pod${i}`);
  for (const uid of uids) at.server.declare(pod(uid));
  at.server.open();
  const proxy = new FakeProxy(at.path);
  proxy.reply = () => undefined;
  await until(() => proxy.heard.length === 64);
  for (let i = 0; i < 100; i++) proxy.ack(i === 7 ? "the eighth is refused" : "");
  await until(() => proxy.heard.at(-1) === "snapshotSent");
  proxy.ack("");
  assert.deepEqual(
    proxy.heard.slice(0, -1),
    uids.map((uid) => `add ${uid}`),
  );
  await at.server.add(pod("pod6"), forever);
  await at.server.add(pod("pod8"), forever);
  const again = at.server.add(pod("pod7"), forever);
  const [first, second] = [at.server.add(pod("x"), forever), at.server.add(pod("y"), forever)];
  const gone = at.server.remove("pod1", forever);
  await until(() => proxy.heard.length === 105);
  assert.deepEqual(proxy.heard.slice(-4), ["add pod7", "add x", "add y", "del pod1"]);
  for (const answer of ["", "", "no", ""]) proxy.ack(answer);
  await Promise.all([again, first, gone, assert.rejects(second, { code: "ENROLMENT_PROXY_REFUSED" })]);
  proxy.socket.close();
});

test("a proxy that is silent is an objection after 5 s, and is given up after the ninth time", async () => {
  const clock = new FakeClock();
  await using at = await serve(clock);
  at.server.open();
  const proxy = new FakeProxy(at.path);
  await until(() => proxy.heard.length === 1);
  proxy.reply = () => undefined;
  const first = at.server.add(pod("a"), forever);
  await until(() => proxy.heard.length === 2);
  await clock.advance(4_999);
  proxy.ack("");
  await first;
  const second = assert.rejects(at.server.add(pod("b"), forever), { message: /answered nothing for 5000 ms/ });
  await until(() => proxy.heard.length === 3);
  await clock.advance(5_000);
  await second;
  for (let silence = 2; silence <= 8; silence++) await clock.advance(5_000);
  assert.equal(at.server.connections, 1);
  await clock.advance(5_000);
  await until(() => at.server.connections === 0);
  proxy.socket.close();
});

test("additions go to the newest proxy, removals to all", async () => {
  await using at = await serve();
  at.server.open();
  const old = new FakeProxy(at.path);
  await until(() => old.heard.length === 1);
  await at.server.add(pod("a"), forever);
  const fresh = new FakeProxy(at.path);
  await until(() => fresh.heard.length === 2);
  await at.server.add(pod("b"), forever);
  await at.server.remove("a", forever);
  assert.deepEqual(old.heard, ["snapshotSent", "add a", "del a"]);
  assert.deepEqual(fresh.heard, ["add a", "snapshotSent", "add b", "del a"]);
  for (const proxy of [old, fresh]) proxy.socket.close();
});

test("a proxy that is the newest again gets what it has missed, and no word about what it has", async () => {
  await using at = await serve();
  at.server.open();
  const old = new FakeProxy(at.path);
  await until(() => old.heard.length === 1);
  await at.server.add(pod("a"), forever);
  const fresh = new FakeProxy(at.path);
  await until(() => fresh.heard.length === 2);
  await at.server.add(pod("b"), forever);
  fresh.socket.close();
  await until(() => old.heard.length === 3);
  await at.server.add(pod("a"), forever);
  await at.server.add(pod("b"), forever);
  assert.deepEqual(old.heard, ["snapshotSent", "add a", "add b"]);
  old.socket.close();
});

test("an old proxy's late answer does not stand for the newest one", async () => {
  await using at = await serve();
  at.server.declare(pod("a"));
  at.server.open();
  const old = new FakeProxy(at.path);
  old.reply = () => undefined; // its snapshot hangs
  await until(() => old.heard.length === 1);
  const fresh = new FakeProxy(at.path);
  await until(() => fresh.heard.length === 2);
  old.ack("not served here");
  old.reply = () => "";
  await until(() => old.heard.length === 2);
  await at.server.add(pod("a"), forever);
  assert.deepEqual(fresh.heard, ["add a", "snapshotSent"], "it was not asked again");
  for (const proxy of [old, fresh]) proxy.socket.close();
});

test("proxies are taken five a second", async () => {
  await using at = await serve();
  at.server.open();
  const startMs = performance.now();
  const proxies = Array.from({ length: 4 }, () => new FakeProxy(at.path));
  await until(() => at.server.connections === 4);
  assert.ok(performance.now() - startMs > 590, "three pauses of 200 ms");
  for (const proxy of proxies) proxy.socket.close();
});

test("programs that do not speak the protocol are disconnected, and others are served on", async () => {
  await using at = await serve();
  at.server.open();
  const wrong = [
    new FakeProxy(at.path, Buffer.from("GET / HTTP/1.1\r\n\r\n")),
    new FakeProxy(at.path, Uint8Array.of(0x08, 0)), // version 0
    new FakeProxy(at.path, Uint8Array.of(0x08, 7)), // version 7
  ];
  const talker = new FakeProxy(at.path);
  await until(() => talker.heard.length === 1);
  talker.ack("");
  const good = new FakeProxy(at.path);
  await until(() => good.heard.length === 1 && at.server.connections === 1);
  for (const proxy of wrong) assert.deepEqual(proxy.heard, []);
  for (const proxy of [...wrong, talker, good]) proxy.socket.close();
});

test("any packet is read or refused with the one code", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 1024 }), (packet) => {
      for (const decode of [decodeZdsHello, decodeZdsAck]) {
        try {
          decode(packet);
        } catch (error) {
          assert.ok(error instanceof CodedError && error.code === "ENROLMENT_ZDS_MESSAGE", String(error));
        }
      }
    }),
  );
});

test("requests and objections are read back as they were written", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }).map(wellFormed), fc.string().map(wellFormed), (uid, name) => {
      const encoded = encodeZdsRequest({ kind: "add", uid, name, namespace: "n", serviceAccount: "s" });
      const { payload } = fromBinary(WorkloadRequestSchema, encoded);
      assert.ok(payload.case === "add");
      assert.deepEqual([payload.value.uid, payload.value.workloadInfo?.name], [uid, name]);
      const ack = create(WorkloadResponseSchema, { payload: { case: "ack", value: { error: name } } });
      assert.equal(decodeZdsAck(toBinary(WorkloadResponseSchema, ack)), name);
    }),
  );
  // Field numbers as upstream has them: del is 2 with uid 2, keep is 5 with uid 1, snapshot_sent is 3.
  assert.equal(Buffer.from(encodeZdsRequest({ kind: "del", uid: "u" })).toString("hex"), "1203120175");
  assert.equal(Buffer.from(encodeZdsRequest({ kind: "keep", uid: "u" })).toString("hex"), "2a030a0175");
  assert.equal(Buffer.from(encodeZdsRequest({ kind: "snapshot-sent" })).toString("hex"), "1a00");
});

function wellFormed(text: string): string {
  return text.toWellFormed();
}
