import assert from "node:assert/strict";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { duplexPair, Readable, type Duplex } from "node:stream";
import { after, before, test } from "node:test";
import { constants, createDeflate, deflateSync } from "node:zlib";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { forwardPorts } from "./port-forward.ts";
import { dataFrame, headerDictionary, pingFrame, readFrames, resetFrame, type SpdyFrame } from "./spdy.ts";

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function plainHeaders(headers: Readonly<Record<string, string>>): Buffer {
  const texts = Object.entries(headers).flatMap(([name, value]) => [name, value].map((text) => Buffer.from(text)));
  return Buffer.concat([uint32(texts.length / 2), ...texts.flatMap((text) => [uint32(text.length), text])]);
}

function openFrameOf(stream: number, packed: Buffer): Buffer {
  const body = Buffer.concat([uint32(stream), uint32(0), Buffer.alloc(2), packed]);
  return Buffer.concat([Buffer.from([0x80, 3, 0, 1, 0, 0, body.length >> 8, body.length & 0xff]), body]);
}

/** The opening of a stream as a client writes it when it is the first of a connection. */
function openFrame(stream: number, headers: Readonly<Record<string, string>>): Buffer {
  const options = { dictionary: headerDictionary(), finishFlush: constants.Z_SYNC_FLUSH };
  return openFrameOf(stream, deflateSync(plainHeaders(headers), options));
}

async function allFrames(bytes: Buffer, pieceBytes: number): Promise<SpdyFrame[]> {
  const pieces = Array.from({ length: Math.ceil(bytes.length / pieceBytes) }, (_, index) =>
    bytes.subarray(index * pieceBytes, (index + 1) * pieceBytes),
  );
  return Array.fromAsync(readFrames(Readable.from(pieces)));
}

let server: Server;
let port = 0;

before(async () => {
  server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  port = (server.address() as AddressInfo).port;
});
after(() => server.close());

function dial(to: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port: to, host: "127.0.0.1", allowHalfOpen: true }, () => resolve(socket));
    socket.once("error", reject);
  });
}

test("frames are read alike in whatever pieces they come", async () => {
  const bytes = Buffer.concat([
    openFrame(1, { StreamType: "error", port: "80", requestID: "0" }),
    dataFrame(1, Buffer.from("abc"), false),
    dataFrame(1, Buffer.alloc(0), true),
    pingFrame(Buffer.of(0, 0, 0, 9)),
    resetFrame(1),
  ]);
  for (const pieceBytes of [1, 7, 1000]) {
    const [open, ...others] = await allFrames(bytes, pieceBytes);
    assert.ok(open?.kind === "open");
    assert.deepEqual(Object.fromEntries(open.headers), { streamtype: "error", port: "80", requestid: "0" });
    const data = others.flatMap((frame) => (frame.kind === "data" ? [frame.bytes] : []));
    assert.equal(Buffer.concat(data).toString(), "abc");
    assert.deepEqual(
      others.filter((frame) => frame.kind !== "data" || frame.ended).map(({ kind }) => kind),
      ["data", "ping", "reset"],
    );
  }
});

test("whatever bytes a client sends, they are frames or refused with a reason", async () => {
  const control = fc
    .tuple(fc.integer({ min: 0, max: 10 }), fc.uint8Array({ maxLength: 60 }))
    .map(([type, body]) => Buffer.concat([Buffer.of(0x80, 3, 0, type, 0, 0, 0, body.length), body]));
  const any = fc.uint8Array({ maxLength: 80 }).map((bytes) => Buffer.from(bytes));
  await fc.assert(
    fc.asyncProperty(fc.array(fc.oneof(control, any), { maxLength: 4 }), async (parts) => {
      const bytes = Buffer.concat(parts);
      const seen = await allFrames(bytes, 16).catch((error: unknown) => {
        assert.ok(error instanceof CodedError && error.code === "KUBELET_PORT_FORWARD", String(error));
        return [];
      });
      const data = seen.reduce((sum, frame) => sum + (frame.kind === "data" ? frame.bytes.length : 0), 0);
      assert.ok(data <= bytes.length);
    }),
    { numRuns: 200 },
  );
});

/** A kubelet that serves `client`; `sockets` are those that it has dialled. */
function startForwarding(): { client: Duplex; sockets: Socket[]; done: Promise<void> } {
  const [client, kubelet] = duplexPair();
  const sockets: Socket[] = [];
  const done = forwardPorts(kubelet, async (to) => {
    const socket = await dial(to);
    sockets.push(socket);
    return socket;
  });
  return { client, sockets, done };
}

test("a client that is cut off, or speaks nonsense, leaves no socket behind", async () => {
  const { client, sockets, done } = startForwarding();
  const headers = { port: String(port), requestid: "0" };
  client.write(openFrame(1, { ...headers, streamtype: "error" }));
  await firstBytes(client);
  client.write(Buffer.from("GET / HTTP/1.1\r\n\r\n".repeat(2)).fill(0xff, 0, 8));
  await assert.rejects(done, { code: "KUBELET_PORT_FORWARD" });
  assert.ok(sockets.every(({ destroyed }) => destroyed));
});

test("a connection goes there and back, its ends are told, and a client that hangs up closes it without complaint", async () => {
  const { client, sockets, done } = startForwarding();
  const deflate = createDeflate({ dictionary: headerDictionary() });
  const open = async (stream: number, streamtype: string, requestid: string): Promise<void> => {
    deflate.write(plainHeaders({ streamtype, port: String(port), requestid }));
    await new Promise<void>((resolve) => deflate.flush(constants.Z_SYNC_FLUSH, () => resolve()));
    client.write(openFrameOf(stream, deflate.read() as Buffer)); // a stream of bytes gives nothing else
  };
  await open(1, "error", "0");
  await open(3, "data", "0");
  client.write(dataFrame(3, Buffer.from("there and "), false));
  client.write(dataFrame(3, Buffer.from("back"), true));
  let answer = "";
  const ended: number[] = [];
  const frames = readFrames(client);
  while (ended.length < 2) {
    const { value: frame } = await frames.next();
    assert.ok(frame?.kind === "data", JSON.stringify(frame));
    answer += frame.bytes.toString();
    if (frame.ended) ended.push(frame.stream);
  }
  assert.deepEqual([answer, ended], ["there and back", [3, 1]]);
  await open(5, "error", "1");
  await open(7, "data", "1");
  client.write(dataFrame(7, Buffer.from("x"), false));
  await frames.next();
  client.destroy();
  await done;
  assert.deepEqual(
    sockets.map(({ destroyed }) => destroyed),
    [true, true],
  );
});

test("a data stream without its error stream, and a port that is none, are reset", async () => {
  for (const headers of [
    { streamtype: "data", port: "80" },
    { streamtype: "error", port: "0" },
  ]) {
    const [client, kubelet] = duplexPair();
    const done = forwardPorts(kubelet, dial);
    client.write(openFrame(1, headers));
    const [answer] = await allFrames(await firstBytes(client), 1000);
    assert.deepEqual(answer, { kind: "reset", stream: 1 });
    client.end();
    await done;
  }
});

async function firstBytes(client: Duplex): Promise<Buffer> {
  return new Promise((resolve) => client.once("data", resolve));
}
