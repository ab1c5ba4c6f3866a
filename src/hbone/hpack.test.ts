import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { encodeField, HpackDecoder, HpackEncoder } from "./hpack.ts";
import { decodeHuffman, encodeHuffman } from "./huffman.ts";

const LIMIT = 64 * 1024;

function decodeHex(decoder: HpackDecoder, hex: string): string[] {
  const bytes = Buffer.from(hex.replaceAll(" ", ""), "hex");
  return [...decoder.decode(bytes, 0, bytes.length)];
}

/** `name=value` pairs, separated by blanks. */
function fields(text: string): string[] {
  return text.split(" ").flatMap((field) => {
    const equals = field.indexOf("=");
    return [field.slice(0, equals), field.slice(equals + 1)];
  });
}

const request1 = [":method", "GET", ":scheme", "http", ":path", "/", ":authority", "www.example.com"];
const request2 = [...request1, "cache-control", "no-cache"];
const request3 = fields(
  ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value",
);

test("RFC 7541 C.3: requests without Huffman, with the dynamic table", () => {
  const decoder = new HpackDecoder(LIMIT);
  assert.deepEqual(decodeHex(decoder, "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d"), request1);
  assert.deepEqual(decodeHex(decoder, "8286 84be 5808 6e6f 2d63 6163 6865"), request2);
  const third = "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65";
  assert.deepEqual(decodeHex(decoder, third), request3);
});

test("RFC 7541 C.4: requests with Huffman", () => {
  const decoder = new HpackDecoder(LIMIT);
  assert.deepEqual(decodeHex(decoder, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"), request1);
  assert.deepEqual(decodeHex(decoder, "8286 84be 5886 a8eb 1064 9cbf"), request2);
  assert.deepEqual(decodeHex(decoder, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"), request3);
});

test("RFC 7541 C.6: answers with Huffman and a table of 256 bytes that evicts", () => {
  const decoder = new HpackDecoder(LIMIT);
  const date = ["date", "Mon, 21 Oct 2013 20:13:21 GMT"];
  const rest = ["cache-control", "private", ...date, "location", "https://www.example.com"];
  const first =
    "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718" +
    "63c7 8f0b 97c8 e9ae 82ae 43d3";
  assert.deepEqual(decodeHex(decoder, first), [":status", "302", ...rest]);
  assert.deepEqual(decodeHex(decoder, "4883 640e ffc1 c0bf"), [":status", "307", ...rest]);
  const third =
    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335" +
    "dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07";
  const date2 = ["date", "Mon, 21 Oct 2013 20:13:22 GMT"];
  const head = [...fields(":status=200 cache-control=private"), ...date2];
  const cookie = ["set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"];
  const location = fields("location=https://www.example.com content-encoding=gzip");
  assert.deepEqual(decodeHex(decoder, third), [...head, ...location, ...cookie]);
});

/** A literal that goes into the table, name and value of 7-bit lengths. */
function indexed(name: string, value: string): string {
  const text = (part: string): string => Buffer.from([part.length, ...Buffer.from(part)]).toString("hex");
  return `40${text(name)}${text(value)}`;
}

test("the table evicts the oldest when a newer one needs its room, and everything for one that is larger than itself", () => {
  const decoder = new HpackDecoder(LIMIT);
  const value = "v".repeat(100);
  // An entry costs 32 + 2 + 100 bytes: 30 of them fit into 4,096.
  for (let i = 0; i < 31; i++) decodeHex(decoder, indexed(`a${i % 10}`, value));
  assert.deepEqual(decodeHex(decoder, "be"), ["a0", value], "the newest is 62");
  assert.deepEqual(decodeHex(decoder, "db"), ["a1", value], "the oldest is the second that was added");
  assert.throws(() => decodeHex(new HpackDecoder(LIMIT), "dc"), /index 92/);
  const huge = Buffer.concat([Buffer.from("4001617fe11f", "hex"), Buffer.alloc(4192, "b")]);
  assert.equal(decoder.decode(huge, 0, huge.length)[1]?.length, 4192);
  assert.throws(() => decodeHex(decoder, "be"), { code: "HBONE_COMPRESSION", message: /index 62/ });
});

test("size updates evict, come in twos, and make room again", () => {
  const decoder = new HpackDecoder(LIMIT);
  decodeHex(decoder, indexed("a", "1") + indexed("b", "2") + indexed("c", "3"));
  assert.deepEqual(decodeHex(decoder, "3f25be"), ["c", "3"], "68 bytes hold two entries of 34 bytes");
  assert.deepEqual(decodeHex(decoder, "bf"), ["b", "2"]);
  decodeHex(decoder, `203fe11f${indexed("d", "4")}`);
  assert.deepEqual(decodeHex(decoder, "be"), ["d", "4"], "emptied, then as large as ever");
  assert.throws(() => decodeHex(decoder, "bf"), { code: "HBONE_COMPRESSION" });
  const empty = new HpackDecoder(LIMIT);
  decodeHex(empty, `20${indexed("e", "5")}`);
  assert.throws(() => decodeHex(empty, "be"), { code: "HBONE_COMPRESSION" }, "nothing fits into nothing");
});

test("each broken rule of a header block is an error of its own text", () => {
  const cases: [string, RegExp][] = [
    ["80", /index 0/],
    ["be", /index 62/],
    ["0f", /ends within a field/],
    ["00", /ends within a field/],
    ["0005 61", /longer than its block/],
    ["8220", /follows a header field/],
    ["3fe1ff03", /asks for/],
    ["ffffffffffff7f", /too long/],
    ["008161ff", /longer than its block|padding/],
    ["0084ffffffff00", /end symbol/],
    ["0081fe00", /padding/],
    ["0082ffff00", /padding/],
  ];
  for (const [hex, text] of cases) {
    assert.throws(() => decodeHex(new HpackDecoder(LIMIT), hex), { code: "HBONE_COMPRESSION", message: text }, hex);
  }
});

test("a header list is bounded, also when it comes from the table", () => {
  const decoder = new HpackDecoder(1000);
  // "a" with a value of 627 bytes, put into the table; then that entry again
  const block = Buffer.concat([Buffer.from("4001617ff403", "hex"), Buffer.alloc(627, "b"), Buffer.from([0xbe])]);
  assert.equal(decoder.decode(block, 0, block.length - 1).length, 2);
  assert.throws(() => decoder.decode(block, 0, block.length), { code: "HBONE_HEADERS_TOO_LARGE" });
});

test("any text survives encoding, plain and Huffman", () => {
  const latin = fc.string({ unit: fc.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code)) });
  fc.assert(
    fc.property(latin, latin, (name, value) => {
      const field = encodeField(name, value);
      assert.deepEqual([...new HpackDecoder(LIMIT).decode(field, 0, field.length)], [name, value]);
      const coded = encodeHuffman(value);
      assert.equal(decodeHuffman(coded, 0, coded.length), value);
    }),
  );
  for (const [name, value] of [
    [":status", "200"],
    [":method", "CONNECT"],
    [":authority", "10.0.0.1:80"],
  ] as const) {
    const field = encodeField(name, value);
    assert.deepEqual([...new HpackDecoder(LIMIT).decode(field, 0, field.length)], [name, value]);
  }
});

test("any bytes are decoded or refused with a code of ours", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 4 }), (blocks) => {
      const decoder = new HpackDecoder(LIMIT);
      try {
        for (const block of blocks) {
          const padded = Buffer.concat([Buffer.from([0x82]), block, Buffer.from([0x82])]);
          const list = decoder.decode(padded, 1, padded.length - 1);
          assert.equal(list.length % 2, 0);
        }
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("HBONE_"));
      }
    }),
    { numRuns: 1000 },
  );
});

test("what blocks share is sent once, and what an encoder makes its decoder reads, also when the table is full or taken away", () => {
  const encoder = new HpackEncoder();
  const first = Buffer.concat([encoder.shared(":method", "CONNECT"), encoder.shared("baggage", "k=v")]);
  const again = Buffer.concat([encoder.shared(":method", "CONNECT"), encoder.shared("baggage", "k=v")]);
  assert.equal(again.length, 2);
  const decoder = new HpackDecoder(LIMIT);
  for (const block of [first, again]) {
    assert.deepEqual(decoder.decode(block, 0, block.length), [":method", "CONNECT", "baggage", "k=v"]);
  }
  const field = fc.tuple(
    fc.constantFrom(":authority", ":status", "baggage", "x-forwarded-network", "date"),
    fc.oneof(fc.constantFrom("200", "a", "10.0.0.1:80"), fc.string({ unit: "binary-ascii", maxLength: 1500 })),
  );
  const block = fc.record({
    shared: fc.array(field, { maxLength: 6 }),
    own: fc.array(field, { maxLength: 2 }),
    lowered: fc.nat(40),
  });
  fc.assert(
    fc.property(fc.array(block, { maxLength: 30 }), (blocks) => {
      const [out, back] = [new HpackEncoder(), new HpackDecoder(1 << 20)];
      for (const { shared, own, lowered } of blocks) {
        if (lowered === 0) out.close();
        const fields = [...shared.map((pair) => out.shared(...pair)), ...own.map((pair) => encodeField(...pair))];
        const bytes = Buffer.concat(out.block(fields));
        assert.deepEqual(back.decode(bytes, 0, bytes.length), [...shared, ...own].flat());
      }
    }),
  );
});
