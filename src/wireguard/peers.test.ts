import assert from "node:assert/strict";
import { createPublicKey, diffieHellman, generateKeyPairSync } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { cidrContains, parseCidr } from "#base/ip";
import { PeerDirectory, type NodeClaim, type Peer, type RefusalReason } from "./peers.ts";
import { keyProblem } from "./public-key.ts";
import { formatRecord, parseRecord } from "./record.ts";

const key = (number: number): string => Buffer.alloc(32, number + 3).toString("base64");

function claim(node: string, number: number, change: Partial<NodeClaim> = {}): NodeClaim {
  return {
    node,
    addresses: [`192.168.0.${number}`],
    podCidrs: [`10.244.${number}.0/24`],
    publicKey: undefined,
    record: formatRecord({
      keys: {
        0: { generation: 4, publicKey: key(2 * number), port: 51871 },
        1: { generation: 5, publicKey: key(2 * number + 1), port: 51872 },
      },
      sending: 5,
    }),
    ...change,
  };
}

function oneSlot(node: string, number: number, publicKey: string): NodeClaim {
  return claim(node, number, { record: undefined, publicKey });
}

const hexKey = (hex: string): string => Buffer.from(hex, "hex").toString("base64");
const SMALL = [
  `01${"00".repeat(31)}`,
  "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
  "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
  `ec${"ff".repeat(30)}7f`,
  `ed${"ff".repeat(30)}7f`,
  `ee${"ff".repeat(30)}7f`,
  `ec${"ff".repeat(31)}`,
];

const bad: readonly [RefusalReason, string, NodeClaim][] = [
  ["KeyInvalid", "an annotation that is no key", oneSlot("x", 9, "not a key")],
  ["KeyInvalid", "a key with a byte too many", oneSlot("x", 9, Buffer.alloc(33, 7).toString("base64"))],
  ["KeyZero", "the key that is all zero", oneSlot("x", 9, hexKey("00".repeat(32)))],
  ...SMALL.map((hex): [RefusalReason, string, NodeClaim] => ["KeySmallOrder", hex, oneSlot("x", 9, hexKey(hex))]),
  ["KeyDuplicate", "another node's key", oneSlot("x", 9, key(2))],
  ["KeyDuplicate", "the own node's key", oneSlot("x", 9, key(0))],
  [
    "KeyDuplicate",
    "one key in both slots",
    claim("x", 9, {
      record: JSON.stringify({
        slots: [
          { slot: 0, generation: 4, publicKey: key(90), port: 1 },
          { slot: 1, generation: 5, publicKey: key(90), port: 2 },
        ],
        sending: 4,
      }),
    }),
  ],
  ["RecordInvalid", "a record that is no JSON", claim("x", 9, { record: "{" })],
  [
    "RecordInvalid",
    "a key in the other slot",
    claim("x", 9, {
      record: JSON.stringify({ slots: [{ slot: 0, generation: 5, publicKey: key(90), port: 1 }], sending: 4 }),
    }),
  ],
  ["CidrOverlap", "another node's pods", claim("x", 9, { podCidrs: ["10.244.1.128/25"] })],
  ["CidrOverlap", "a range around another node's pods", claim("x", 9, { podCidrs: ["10.244.0.0/16"] })],
  ["CidrOverlap", "a range around another node's address", claim("x", 9, { podCidrs: ["192.168.0.0/24"] })],
  ["CidrTooWide", "the world", claim("x", 9, { podCidrs: ["0.0.0.0/0"] })],
  ["CidrTooWide", "the world of IPv6", claim("x", 9, { podCidrs: ["::/0"] })],
  ["CidrInvalid", "a range that is none", claim("x", 9, { podCidrs: ["10.0.0.0"] })],
  ["AddressInvalid", "an address that is none", claim("x", 9, { addresses: ["node-x"] })],
  ["AddressInvalid", "the address of nobody", claim("x", 9, { addresses: ["0.0.0.0"] })],
  ["AddressInvalid", "loopback", claim("x", 9, { addresses: ["127.0.0.1"] })],
  ["AddressMissing", "no address", claim("x", 9, { addresses: [] })],
  ["AddressDuplicate", "another node's address", claim("x", 9, { addresses: ["192.168.0.1"] })],
  ["EndpointSelf", "the address of the node that looks", claim("x", 9, { addresses: ["192.168.0.0"] })],
];

for (const [reason, what, wrong] of bad) {
  test(`a node that claims ${what} is refused with ${reason}, and the others stay`, () => {
    const directory = directoryOf([claim("self", 0), claim("a", 1), claim("b", 2)]);
    directory.upsert(wrong);
    assert.deepEqual(
      directory.refusals.map((one) => [one.node, one.reason]),
      [["x", reason]],
    );
    assert.deepEqual(
      directory.peers.map(({ node }) => node),
      ["a", "b"],
    );
  });
}

test("keys of small order are those with which every secret is zero", () => {
  const { privateKey } = generateKeyPairSync("x25519");
  for (const hex of [...SMALL, "00".repeat(32)]) {
    const publicKey = createPublicKey({
      key: { kty: "OKP", crv: "X25519", x: Buffer.from(hex, "hex").toString("base64url") },
      format: "jwk",
    });
    assert.throws(() => diffieHellman({ privateKey, publicKey }), hex);
    assert.ok(keyProblem(hexKey(hex)), hex);
  }
  const good = generateKeyPairSync("x25519").publicKey.export({ format: "jwk" }).x ?? "";
  assert.equal(keyProblem(Buffer.from(good, "base64url").toString("base64")), undefined);
});

test("a node that goes frees what it had for who was refused", () => {
  const heard: [string, boolean][] = [];
  const directory = new PeerDirectory("self", (node, peer) => heard.push([node, peer !== undefined]));
  directory.upsert(claim("a", 1));
  directory.upsert(claim("b", 2, { podCidrs: ["10.244.1.0/24"] }));
  assert.equal(directory.refusals[0]?.message, "10.244.1.0/24 overlaps what node a has");
  directory.remove("a");
  assert.deepEqual(directory.refusals, []);
  assert.deepEqual(heard, [
    ["a", true],
    ["a", false],
    ["b", true],
  ]);
});

test("a node without keys is no peer and no problem; one with a key of another's making has one slot", () => {
  const directory = directoryOf([claim("a", 1, { record: undefined }), oneSlot("b", 2, key(70))]);
  assert.deepEqual(directory.refusals, []);
  assert.deepEqual(
    directory.peers.map(({ node, hasSlots }) => [node, hasSlots]),
    [["b", false]],
  );
});

test("ranges are told as networks, and once", () => {
  const directory = directoryOf([
    claim("a", 1, {
      podCidrs: ["10.244.1.7/24", "fd00:1::5/64", "10.244.1.0/24"],
      addresses: ["192.168.0.1", "2001:db8::1"],
    }),
  ]);
  assert.deepEqual(directory.find("a")?.allowedIps, [
    "192.168.0.1/32",
    "2001:db8::1/128",
    "10.244.1.0/24",
    "fd00:1::/64",
  ]);
});

function directoryOf(claims: readonly NodeClaim[]): PeerDirectory {
  const directory = new PeerDirectory("self");
  for (const one of claims) directory.upsert(one);
  return directory;
}

/** The obvious way to say whether two peers can be at the same time. */
function conflict(a: Peer, b: Peer): boolean {
  const keys = (peer: Peer): (string | undefined)[] => [peer.keys[0]?.publicKey, peer.keys[1]?.publicKey];
  if (keys(a).some((one) => one !== undefined && keys(b).includes(one))) return true;
  return a.allowedIps.some((one) =>
    b.allowedIps.some((two) => {
      const [x, y] = [parseCidr(one), parseCidr(two)];
      return cidrContains(x, y.address) || cidrContains(y, x.address);
    }),
  );
}

const number = fc.integer({ min: 0, max: 6 });
const anyClaim = fc.record({
  node: fc.constantFrom("a", "b", "c", "d", "e"),
  addresses: fc.array(
    number.map((n) => (n === 6 ? "bad" : `192.168.0.${n}`)),
    { minLength: 1, maxLength: 2 },
  ),
  podCidrs: fc.array(
    fc.tuple(number, fc.constantFrom(16, 23, 24, 25, 32)).map(([n, length]) => `10.244.${n}.0/${length}`),
    { maxLength: 2 },
  ),
  publicKey: fc.option(number.map(key), { nil: undefined }),
  record: fc.constant(undefined),
});

test("whatever is claimed in whatever order: nobody has what another has, nobody is refused without cause, and nobody loses what it keeps claiming", () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(anyClaim, fc.boolean()), { maxLength: 30 }), (steps) => {
      const view = new Map<string, Peer>();
      const directory = new PeerDirectory("", (node, peer) =>
        peer === undefined ? view.delete(node) : view.set(node, peer),
      );
      const claims = new Map<string, NodeClaim>();
      for (const [one, gone] of steps) {
        const before = directory.peers.map(({ node }) => node).filter((node) => node !== one.node);
        if (gone) directory.remove(one.node);
        else directory.upsert(one);
        if (gone) claims.delete(one.node);
        else claims.set(one.node, one);
        const { peers } = directory;
        for (const node of before) assert.ok(directory.find(node), `${node} lost its place`);
        for (const a of peers) for (const b of peers) assert.ok(a === b || !conflict(a, b), `${a.node} ${b.node}`);
        for (const { node } of directory.refusals) {
          const alone = directoryOf([claims.get(node) ?? one]).find(node);
          assert.ok(
            alone === undefined || peers.some((peer) => conflict(peer, alone)),
            `${node} refused without cause`,
          );
        }
        for (const { node, publicKey } of claims.values()) {
          const known =
            directory.find(node) !== undefined || directory.refusals.some((refusal) => refusal.node === node);
          assert.equal(known, publicKey !== undefined, node);
        }
        assert.deepEqual(new Set(view.keys()), new Set(peers.map(({ node }) => node)));
      }
    }),
    { numRuns: 500 },
  );
});

test("5,000 nodes are judged at once, the bad among them refused", () => {
  const directory = new PeerDirectory("self");
  const random = (n: number): string => Buffer.from(`${n}`.padStart(32, "k")).toString("base64");
  const startMs = process.cpuUsage().user;
  for (let n = 0; n < 5000; n++) {
    directory.upsert({
      node: `n${n}`,
      addresses: [`172.16.${n >> 8}.${n & 255}`],
      podCidrs: [n % 100 === 7 ? "10.0.0.0/16" : `10.${n >> 8}.${n & 255}.0/24`, `fd00:${n.toString(16)}::/64`],
      publicKey: n % 100 === 3 ? random(0) : random(n),
      record: undefined,
    });
  }
  const costMs = (process.cpuUsage().user - startMs) / 1000;
  assert.equal(directory.peers.length, 4900);
  assert.equal(directory.refusals.length, 100);
  assert.ok(costMs < 5000, `${costMs} ms of CPU`);
});

test("a record is read as it was written, and any text is read or refused with a reason", () => {
  const generation = fc.integer({ min: 0, max: 1e9 });
  fc.assert(
    fc.property(generation, fc.boolean(), (at, both) => {
      const record = {
        keys: {
          0: { generation: at, publicKey: key(1), port: 1 },
          1: both ? { generation: at + 1, publicKey: key(2), port: 2 } : undefined,
        },
        sending: at,
      };
      assert.deepEqual(parseRecord(formatRecord(record)), record);
    }),
  );
  fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (text) => void parseRecord(text)));
  const part = fc.oneof(fc.anything(), fc.constantFrom(0, 1, "k", 51871));
  const slot = fc.record({ slot: part, generation: part, publicKey: part, port: part }, { requiredKeys: [] });
  fc.assert(
    fc.property(fc.record({ slots: fc.array(slot, { maxLength: 3 }), sending: part }), (value) => {
      const read = parseRecord(JSON.stringify(value));
      assert.ok(typeof read === "string" || read.sending >= 0);
    }),
  );
});
