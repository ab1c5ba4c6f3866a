import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import { openNetns } from "#linux";
import type { PeerChange } from "./backend.ts";
import { decodeDevice, decodeFamily, encodeChange, encodeFamilyQuestion, encodeGet } from "./genetlink.ts";
import { KernelBackend } from "./kernel.ts";
import { KEY_BYTES } from "./keys.ts";

// There is no machine here whose kernel has WireGuard: what is sent and read is compared with uapi/linux/wireguard.h by hand.

const hex = (bytes: Buffer | undefined): string => bytes?.toString("hex") ?? "";
const joined = (...parts: readonly string[]): string => parts.join("");
const ones = Buffer.alloc(KEY_BYTES, 0x11).toString("base64");
const twos = Buffer.alloc(KEY_BYTES, 0x22);

test("the number of the family is asked for by its name, and read", () => {
  assert.equal(hex(encodeFamilyQuestion()), joined("03010000", "0e00", "0200", "77697265677561726400", "0000"));
  const answer = Buffer.from(
    joined("01020000", "0e000200", "77697265677561726400", "0000", "06000100", "2100", "0000"),
    "hex",
  );
  assert.equal(decodeFamily(answer), 0x21);
  assert.equal(decodeFamily(Buffer.from("01020000", "hex")), undefined);
});

test("a device is asked for by its name", () => {
  assert.equal(hex(encodeGet("wg0")), joined("00010000", "08000200", "77673000"));
});

test("a change is written as the kernel's header has it, byte by byte", () => {
  const peers: PeerChange[] = [
    {
      publicKey: ones,
      endpoint: { ip: parseIp("192.0.2.1"), port: 51871 },
      keepaliveSeconds: 25,
      allowedIps: ["10.244.2.0/24"],
    },
  ];
  const change = { replacePeers: true, privateKey: twos, listenPort: 51872, mark: 0xe00, peers };
  const allowedIp = joined("1c000080", "06000100", "0200", "0000", "08000200", "0af40200", "05000300", "18", "000000");
  const peer = [
    joined("24000100", "11".repeat(32)),
    joined("08000300", "02000000"),
    joined("14000400", "0200", "ca9f", "c0000201", "00".repeat(8)),
    joined("06000500", "1900", "0000"),
    joined("20000980", allowedIp),
  ].join("");
  const whole = [
    "01010000",
    joined("08000200", "77673000"),
    joined("08000500", "01000000"),
    joined("24000300", "22".repeat(32)),
    joined("06000600", "a0ca", "0000"),
    joined("08000700", "000e0000"),
    joined("70000880", "6c000080", peer),
  ].join("");
  assert.deepEqual(encodeChange("wg0", change).map(hex), [whole]);
  const removal = encodeChange("wg0", { peers: [{ publicKey: ones, remove: true, keepaliveSeconds: 3 }] });
  const removed = joined("34000880", "30000080", "24000100", "11".repeat(32), "08000300", "01000000");
  assert.deepEqual(removal.map(hex), [joined("01010000", "08000200", "77673000", removed)]);
});

test("what does not fit into one message is told in several, and only the first has the device's own", () => {
  const peers = Array.from({ length: 2_000 }, (_, index) => {
    const key = Buffer.alloc(KEY_BYTES);
    key.writeUInt32LE(index, 0);
    key[31] = 1;
    return {
      publicKey: key.toString("base64"),
      allowedIps: [`10.${index >> 8}.${index & 255}.0/24`, `fd00::${index}/128`],
    };
  });
  const messages = encodeChange("wg0", { replacePeers: true, privateKey: twos, peers });
  assert.ok(messages.length > 1);
  for (const message of messages) assert.ok(message.length < 0xffff);
  assert.deepEqual(
    messages.map((message) => message.includes(twos)),
    messages.map((_, index) => index === 0),
  );
  const read = decodeDevice(messages);
  assert.deepEqual(
    read.peers.map((peer) => peer.publicKey),
    peers.map((peer) => peer.publicKey),
  );
  assert.ok(
    messages.every((message) => !message.includes(twos)),
    "the private key is still there",
  );
});

test("a device is read: key, counters, the time of the handshake, and a peer that goes on in the next message", () => {
  const publicKey = joined("24000100", "11".repeat(32));
  const peer = (rest: string): Buffer => {
    const bytes = Buffer.from(joined(publicKey, rest), "hex");
    const outer = Buffer.alloc(4);
    outer.writeUInt16LE(bytes.length + 4, 0);
    const list = Buffer.alloc(4);
    list.writeUInt16LE(bytes.length + 8, 0);
    list.writeUInt16LE(0x8008, 2);
    outer.writeUInt16LE(0x8000, 2);
    return Buffer.concat([list, outer, bytes]);
  };
  const allowed = (octets: string): string =>
    joined("20000980", "1c000080", "060001000200", "0000", "08000200", octets, "0500030018000000");
  const first = [
    joined("20000400", "0a00", "ca9f", "00000000", "fd30", "00".repeat(13), "02", "00000000"),
    joined("14000600", "00f1536500000000", "80b2e60e00000000"),
    joined("0c000700", "5c00000000000000"),
    joined("0c000800", "9400000000000000"),
    allowed("0af40200"),
  ].join("");
  const head = Buffer.from(
    joined("00010000", "24000400", "33".repeat(32), "06000600", "9fca0000", "08000700", "000e0000"),
    "hex",
  );
  const messages = [
    Buffer.concat([head, peer(first)]),
    Buffer.concat([Buffer.from("00010000", "hex"), peer(allowed("0af40300"))]),
  ];
  assert.deepEqual(decodeDevice(messages), {
    publicKey: Buffer.alloc(KEY_BYTES, 0x33).toString("base64"),
    listenPort: 51871,
    mark: 0xe00,
    peers: [
      {
        publicKey: ones,
        endpoint: { ip: "fd30::2", port: 51871 },
        lastHandshakeMs: 0x6553f100 * 1000 + 250,
        receivedBytes: 92,
        sentBytes: 148,
        keepaliveSeconds: 0,
        allowedIps: ["10.244.2.0/24", "10.244.3.0/24"],
      },
    ],
  });
});

test("any bytes are a device or a failure with a code", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 120 })), (messages) => {
      try {
        decodeDevice(messages.map((bytes) => Buffer.from(bytes)));
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code === "WIREGUARD_PROTOCOL", String(error));
      }
    }),
  );
});

test("a kernel that has no WireGuard refuses to make a device, and one that cannot be asked is told so", async () => {
  using netns = openNetns("/proc/self/ns/net");
  const backend = new KernelBackend({ netns, clock: new FakeClock() });
  await assert.rejects(async () => backend.read("vt-wg-none0"), { name: "CodedError" });
});
