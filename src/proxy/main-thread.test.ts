import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FakeClock } from "#base/clock";
import { parseIp } from "#base/ip";
import { CodedError } from "#base/errors";
import { silentLog } from "#base/log";
import type { Address } from "#model/workload";
import { encodeAddress } from "#proto";
import { TYPE_ADDRESS } from "#xds";
import { Addresses, ADDRESSES_PER_MESSAGE } from "./addresses.ts";
import { endCause, plainCause, tunnelCause } from "./causes.ts";
import type { ToThread } from "./messages.ts";
import { recordsOf, viewPacket } from "./packed-addresses.ts";
import { Records } from "./records.ts";
import { linesOf, RecordQueue, type RecordBatch } from "./record-queue.ts";
import { testPolicy } from "../policy/testing.ts";
import { WorkloadTable, type AddressChange } from "./table.ts";
import { testPod, testService, testView, testWorkload } from "./testing.ts";
import { DataThreads, type ThreadPort } from "./threads.ts";
import { explain, type WhyParts } from "./why.ts";

const turn = async (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

function batchOf(...lines: string[]): RecordBatch {
  return { count: lines.length, text: new TextEncoder().encode(lines.map((line) => `${line}\n`).join("")) };
}

function resource(address: Address, name?: string) {
  const own = address.kind === "workload" ? address.uid : `${address.namespace}/${address.hostname}`;
  return { typeUrl: TYPE_ADDRESS, name: name ?? own, version: "1", aliases: [], value: encodeAddress(address) };
}

describe("addresses of the control plane", () => {
  const rig = () => {
    const spread: { change: AddressChange; synced: boolean }[] = [];
    const addresses = new Addresses({
      spread: ({ packet, ...change }, synced) => {
        const records = packet === undefined ? [] : [...recordsOf(viewPacket(packet))];
        spread.push({ change: { ...change, upserts: records.map((record) => record.decode()) }, synced });
        return Promise.resolve();
      },
      clock: new FakeClock(),
      log: silentLog(),
    });
    return { addresses, spread };
  };

  it("are in force everywhere before they are acknowledged; before the first snapshot is complete they are old", async () => {
    const { addresses, spread } = rig();
    await addresses.take({ typeUrl: TYPE_ADDRESS, upserts: [resource(testWorkload("a", "10.1.0.1"))], removes: ["x"] });
    await addresses.markSynced();
    await addresses.take({ typeUrl: TYPE_ADDRESS, upserts: [resource(testService("web", "10.96.0.1"))], removes: [] });
    assert.deepEqual(
      spread.map(({ change, synced }) => [change.upserts.length, change.removes.length, change.old, synced]),
      [
        [1, 1, true, false],
        [0, 0, true, true],
        [1, 0, false, false],
      ],
    );
    assert.equal(addresses.table.size, 2);
    assert.equal(addresses.synced, true);
  });

  it("are refused one by one by name, and the good ones stay", async () => {
    const { addresses, spread } = rig();
    const good = testWorkload("a", "10.1.0.1");
    const rejections = await addresses.take({
      typeUrl: TYPE_ADDRESS,
      upserts: [
        { ...resource(good), name: "broken", value: Uint8Array.of(0xff) },
        resource(good, "another name"),
        resource(good),
      ],
      removes: [],
    });
    assert.deepEqual(
      rejections.map(({ name }) => name),
      ["broken", "another name"],
    );
    assert.match(rejections[1]?.reason ?? "", /calls itself "Kubernetes\/\/Pod\/shop\/a"/);
    assert.deepEqual(
      spread[0]?.change.upserts.map((address) => address.name),
      ["a"],
    );
  });

  it("go to the data threads in parts, the removals once", async () => {
    const { addresses, spread } = rig();
    const count = 2 * ADDRESSES_PER_MESSAGE + 1;
    const upserts = Array.from({ length: count }, (_, i) =>
      resource(testWorkload(`w${i}`, `10.1.${i >> 8}.${i & 255}`)),
    );
    await addresses.take({ typeUrl: TYPE_ADDRESS, upserts, removes: ["gone"] });
    assert.deepEqual(
      spread.map(({ change }) => change.upserts.length),
      [100, 100, 1],
    );
    assert.deepEqual(
      spread.map(({ change }) => change.removes.length),
      [1, 0, 0],
    );
  });
});

class FakePort implements ThreadPort {
  readonly posted: ToThread[] = [];
  handlers: Parameters<ThreadPort["listen"]>[0] | undefined;
  error: { code: string; message: string } | undefined;
  isTerminated = false;
  recordsTakenCount = 0;

  recordsTaken(): void {
    this.recordsTakenCount++;
  }

  post(message: ToThread): void {
    this.posted.push(message);
    if (!("seq" in message)) return;
    const { seq } = message;
    queueMicrotask(() => this.handlers?.message({ type: "done", seq, error: this.error }));
  }

  listen(handlers: Parameters<ThreadPort["listen"]>[0]): void {
    this.handlers = handlers;
  }

  terminate(): Promise<void> {
    this.isTerminated = true;
    return Promise.resolve();
  }

  types(): string[] {
    return this.posted.map(({ type }) => type);
  }
}

describe("data threads", () => {
  const rig = () => {
    const ports = [new FakePort(), new FakePort()];
    const failures: CodedError[] = [];
    const lines: string[] = [];
    const clock = new FakeClock();
    const threads = new DataThreads({
      ports,
      clock,
      ask: (name) => Promise.resolve(name === "/10.1.0.9" ? "absent" : "unavailable"),
      resolve: (hostname) => Promise.resolve({ addresses: [parseIp("192.0.2.7")], ttlMs: hostname.length }),
      records: async (more) => void lines.push(...linesOf(more)),
      failed: (error) => failures.push(error),
    });
    threads.start();
    const [one, two] = ports as [FakePort, FakePort];
    return { threads, one, two, failures, lines, clock };
  };
  const identity = (name: string) => ({
    ...testPod(name),
    id: testPod(name).identity,
    chainPem: "",
    keyPem: "secret",
    rootsPem: "",
    notAfterMs: 0,
  });

  it("get pods in turn, and certificates only of their own pods", async () => {
    const { threads, one, two } = rig();
    await threads.addPod(testPod("a"), { fd: 1, old: false });
    await threads.addPod(testPod("b"), { fd: 2, old: false });
    await threads.addPod(testPod("a"), { fd: 3, old: false });
    await threads.certificate(identity("a"));
    assert.deepEqual(one.types(), ["podAdd", "podAdd", "certificate"]);
    assert.deepEqual(two.types(), ["podAdd"]);
    assert.deepEqual(threads.identities(), [testPod("a").identity, testPod("b").identity]);
    await threads.dropPod("uid-a", 5);
    assert.deepEqual(one.types().slice(3), ["podDrop", "certificateDrop"]);
    await threads.dropPod("uid-nobody", 5);
  });

  it("all get every change of addresses", async () => {
    const { threads, one, two } = rig();
    await threads.addresses({ packet: undefined, removes: ["x"], old: false }, false);
    assert.deepEqual([one.types(), two.types()], [["addresses"], ["addresses"]]);
  });

  it("forget a pod that could not be served", async () => {
    const { threads, one, two } = rig();
    one.error = { code: "PROXY_LISTEN", message: "taken" };
    await assert.rejects(threads.addPod(testPod("a"), { fd: 1, old: false }), {
      code: "PROXY_LISTEN",
      message: "taken",
    });
    one.error = undefined;
    await threads.addPod(testPod("b"), { fd: 1, old: false });
    assert.deepEqual(two.types(), [], "the first thread is the least busy again");
  });

  it("are answered when they ask, and their records are taken", async () => {
    const { one, lines } = rig();
    one.handlers?.message({ type: "ask", name: "/10.1.0.9" });
    one.handlers?.message({ type: "records", batch: batchOf("{}") });
    await turn();
    assert.deepEqual(one.posted, [{ type: "answer", name: "/10.1.0.9", answer: "absent" }]);
    assert.equal(one.recordsTakenCount, 1);
    assert.deepEqual(lines, ["{}"]);
  });

  it("has hostnames looked up, and answers the thread that asked", async () => {
    const { one, two } = rig();
    two.handlers?.message({ type: "resolve", hostname: "api.example.com" });
    await Promise.resolve();
    await Promise.resolve();
    const answer = { addresses: ["192.0.2.7"], ttlMs: 15 };
    assert.deepEqual(two.posted, [{ type: "resolved", hostname: "api.example.com", answer }]);
    assert.deepEqual(one.posted, []);
  });

  it("end the process when one ends or hangs", async () => {
    const { one, threads, failures, clock } = rig();
    one.handlers?.exit(new Error("out of memory"));
    one.post = () => undefined;
    void threads.ping();
    await clock.advance(30_000);
    assert.deepEqual(
      failures.map(({ code }) => code),
      ["PROXY_THREAD", "PROXY_THREAD"],
    );
    assert.match(failures[1]?.message ?? "", /has not answered "look" in 30000 ms/);
  });

  it("are drained, then ended, and their end is no failure then", async () => {
    const { threads, one, two, failures } = rig();
    await threads.drain(100);
    await threads.end();
    assert.deepEqual([one.types(), two.types()], [["drain"], ["drain"]]);
    assert.ok(one.isTerminated && two.isTerminated);
    one.handlers?.exit(new Error("ended"));
    assert.deepEqual(failures, []);
  });
});

describe("access records on the main thread", () => {
  it("are written a line each, and the last thousand are kept", async () => {
    const written: string[] = [];
    const write = (bytes: Uint8Array) => written.push(Buffer.from(bytes).toString());
    const output = { write, waitingBytes: 0, whenEmpty: assert.fail };
    const records = new Records(output, silentLog());
    await records.take(batchOf('{"a":1}', '{"b":2}'));
    assert.deepEqual(written, ['{"a":1}\n{"b":2}\n']);
    for (let i = 0; i < 1_500; i++) await records.take(batchOf(`line ${i}`));
    assert.deepEqual(records.newest(["line"], 3), ["line 1499", "line 1498", "line 1497"]);
    assert.deepEqual(records.newest(["line"], 5_000).length, 1_000);
    assert.deepEqual(records.newest(["line", "9"], 1), ["line 1499"]);
    assert.deepEqual(records.newest(['"a"'], 1), []);
  });

  it("let the data threads wait while nobody reads", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const output = { write: () => {}, waitingBytes: 9 * 1024 * 1024, whenEmpty: () => promise };
    const records = new Records(output, silentLog());
    let taken = false;
    const taking = records.take(batchOf("one", "two")).then(() => (taken = true));
    await turn();
    assert.equal(taken, false);
    assert.deepEqual(records.newest([], 1), ["two"], "kept for explanations all the same");
    assert.equal(records.isStalled, true);
    resolve();
    await taking;
    assert.equal(records.isStalled, false);
  });

  it("leave a data thread in batches, one at a time, at most ten thousand waiting", async () => {
    const batches: (readonly string[])[] = [];
    const clock = new FakeClock();
    let taken = 0;
    const queue = new RecordQueue((batch) => batches.push(linesOf(batch)), {
      formatLost: (count: number) => `${count} lost`,
      clock,
      taken: () => taken,
    });
    queue.push("1");
    queue.push("2");
    await turn();
    assert.deepEqual(batches.splice(0), [["1", "2"]], "at once");
    queue.push("3");
    taken++;
    await turn();
    assert.equal(batches.length, 0, "soon after it is gathered");
    queue.push("4");
    await clock.advance(10);
    queue.push("5");
    await clock.advance(10);
    assert.deepEqual(batches, [["3", "4"]], "and the next only when this one was taken");
    for (let i = 0; i < 10_001; i++) queue.push("x");
    assert.equal(queue.dropped, 2);
    taken++;
    await clock.advance(10);
    assert.equal(batches[1]?.length, 10_001);
    assert.equal(batches[1]?.at(-1), "2 lost", "nothing is dropped without a word");
    queue.push("y");
    queue.flush();
    assert.deepEqual(batches[2], ["y"], "said once");
  });
});

describe("explanations", () => {
  const client = testWorkload("client", "10.1.0.1");
  const server = testWorkload("server", "10.1.0.2");
  const plain = testWorkload("plain", "10.1.0.3", { tunnelProtocol: "none" });
  const parts = (more: Partial<WhyParts> = {}, view = testView([client, server, plain])): WhyParts => ({
    view: () => view,
    findPod: (name) => (name === "shop/client" ? testPod("client") : undefined),
    certificate: ({ identity: id }) => ({ id, chainPem: "", keyPem: "", rootsPem: "", notAfterMs: 1 }),
    records: { newest: () => [] },
    ...more,
  });
  const why = (destination: string, more: WhyParts = parts(), source = "shop/client"): string => {
    const answer = explain(more, source, destination);
    return typeof answer === "string" ? answer : `${answer.decision} ${answer.encrypted} ${answer.reason}`;
  };

  it("say what would happen to a connection, and why", () => {
    assert.equal(why("10.1.0.2:80"), "tunnel true ok");
    assert.equal(why("10.1.0.3:80"), "plain false destination_not_enrolled");
    assert.equal(why("192.0.2.1:80"), "plain false destination_outside");
    assert.equal(why("10.9.9.9:80"), "ask false unknown_destination");
    assert.equal(why("127.0.0.1:15001"), "refuse false self_call");
    assert.equal(why("10.1.0.2:80", parts({}, testView([], { synced: false }))), "wait false no_snapshot");
    assert.equal(why("10.1.0.2:80", parts({ certificate: () => undefined })), "refuse false no_certificate");
    assert.equal(why("10.1.0.2:80", parts(), "shop/stranger"), "plain false source_not_enrolled");
  });

  it("name the policy at the destination that lets it in or refuses it", () => {
    const view = testView([client, server, plain]);
    const policy = (destination: string, source = "shop/client"): string => {
      const answer = explain(parts({}, view), source, destination);
      if (typeof answer === "string") return answer;
      return answer.policy === undefined ? "nobody" : `${answer.policy.allowed} ${answer.policy.because}`;
    };
    assert.equal(policy("10.1.0.2:80"), "true no policy restricts it");
    const strict = testPolicy("strict", [{ notPrincipals: [{ kind: "presence" }] }], { action: "deny" });
    const port = testPolicy("port", [{ destinationPorts: [80] }]);
    view.policies.apply({ upserts: [strict, port], unusable: [], removes: [] });
    assert.equal(policy("10.1.0.2:80"), "true allowed by: shop/port");
    assert.equal(policy("10.1.0.2:81"), "false allow policies exist, but none allowed");
    assert.equal(policy("10.1.0.2:80", "shop/plain"), "false explicitly denied by: shop/strict");
    assert.equal(policy("10.1.0.3:80"), "nobody", "it is not enrolled");
    assert.equal(policy("10.1.0.2:80", "shop/unknown"), "nobody", "nobody knows its address");
  });

  it("say what is wrong with the question", () => {
    assert.match(why("10.1.0.2:80", parts(), "client"), /source must be <namespace>\/<pod>, not "client"/);
    assert.match(why("server:80"), /destination must be <ip>:<port>, not "server:80"/);
    assert.match(why("10.1.0.2"), /destination must be/);
  });

  it("show the newest connections from that pod, not those to it", () => {
    const record = (name: string) =>
      `2026-01-01T00:00:00.000Z\tinfo\taccess\tconnection complete\tsrc.workload="${name}" src.namespace="shop"`;
    const answer = explain(
      parts({ records: { newest: () => [record("server"), record("client")] } }),
      "shop/client",
      "10.1.0.2:80",
    );
    assert.deepEqual(typeof answer === "string" ? answer : answer.connections.map(({ source }) => source.workload), [
      "client",
    ]);
  });
});

describe("causes", () => {
  it("give each failure its reason and keep its words", () => {
    const error = (code: string) => new CodedError(code, "words");
    assert.deepEqual(plainCause(error("LINUX_CONNECT_REFUSED")), {
      reason: "destination_unreachable",
      detail: "LINUX_CONNECT_REFUSED: words",
    });
    assert.deepEqual(plainCause(new Error("odd")), { reason: "destination_unreachable", detail: "odd" });
    for (const [code, reason] of [
      ["LINUX_NO_FILES", "limit_reached"],
      ["HBONE_DRAINING", "draining"],
      ["SPIFFE_ID_PATH", "wrong_identity"],
      ["HBONE_STREAM_REFUSED", "peer_refused"],
      ["ANYTHING_ELSE", "peer_unreachable"],
    ] as const) {
      assert.equal(tunnelCause(error(code)).reason, reason);
    }
    assert.equal(endCause(error("HBONE_DRAINING")).reason, "drained");
    assert.equal(endCause(error("PROXY_DRAINED")).reason, "drained");
    assert.equal(endCause(error("HBONE_STREAM_RESET")).reason, "reset");
  });
});

describe("the table's cap", () => {
  it("refuses what is new and keeps what is known", () => {
    const table = new WorkloadTable(2);
    const [a, b, c] = ["a", "b", "c"].map((name, i) => testWorkload(name, `10.1.0.${i + 1}`));
    if (a === undefined || b === undefined || c === undefined) assert.fail();
    table.apply({ upserts: [a], removes: [], old: false }, 0);
    const { change, refused } = table.pack({ upserts: [a, b, c], removes: [], old: false });
    table.apply(change, 0);
    assert.deepEqual(refused, [c.uid]);
    assert.deepEqual([table.size, table.findWorkload(c.uid)], [2, undefined]);
    assert.deepEqual(table.pack({ upserts: [c], removes: [a.uid], old: false }).refused, [], "what goes makes room");
    assert.deepEqual(table.pack({ upserts: [a], removes: [], old: false }).refused, [], "what is known is kept");
  });
});
