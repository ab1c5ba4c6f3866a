import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import type { DeviceChange } from "./backend.ts";
import { generateKeyPair, KEY_BYTES, publicKeyOf } from "./keys.ts";
import { checkSetAnswer, decodeDevice, encodeSet, isComplete } from "./uapi.ts";

const key = fc.uint8Array({ minLength: KEY_BYTES, maxLength: KEY_BYTES });
const port = fc.integer({ min: 1, max: 65_535 });

test("a change is written in the order that does not hang wireguard-go: peers away, key, port, mark, peers", () => {
  using pair = generateKeyPair();
  const { publicKey, privateKey } = pair;
  const endpoint = { ip: parseIp("fd00::1"), port: 51871 };
  const change: DeviceChange = {
    replacePeers: true,
    privateKey,
    listenPort: 51872,
    mark: 0xe00,
    peers: [
      { publicKey, remove: true, keepaliveSeconds: 3 },
      { publicKey, endpoint, keepaliveSeconds: 25, allowedIps: ["10.244.2.0/24", "fd00::1/128"] },
    ],
  };
  const hex = Buffer.from(publicKey, "base64").toString("hex");
  assert.deepEqual(encodeSet(change).toString("latin1").split("\n"), [
    "set=1",
    "replace_peers=true",
    `private_key=${privateKey.toString("hex")}`,
    "listen_port=51872",
    "fwmark=3584",
    `public_key=${hex}`,
    "remove=true",
    `public_key=${hex}`,
    "endpoint=[fd00::1]:51871",
    "persistent_keepalive_interval=25",
    "replace_allowed_ips=true",
    "allowed_ip=10.244.2.0/24",
    "allowed_ip=fd00::1/128",
    "",
    "",
  ]);
});

test("a device's answer is read, and the private key in it overwritten", () => {
  using own = generateKeyPair();
  using peer = generateKeyPair();
  const secret = own.privateKey.toString("hex");
  const answer = Buffer.from(
    [
      `private_key=${secret}`,
      "listen_port=51871",
      "fwmark=3584",
      `public_key=${Buffer.from(peer.publicKey, "base64").toString("hex")}`,
      `preshared_key=${"0".repeat(64)}`,
      "protocol_version=1",
      "endpoint=[fd00::2]:51872",
      "last_handshake_time_sec=1700000000",
      "last_handshake_time_nsec=250000000",
      "tx_bytes=148",
      "rx_bytes=92",
      "persistent_keepalive_interval=25",
      "allowed_ip=10.244.2.0/24",
      "allowed_ip=fd00::2/128",
      "errno=0",
      "",
      "",
    ].join("\n"),
  );
  assert.deepEqual(decodeDevice(answer), {
    publicKey: own.publicKey,
    listenPort: 51871,
    mark: 0xe00,
    peers: [
      {
        publicKey: peer.publicKey,
        endpoint: { ip: "fd00::2", port: 51872 },
        lastHandshakeMs: 1_700_000_000_250,
        receivedBytes: 92,
        sentBytes: 148,
        keepaliveSeconds: 25,
        allowedIps: ["10.244.2.0/24", "fd00::2/128"],
      },
    ],
  });
  assert.ok(!answer.includes(secret), "the private key is still there");
});

test("a device without a key says so, and one that refuses is an error with its number", () => {
  assert.deepEqual(decodeDevice(Buffer.from("errno=0\n\n")), {
    publicKey: undefined,
    listenPort: 0,
    mark: 0,
    peers: [],
  });
  const refused = (error: unknown): boolean =>
    error instanceof CodedError && error.code === "WIREGUARD_DEVICE" && error.details["errno"] === -22;
  assert.throws(() => checkSetAnswer(Buffer.from("errno=-22\n\n")), refused);
  assert.doesNotThrow(() => checkSetAnswer(Buffer.from("errno=0\n\n")));
});

test("an answer is complete with its empty line", () => {
  assert.ok(isComplete(Buffer.from("errno=0\n\n")));
  for (const text of ["", "\n", "errno=0\n"]) assert.ok(!isComplete(Buffer.from(text)));
});

test("what is written is what is read, for any device", () => {
  const peers = fc.uniqueArray(
    fc.record({ key, port, keepalive: fc.integer({ min: 0, max: 65_535 }), length: fc.integer({ min: 0, max: 32 }) }),
    { selector: (peer) => Buffer.from(peer.key).toString("hex"), maxLength: 8 },
  );
  fc.assert(
    fc.property(key, port, peers, (privateKey, listenPort, list) => {
      const publicKey = publicKeyOf(privateKey);
      const written = encodeSet({
        privateKey,
        listenPort,
        mark: 1,
        peers: list.map((peer) => ({
          publicKey: Buffer.from(peer.key).toString("base64"),
          endpoint: { ip: parseIp("192.0.2.1"), port: peer.port },
          keepaliveSeconds: peer.keepalive,
          allowedIps: [`10.0.0.0/${peer.length}`],
        })),
      });
      const answer = written.toString("latin1").replace("set=1\n", "").replace(/\n$/, "errno=0\n\n");
      const read = decodeDevice(Buffer.from(answer.replaceAll("replace_allowed_ips=true\n", "")));
      const empty = privateKey.every((byte) => byte === 0);
      assert.equal(read.publicKey, empty ? undefined : publicKey);
      assert.equal(read.listenPort, listenPort);
      assert.deepEqual(
        read.peers.map((peer) => [peer.publicKey, peer.endpoint?.port, peer.keepaliveSeconds, peer.allowedIps]),
        list.map((peer) => [
          Buffer.from(peer.key).toString("base64"),
          peer.port,
          peer.keepalive,
          [`10.0.0.0/${peer.length}`],
        ]),
      );
    }),
  );
});

test("any bytes are an answer or a failure with a code", () => {
  const lines = fc.array(
    fc.oneof(
      fc.string(),
      fc.constantFrom(
        "errno=0",
        "private_key=00",
        "public_key=zz",
        "endpoint=1.2.3.4",
        "fwmark=x",
        "=",
        "allowed_ip=x",
      ),
      key.map((bytes) => `public_key=${Buffer.from(bytes).toString("hex")}`),
    ),
  );
  const bytes = fc.oneof(
    fc.uint8Array(),
    lines.map((list) => Buffer.from(`${list.join("\n")}\nerrno=0\n\n`)),
  );
  fc.assert(
    fc.property(bytes, (answer) => {
      try {
        decodeDevice(Buffer.from(answer));
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("WIREGUARD_"), String(error));
      }
    }),
  );
});
