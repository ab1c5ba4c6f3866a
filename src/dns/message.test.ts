import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, encode } from "dns-packet";
import fc from "fast-check";
import { parseIp } from "#base/ip";
import {
  answersQuery,
  decodeQuery,
  encodeAnswer,
  encodeRefusal,
  RCODE,
  relayed,
  TYPE_A,
  TYPE_AAAA,
  withId,
  type Query,
} from "./message.ts";
import { dnsQuestion, readAnswer } from "./testing.ts";

function query(bytes: Buffer): Query {
  const read = decodeQuery(bytes);
  assert.ok(!("failure" in read), "it is a question");
  return read;
}

function failureOf(bytes: Buffer): string | undefined {
  const read = decodeQuery(bytes);
  assert.ok("failure" in read, "it is no question");
  return read.failure === undefined ? undefined : (decode(read.failure) as unknown as { rcode: string }).rcode;
}

const addresses = (count: number) => Array.from({ length: count }, (_, i) => parseIp(`240.0.${i >> 8}.${i & 255}`));

test("a question is read as another implementation wrote it", () => {
  const { id, name, type, edns } = query(dnsQuestion("Web.Shop.svc.cluster.local", "AAAA"));
  assert.deepEqual(
    { id, name, type, edns },
    { id: 0x1234, name: "web.shop.svc.cluster.local", type: TYPE_AAAA, edns: undefined },
  );
  const opt = {
    type: "OPT" as const,
    name: ".",
    udpPayloadSize: 4096,
    flags: 0x8000,
    options: [],
    extendedRcode: 0,
    ednsVersion: 0,
    flag_do: true,
  };
  const more = query(dnsQuestion("a.b", "A", { additionals: [opt] }));
  assert.deepEqual(more.edns, { udpBytes: 4096, dnssecOk: true });
});

test("what is no question is answered with its fault; what is no message, or an answer, is not answered", () => {
  const good = dnsQuestion("a.b");
  const change = (at: number, byte: number): Buffer => {
    const copy = Buffer.from(good);
    copy[at] = byte;
    return copy;
  };
  assert.equal(failureOf(good.subarray(0, 11)), undefined, "no header");
  assert.equal(
    failureOf(encode({ type: "response", questions: [{ name: "a.b", type: "A" }] })),
    undefined,
    "an answer",
  );
  assert.equal(failureOf(change(2, 0x28)), "NOTIMP", "an update");
  assert.equal(failureOf(change(5, 0)), "FORMERR", "no question");
  assert.equal(failureOf(change(5, 2)), "FORMERR", "two questions");
  assert.equal(failureOf(change(12, 0xc0)), "FORMERR", "a pointer where the name begins");
  assert.equal(failureOf(change(12, 64)), "FORMERR", "a label of 64 bytes");
  assert.equal(failureOf(good.subarray(0, -1)), "FORMERR", "cut");
  const long = Buffer.concat([
    good.subarray(0, 12),
    ...Array.from({ length: 128 }, () => Buffer.from([1, 97])),
    Buffer.alloc(5),
  ]);
  assert.equal(failureOf(long), "FORMERR", "a name of 257 bytes");
});

test("a name with bytes that no host's name has is nobody's here", () => {
  const bytes = dnsQuestion("a.b");
  bytes[13] = 0x2e; // a dot inside a label
  assert.equal(query(bytes).name, undefined);
});

test("an answer is read by another implementation as it was meant, in the question's own letters", () => {
  const asked = query(dnsQuestion("WeB.example.com"));
  const { packet, texts } = readAnswer(
    encodeAnswer(asked, { addresses: [parseIp("10.0.0.1"), parseIp("10.0.0.2")] }, "udp"),
  );
  assert.deepEqual(texts, ["WeB.example.com A 10.0.0.1", "WeB.example.com A 10.0.0.2"]);
  assert.equal(packet.id, 0x1234);
  assert.ok(packet.flag_qr && packet.flag_aa && packet.flag_ra && packet.flag_rd && !packet.flag_tc);
  assert.deepEqual(new Set(packet.answers?.map((answer) => ("ttl" in answer ? answer.ttl : undefined))), new Set([30]));
  const v6 = readAnswer(encodeAnswer(asked, { addresses: [parseIp("2001:db8::1")] }, "udp"));
  assert.deepEqual(v6.texts, ["WeB.example.com AAAA 2001:db8::1"]);
});

test("a stripped search domain is told as an alias", () => {
  const asked = query(dnsQuestion("www.google.com.ns1.svc.cluster.local"));
  const { texts } = readAnswer(encodeAnswer(asked, { addresses: [parseIp("1.1.1.1")], strippedTo: 3 }, "udp"));
  assert.deepEqual(texts, ["www.google.com.ns1.svc.cluster.local CNAME www.google.com", "www.google.com A 1.1.1.1"]);
  const none = readAnswer(encodeAnswer(asked, { addresses: [], strippedTo: 3 }, "udp"));
  assert.deepEqual(none.texts, []);
  assert.equal((none.packet as unknown as { rcode: string }).rcode, "NOERROR");
});

test("over UDP an answer has the addresses that fit, and says that there are more; over TCP it has all", () => {
  const plain = query(dnsQuestion("large.com"));
  const udp = readAnswer(encodeAnswer(plain, { addresses: addresses(256) }, "udp"));
  assert.ok(udp.packet.flag_tc);
  assert.equal(udp.texts.length, Math.floor((512 - plain.questionEnd) / 16));
  const tcp = readAnswer(encodeAnswer(plain, { addresses: addresses(256) }, "tcp"));
  assert.ok(!tcp.packet.flag_tc);
  assert.equal(tcp.texts.length, 256);
  const opt = {
    type: "OPT" as const,
    name: ".",
    udpPayloadSize: 1232,
    flags: 0,
    options: [],
    extendedRcode: 0,
    ednsVersion: 0,
    flag_do: false,
  };
  const edns = encodeAnswer(
    query(dnsQuestion("large.com", "A", { additionals: [opt] })),
    { addresses: addresses(256) },
    "udp",
  );
  assert.ok(edns.length <= 1232 && edns.length > 1232 - 16);
  assert.equal(readAnswer(edns).packet.additionals?.[0]?.type, "OPT");
  const most = encodeAnswer(plain, { addresses: addresses(5000) }, "tcp");
  assert.ok(most.length <= 65_535);
  assert.ok(!readAnswer(most).packet.flag_tc);
});

test("only an answer to the question, under its number, counts; it is passed on under the client's", () => {
  const asked = query(dnsQuestion("a.example.com"));
  const answer = encode({
    type: "response",
    id: 7,
    flags: 0x0400,
    questions: [{ name: "A.example.com", type: "A" }],
    answers: [{ name: "A.example.com", type: "A", data: "9.9.9.9" }],
  });
  assert.ok(answersQuery(answer, asked, 7));
  assert.ok(!answersQuery(answer, asked, 8));
  assert.ok(!answersQuery(answer, query(dnsQuestion("b.example.com")), 7));
  assert.ok(!answersQuery(answer, query(dnsQuestion("a.example.com", "AAAA")), 7));
  assert.ok(!answersQuery(withId(asked.bytes, 7), asked, 7), "an echo of the question");
  const { packet, texts } = readAnswer(relayed(answer, asked));
  assert.equal(packet.id, 0x1234);
  assert.ok(!packet.flag_aa, "it is not our authority");
  assert.deepEqual(texts, ["A.example.com A 9.9.9.9"]);
});

test("whatever arrives, reading never throws, never reads on behind the end, and what is answered can be read", () => {
  const seeds = [dnsQuestion("web.shop"), dnsQuestion("a.b.c.d.e.f", "AAAA")];
  const noise = fc.oneof(
    fc.uint8Array({ maxLength: 600 }),
    fc
      .tuple(fc.constantFrom(...seeds), fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 4 }))
      .map(([seed, edits]) => {
        const copy = Buffer.from(seed);
        for (const [at, byte] of edits) if (at < copy.length) copy[at] = byte;
        return copy;
      }),
  );
  fc.assert(
    fc.property(noise, fc.nat(40), fc.boolean(), (bytes, count, alias) => {
      const read = decodeQuery(Buffer.from(bytes));
      if ("failure" in read) {
        assert.ok(read.failure === undefined || read.failure.length === 12);
        return;
      }
      assert.ok(read.questionEnd <= bytes.length);
      const strippedTo = alias && (read.name ?? "").includes(".") ? 1 : undefined;
      const answer = encodeAnswer(read, { addresses: addresses(count), strippedTo }, "udp");
      assert.ok(
        answer.length <= Math.max(512, read.edns?.udpBytes ?? 0) || count === 0 || answer.length <= 12 + 2 * 260 + 23,
      );
      const { packet, texts } = readAnswer(answer);
      assert.ok(packet.flag_tc || texts.length === count + (strippedTo === undefined || count === 0 ? 0 : 1));
      assert.equal(decode(encodeRefusal(read, RCODE.serverFailure)).id, read.id);
      answersQuery(Buffer.from(bytes), read, read.id);
    }),
    { numRuns: 1_000 },
  );
  assert.equal(TYPE_A, 1);
});
