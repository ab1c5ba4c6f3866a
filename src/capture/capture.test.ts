import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { createServer, connect, type AddressInfo } from "node:net";
import { test } from "node:test";
import { connect as connectTls, createServer as createTls } from "node:tls";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { systemClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { decodePcap, findWords, readTls, startCapture, tcpStreams } from "./index.ts";

const clock = systemClock();

function selfSigned(): { cert: string; key: string } {
  const folder = mkdtempSync(join(tmpdir(), "veil-capture-test-"));
  const [key, cert] = [join(folder, "key"), join(folder, "cert")];
  const args = [
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-subj",
    "/CN=x",
    "-keyout",
    key,
    "-out",
    cert,
  ];
  execFileSync("openssl", args, { stdio: "ignore" });
  const pair = { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
  rmSync(folder, { recursive: true });
  return pair;
}

test("words sent in clear are found, in order, and are no TLS", async () => {
  const server = createServer((socket) => socket.once("data", () => socket.end("the answer")).resume()).listen(
    0,
    "127.0.0.1",
  );
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const capture = await startCapture({ interface: "lo", filter: `tcp port ${port}`, clock });
  const client = connect(port, "127.0.0.1");
  client.write("the question ");
  client.end("x".repeat(100_000));
  client.resume();
  await once(client, "close");
  server.close();
  const packets = await capture.stop();
  assert.deepEqual(
    [...new Set(findWords(packets, ["the question", "the answer", "never said"]).flatMap(({ words }) => words))],
    ["the question", "the answer"],
  );
  const sent = tcpStreams(packets).find(({ to }) => to === `127.0.0.1:${port}`);
  assert.equal(sent?.bytes.length, 13 + 100_000);
  assert.equal(readTls(sent).wellFormed, false);
});

for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
  test(`${version} is recognised by the server's choice, and its words are not found`, async () => {
    const server = createTls({ ...selfSigned(), maxVersion: version }, (socket) => socket.end("the answer")).listen(
      0,
      "127.0.0.1",
    );
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const capture = await startCapture({ interface: "lo", filter: `tcp port ${port}`, clock });
    const client = connectTls({ port, host: "127.0.0.1", rejectUnauthorized: false }).resume();
    await once(client, "close");
    server.close();
    const packets = await capture.stop();
    assert.deepEqual(findWords(packets, ["the answer"]), []);
    const answered = tcpStreams(packets).find(({ from }) => from === `127.0.0.1:${port}`);
    assert.ok(answered);
    const view = readTls(answered);
    assert.deepEqual(
      { ...view, applicationRecords: view.applicationRecords > 0 },
      { wellFormed: true, version: version.replace("v", " "), applicationRecords: true },
    );
  });
}

test("an interface that does not exist is named in the error", async () => {
  await assert.rejects(startCapture({ interface: "veil-none", clock }), {
    code: "CAPTURE_START",
    message: /veil-none/,
  });
});

test("any bytes are decoded or refused with a code of ours", () => {
  const header = Buffer.alloc(24);
  header.writeUInt32LE(0xa1b2c3d4, 0);
  header.writeUInt32LE(1, 20);
  const record = (body: Uint8Array): Buffer => {
    const head = Buffer.alloc(16);
    head.writeUInt32LE(body.length, 8);
    return Buffer.concat([head, body]);
  };
  const frame = fc
    .tuple(fc.constantFrom([0x08, 0x00], [0x86, 0xdd], [0x81, 0x00]), fc.uint8Array({ maxLength: 120 }))
    .map(([type, rest]) => Buffer.from([...Array(12).fill(0), ...type, ...rest]));
  const file = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    fc.array(frame, { maxLength: 5 }).map((frames) => Buffer.concat([header, ...frames.map(record)])),
  );
  fc.assert(
    fc.property(file, (bytes) => {
      try {
        for (const stream of tcpStreams(decodePcap(bytes))) readTls(stream);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("CAPTURE_"), String(error));
      }
    }),
    { numRuns: 500 },
  );
});

test("packets of a tunnel's device, which have no link layer, are read in both families", () => {
  const header = Buffer.alloc(24);
  header.writeUInt32LE(0xa1b2c3d4, 0);
  header.writeUInt32LE(101, 20);
  const udp = Buffer.from("238c238d000a00006869", "hex");
  const v4 = Buffer.concat([Buffer.from("4500001e000000004011000a0af401050af40205", "hex"), udp]);
  const v6 = Buffer.concat([Buffer.from(`60000000000a1140fd${"00".repeat(14)}01fd${"00".repeat(14)}02`, "hex"), udp]);
  const record = (packet: Buffer): Buffer => {
    const own = Buffer.alloc(16);
    own.writeUInt32LE(packet.length, 8);
    own.writeUInt32LE(packet.length, 12);
    return Buffer.concat([own, packet]);
  };
  const packets = decodePcap(Buffer.concat([header, record(v4), record(v6)]));
  assert.deepEqual(
    packets.map(({ source, destinationPort, payload }) => [source, destinationPort, Buffer.from(payload).toString()]),
    [
      ["10.244.1.5", 9101, "hi"],
      ["fd00::1", 9101, "hi"],
    ],
  );
});
