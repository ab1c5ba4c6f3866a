import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { connect, createServer, type Server } from "node:net";
import { after, describe, test } from "node:test";
import { decode, encode, type RecordType } from "dns-packet";
import { systemClock } from "#base/clock";
import { parseIp } from "#base/ip";
import { CellSet } from "#base/metrics";
import { systemRandom } from "#base/random";
import { socketPath, useSocketPath } from "#linux";
import { dnsMetrics } from "./metrics.ts";
import { PodDns, type PodDnsOptions } from "./pod-dns.ts";
import { readMessages, writeMessage } from "./tcp-messages.ts";
import {
  dnsEndpoint,
  dnsQuestion,
  dnsResolver,
  dnsService,
  dnsTable,
  kubernetesService,
  readAnswer,
} from "./testing.ts";

const clock = systemClock();
const closing: (() => unknown)[] = [];
after(async () => {
  for (const close of closing.toReversed()) await close();
});

type Behaviour = (question: Buffer, protocol: "udp" | "tcp") => Buffer | undefined;

/** Ports below those that the kernel gives away, so that they are free for both protocols. */
let nextPort = 20_000 + systemRandom.below(10_000);

/** Does `make` with one port after the other until it works. */
async function onFreePort<T>(make: (port: number) => T | Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await make(++nextPort);
    } catch (error) {
      if (tries > 20) throw error;
    }
  }
}

/** A nameserver that answers as it is told, over UDP and TCP on one port. */
async function nameserver(behave: Behaviour): Promise<number> {
  return onFreePort(async (port) => {
    const tcp: Server = createServer((socket) => {
      socket.on("error", () => {});
      readMessages(socket, (question) => {
        const answer = behave(question, "tcp");
        if (answer === undefined) socket.destroy();
        else writeMessage(socket, answer);
      });
    });
    await new Promise<void>((done, failed) => void tcp.once("error", failed).listen(port, "127.0.0.1", done));
    closing.push(() => tcp.close());
    await udpNameserver(behave, port, "127.0.0.1");
    return port;
  });
}

async function udpNameserver(behave: Behaviour, port: number, ip: string): Promise<void> {
  const udp = createSocket("udp4");
  udp.on("message", (question, peer) => {
    const answer = behave(question, "udp");
    if (answer !== undefined) udp.send(answer, peer.port, peer.address);
  });
  await new Promise<void>((done, failed) => void udp.once("error", failed).bind(port, ip, done));
  closing.push(() => udp.close());
}

/** Knows `known.example.com`, with as many addresses as fit, and nothing else. */
const example =
  (count = 1): Behaviour =>
  (question, protocol) => {
    const { id, questions = [] } = decode(question);
    const [asked] = questions;
    if (asked === undefined) return undefined;
    const isKnown = asked.name === "known.example.com";
    const fits = protocol === "tcp" ? count : Math.min(count, 12);
    const answers = Array.from({ length: isKnown ? fits : 0 }, (_, i) => {
      return { name: asked.name, type: "A" as const, ttl: 5, data: `9.9.${i >> 8}.${i & 255}` };
    });
    const flags = (isKnown ? 0 : 3) | 0x0400 | (fits < count ? 0x0200 : 0);
    return encode({ type: "response", id: id ?? 0, flags, questions: [asked], answers });
  };

const table = dnsTable(
  [
    kubernetesService("web.ns1", ["10.96.0.1"]),
    kubernetesService("large.ns1", []),
    dnsService("api.example.org", ["240.240.0.1"]),
  ],
  {
    "large.ns1.svc.cluster.local": Array.from({ length: 300 }, (_, i) => dnsEndpoint([`10.1.${i >> 8}.${i & 255}`])),
  },
);

class Rig {
  readonly cells = new CellSet(dnsMetrics);
  readonly records: Parameters<PodDnsOptions["record"]>[0][] = [];
  readonly port: number;
  readonly dns: PodDns;

  /** `nameservers` are on `upstream`; `more.port` shares the port of another rig. */
  static async start(upstream: number, more: Partial<PodDnsOptions> = {}, nameservers = ["127.0.0.1"]): Promise<Rig> {
    const forwarder = { nameservers: nameservers.map((ip) => parseIp(ip)), port: upstream, mark: undefined };
    return onFreePort((port) => new Rig({ port, forwarder, ...more }));
  }

  private constructor(more: Partial<PodDnsOptions> & Pick<PodDnsOptions, "port" | "forwarder">) {
    this.port = more.port;
    this.dns = new PodDns({
      netns: undefined,
      resolver: dnsResolver(table),
      whenReady: () => Promise.resolve(true),
      source: () => dnsEndpoint([], { canonicalName: "shop", canonicalRevision: "v1" }),
      clock,
      cells: this.cells,
      record: (record) => this.records.push(record),
      ...more,
    });
    this.dns.start();
    closing.push(() => this.dns.drain(0));
  }

  /** The answer over UDP; undefined when none comes. */
  async udp(bytes: Buffer, timeoutMs = 10_000): Promise<Buffer | undefined> {
    const socket = createSocket("udp4");
    const answer = await new Promise<Buffer | undefined>((done) => {
      const cancel = clock.after(timeoutMs, () => done(undefined));
      socket.on("message", (message) => {
        cancel();
        done(message);
      });
      socket.send(bytes, this.port, "127.0.0.1");
    });
    socket.close();
    return answer;
  }

  /** The answers over one TCP connection, whose sending side ends after the questions. */
  async tcp(...questions: readonly Buffer[]): Promise<readonly Buffer[]> {
    const answers: Buffer[] = [];
    const socket = connect({ port: this.port, host: "127.0.0.1", allowHalfOpen: true });
    readMessages(socket, (message) => answers.push(Buffer.from(message)));
    for (const question of questions) writeMessage(socket, question);
    socket.end();
    await new Promise((done, failed) => void socket.on("close", done).on("error", failed));
    return answers;
  }

  async ask(name: string, type: RecordType, protocol: "udp" | "tcp"): Promise<string> {
    const question = dnsQuestion(name, type);
    const bytes = protocol === "udp" ? await this.udp(question) : (await this.tcp(question))[0];
    assert.ok(bytes, `${name} is answered over ${protocol}`);
    const { packet, texts } = readAnswer(bytes);
    const rcode = (packet as unknown as { rcode: string }).rcode;
    return [rcode, packet.flag_aa ? "ours" : "theirs", ...texts].join(" | ");
  }

  count(name: string): number {
    return this.cells
      .snapshot()
      .filter((sample) => sample.name === name)
      .reduce((sum, { value }) => sum + value, 0);
  }
}

describe("DNS of a pod", () => {
  for (const [protocol, path] of [
    ["udp", socketPath()],
    ["tcp", "handles"],
    ["tcp", "public"],
  ] as const) {
    test(`over ${protocol} (${path}): its own names, others' names, and no names`, async (t) => {
      const before = socketPath();
      t.after(() => useSocketPath(before));
      useSocketPath(path);
      const rig = await Rig.start(await nameserver(example()));
      assert.equal(await rig.ask("web", "A", protocol), "NOERROR | ours | web A 10.96.0.1");
      assert.equal(await rig.ask("web", "AAAA", protocol), "NOERROR | ours");
      assert.equal(await rig.ask("api.example.org", "A", protocol), "NOERROR | ours | api.example.org A 240.240.0.1");
      assert.equal(await rig.ask("known.example.com", "A", protocol), "NOERROR | theirs | known.example.com A 9.9.0.0");
      assert.equal(await rig.ask("unknown.example.com", "A", protocol), "NXDOMAIN | theirs");
      assert.equal(await rig.ask("web", "MX", protocol), "NXDOMAIN | theirs");
      assert.deepEqual(
        rig.records.map(({ name, queryType, result }) => `${name} ${queryType} ${result}`),
        [
          "web a success",
          "web aaaa no records",
          "api.example.org a success",
          "known.example.com a forwarded",
          "unknown.example.com a forwarded",
          "web mx forwarded",
        ],
      );
    });
  }

  test("counts as upstream does, by type, protocol and asking service", async () => {
    const rig = await Rig.start(await nameserver(example()));
    await rig.ask("web", "A", "udp");
    await rig.ask("known.example.com", "A", "tcp");
    assert.equal(rig.count("istio_dns_requests_total"), 2);
    assert.equal(rig.count("istio_dns_upstream_requests_total"), 1);
    assert.equal(rig.count("istio_dns_upstream_failures_total"), 0);
    assert.equal(rig.count("istio_dns_upstream_request_duration_seconds_count"), 1);
    const labels = rig.cells.snapshot().find(({ name }) => name === "istio_dns_upstream_requests_total")?.labels;
    assert.deepEqual(labels, {
      request_query_type: "a",
      request_protocol: "tcp",
      source_canonical_service: "shop",
      source_canonical_revision: "v1",
    });
  });

  test("a large answer is cut over UDP and whole over TCP, its own as well as a forwarded one", async () => {
    const rig = await Rig.start(await nameserver(example(256)));
    for (const [name, count] of [
      ["large", 300],
      ["known.example.com", 256],
    ] as const) {
      const udp = readAnswer((await rig.udp(dnsQuestion(name))) ?? Buffer.alloc(0));
      assert.ok(udp.packet.flag_tc && udp.texts.length > 0 && udp.texts.length < count, name);
      const [tcp] = await rig.tcp(dnsQuestion(name));
      assert.equal(readAnswer(tcp ?? Buffer.alloc(0)).texts.length, count, name);
    }
  });

  test("several questions of one TCP connection are all answered, also after the client has ended its side", async () => {
    const rig = await Rig.start(await nameserver(example()));
    const names = ["web", "known.example.com", "unknown.example.com", "web.ns1"];
    const answers = await rig.tcp(...names.map((name, id) => dnsQuestion(name, "A", { id })));
    assert.deepEqual(
      answers.map((answer) => decode(answer).id).toSorted((a = 0, b = 0) => a - b),
      [0, 1, 2, 3],
    );
  });

  test("what is no question gets its fault, and an answer gets nothing", async () => {
    const rig = await Rig.start(await nameserver(example()));
    const rcode = async (bytes: Buffer): Promise<unknown> => {
      const answer = await rig.udp(bytes, 300);
      return answer && Reflect.get(decode(answer), "rcode");
    };
    assert.equal(await rcode(Buffer.concat([Buffer.alloc(12), Buffer.from("no question")])), "FORMERR");
    assert.equal(await rcode(dnsQuestion("web", "A", { flags: 0x2800 })), "NOTIMP");
    assert.equal(await rcode(encode({ type: "response", questions: [{ type: "A", name: "web" }] })), undefined);
  });

  test("a nameserver that refuses, lies or is silent is passed over; when none answers it is SERVFAIL, and counted", async () => {
    const good = example();
    let calls = 0;
    const port = await nameserver((question, protocol) => {
      const answer = good(question, protocol);
      calls++;
      if (calls === 1) answer?.writeUInt16BE((question.readUInt16BE(0) + 1) & 0xffff, 0); // for another question
      return answer;
    });
    const rig = await Rig.start(port);
    assert.match(await rig.ask("known.example.com", "A", "udp"), /^NOERROR/, "the second try is answered");
    assert.equal(calls, 2);
    const nobody = await Rig.start(1);
    assert.equal(await nobody.ask("known.example.com", "A", "udp"), "SERVFAIL | theirs");
    assert.equal(await nobody.ask("known.example.com", "A", "tcp"), "SERVFAIL | theirs");
    assert.equal(await nobody.ask("web", "A", "udp"), "NOERROR | ours | web A 10.96.0.1");
    assert.equal(nobody.count("istio_dns_upstream_failures_total"), 2);
    const none = await Rig.start(1, {}, []);
    assert.equal(await none.ask("known.example.com", "A", "udp"), "SERVFAIL | theirs");
  });

  test("of several nameservers the next is asked when one cannot tell", async () => {
    const behave: Behaviour = (question) => {
      const { id = 0, questions = [] } = decode(question);
      return encode({ type: "response", id, flags: 2, questions });
    };
    const port = await nameserver(behave);
    await udpNameserver(example(), port, "127.0.0.2");
    const rig = await Rig.start(port, {}, ["127.0.0.1", "127.0.0.2"]);
    assert.match(await rig.ask("known.example.com", "A", "udp"), /^NOERROR/);
    const only = await Rig.start(port);
    assert.equal(await only.ask("known.example.com", "A", "udp"), "SERVFAIL | theirs");
  });

  test("before the first snapshot a question waits, and is SERVFAIL when none comes", async () => {
    const first = Promise.withResolvers<boolean>();
    const rig = await Rig.start(await nameserver(example()), { whenReady: () => first.promise });
    const asked = rig.ask("web", "A", "udp");
    first.resolve(true);
    assert.match(await asked, /^NOERROR/);
    const never = await Rig.start(1, { whenReady: () => Promise.resolve(false) });
    assert.equal(await never.ask("web", "A", "udp"), "SERVFAIL | theirs");
  });

  test("a drain answers what it has and what waits in the queue, while the port is another's already", async () => {
    const held = Promise.withResolvers<boolean>();
    const old = await Rig.start(1, { whenReady: () => held.promise });
    const next = await Rig.start(1, { port: old.port });
    const asked = Promise.all(Array.from({ length: 64 }, () => old.udp(dnsQuestion("web"))));
    const drained = old.dns.drain(10_000);
    const later = Promise.all(Array.from({ length: 64 }, () => next.udp(dnsQuestion("web"))));
    held.resolve(true);
    for (const answer of [...(await asked), ...(await later)]) assert.ok(answer);
    await drained;
    assert.ok(next.records.length >= 64, "all new questions came to the next one");
    assert.equal(old.records.length + next.records.length, 128);
  });

  test("a flood of questions that wait is bounded, and the rest is SERVFAIL", async () => {
    const rig = await Rig.start(1, { whenReady: () => new Promise(() => {}) });
    const socket = connect({ port: rig.port, host: "127.0.0.1" });
    const answers: Buffer[] = [];
    readMessages(socket, (message) => answers.push(message));
    for (let i = 0; i < 1_100; i++) writeMessage(socket, dnsQuestion("web"));
    const startMs = clock.monotonic();
    while (answers.length < 76 && clock.monotonic() - startMs < 60_000)
      await new Promise((done) => void setImmediate(done));
    assert.equal(answers.length, 1_100 - 1_024);
    socket.destroy();
  });
});
