import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { RecordProtection, type StreamOwner } from "#linux";
import { allocate } from "./buffers.ts";
import { connectFrame, FakeSocket, FakeRole, FakeStream, frame, settingsFrame, untilWritten } from "./fake-session.ts";
import { FLAG, FRAME, PREFACE } from "./frames.ts";
import { DEFAULT_LIMITS } from "./limits.ts";
import { recordBuffer } from "./record-receiver.ts";
import { ALERT, MOST_CONTENT_BYTES, MOST_EMPTY_RECORDS, RECORD } from "./record-rules.ts";
import { RecordStream } from "./record-stream.ts";
import { Session } from "./session.ts";

const suite = "TLS_AES_128_GCM_SHA256";
const secrets = { client: Buffer.alloc(32, 0xc1), server: Buffer.alloc(32, 0x5e) };

/** What a session would make of a stream's calls. */
class Reader implements StreamOwner {
  readonly stream: RecordStream;
  readonly #buffer: Uint8Array;
  data = Buffer.alloc(0);
  ends = 0;
  written = 0;
  broken: CodedError | undefined;

  constructor(stream: RecordStream, bufferBytes = 64 * 1024) {
    this.stream = stream;
    this.#buffer = allocate(bufferBytes);
    stream.start(this, this.#buffer);
  }
  onRead(count: number): undefined {
    this.data = Buffer.concat([this.data, this.#buffer.subarray(0, count)]);
  }
  onEnd(): void {
    this.ends++;
  }
  onWritten(): void {
    this.written++;
  }
  onBroken(error: CodedError): void {
    this.broken = error;
    this.stream.close();
  }
}

interface End {
  readonly wire: FakeStream;
  readonly stream: RecordStream;
  readonly reader: Reader;
}

function makeEnd(isServer: boolean, recordsPerKey?: number, bufferBytes?: number): End {
  const end = bareEnd(isServer, recordsPerKey);
  return { ...end, reader: new Reader(end.stream, bufferBytes) };
}

/** Whose stream nobody has started. */
function bareEnd(isServer: boolean, recordsPerKey?: number): Omit<End, "reader"> {
  const wire = new FakeStream();
  const socket = {
    stream: wire,
    close: () => {
      wire.close();
    },
    reset: () => {
      wire.close();
    },
  };
  const [own, peers] = isServer ? [secrets.server, secrets.client] : [secrets.client, secrets.server];
  const stream = new RecordStream({
    socket,
    isServer,
    sending: new RecordProtection({ suite, secret: own, use: "seal" }),
    receiving: new RecordProtection({ suite, secret: peers, use: "open" }),
    left: Buffer.alloc(0),
    ended: false,
    ...(recordsPerKey === undefined ? {} : { recordsPerKey }),
  });
  return { wire, stream };
}

/** Puts bytes into an end as its socket would, in reads of at most `readBytes`. */
function feed({ stream }: Pick<End, "stream">, bytes: Uint8Array, readBytes = recordBuffer.length): void {
  for (let at = 0; at < bytes.length; at += readBytes) {
    const part = bytes.subarray(at, at + readBytes);
    recordBuffer.set(part);
    stream.onRead(part.length);
  }
}

function taken(wire: FakeStream): Buffer {
  const bytes = Buffer.concat(wire.written);
  wire.written = [];
  return bytes;
}

/** A peer that may do what it wants: it has the server's key. */
class Peer {
  readonly #sealing = new RecordProtection({ suite, secret: secrets.server, use: "seal" });

  record(type: number, content: Uint8Array, padding = 0): Buffer {
    const out = allocate(content.length + padding + 22);
    if (padding === 0) {
      this.#sealing.seal({ bytes: content, at: 0, count: content.length }, type, { bytes: out, at: 0 });
      return Buffer.from(out);
    }
    // The type, then zeroes: as content of a record whose own type is the last zero.
    const inner = Buffer.concat([content, Uint8Array.of(type), Buffer.alloc(padding - 1)]);
    this.#sealing.seal({ bytes: inner, at: 0, count: inner.length }, 0, { bytes: out, at: 0 });
    return Buffer.from(out);
  }

  update(): void {
    this.#sealing.update();
  }
}

/** The alert that an end has sent last. */
function alertOf(bytes: Buffer): number | undefined {
  const opening = new RecordProtection({ suite, secret: secrets.client, use: "open" });
  let alert: number | undefined;
  for (let at = 0; at < bytes.length;) {
    const count = 5 + bytes.readUInt16BE(at + 3);
    const out = allocate(count);
    assert.ok(
      opening.open({ bytes: Uint8Array.from(bytes.subarray(at, at + count)), at: 0, count }, { bytes: out, at: 0 }),
    );
    if (out[count - 22] === RECORD.ALERT) alert = out[count - 23];
    at += count;
  }
  return alert;
}

describe("two ends", () => {
  const noise = allocate(1_200_000);
  for (let at = 0, x = 1; at < noise.length; at++) noise[at] = x = (Math.imul(x, 1103515245) + 12345) >>> 8;

  for (const readBytes of [1, 5, 1000, 16_406, recordBuffer.length]) {
    test(`every byte arrives, in reads of ${readBytes}, keys changing every 3 records`, () => {
      const [client, server] = [makeEnd(false, 3), makeEnd(true, 3)];
      const sizes = readBytes < 1000 ? [1, 100, 20_000] : [0, 1, 16_383, 16_384, 16_385, 200_000, 1_200_000];
      let sent = 0;
      for (const size of sizes) {
        assert.equal(client.stream.writeAll([noise.subarray(0, size), noise.subarray(0, size % 1000)]), "done");
        sent += size + (size % 1000);
        feed(server, taken(client.wire), readBytes);
        assert.equal(server.reader.data.length, sent);
      }
      let at = 0;
      for (const size of sizes) {
        for (const count of [size, size % 1000]) {
          assert.ok(server.reader.data.subarray(at, at + count).equals(noise.subarray(0, count)));
          at += count;
        }
      }
    });
  }

  test("an owner's buffer smaller than a record gets it in parts", () => {
    const [client, server] = [makeEnd(false), makeEnd(true, undefined, 1000)];
    client.stream.write(noise.subarray(0, 50_000));
    feed(server, taken(client.wire));
    assert.ok(server.reader.data.equals(noise.subarray(0, 50_000)));
  });

  test("what the socket does not take at once waits sealed; bytes are free when a write returns", () => {
    const [client, server] = [makeEnd(false), makeEnd(true)];
    client.wire.stalled = true;
    const sent = Buffer.concat([noise, noise, noise]);
    const bytes = Uint8Array.from(sent);
    assert.equal(client.stream.write(bytes), "pending");
    bytes.fill(0);
    const first = taken(client.wire);
    assert.ok(first.length < sent.length / 2);
    client.stream.onWritten();
    assert.equal(client.reader.written, 0, "the rest is on its way only now");
    client.wire.stalled = false;
    client.stream.onWritten();
    assert.equal(client.reader.written, 1);
    feed(server, Buffer.concat([first, taken(client.wire)]));
    assert.ok(server.reader.data.equals(sent));
    assert.equal(client.stream.write(noise.subarray(0, 10)), "done");
  });

  test("shutdown says close_notify behind the last byte, then ends the socket", () => {
    const [client, server] = [makeEnd(false), makeEnd(true)];
    client.wire.stalled = true;
    client.stream.write(noise.subarray(0, 100_000));
    client.stream.shutdown();
    assert.equal(client.wire.ended, false);
    client.wire.stalled = false;
    client.stream.onWritten();
    assert.equal(client.wire.ended, true);
    feed(server, taken(client.wire));
    assert.equal(server.reader.data.length, 100_000);
    assert.equal(server.reader.ends, 1);
    server.stream.onEnd();
    assert.equal(server.reader.ends, 1, "the socket's end says nothing new");
  });

  test("nothing is sent behind close_notify: no key, no alert, no second one", () => {
    const peer = new Peer();
    const client = makeEnd(false);
    client.stream.shutdown();
    const end = taken(client.wire);
    assert.equal(alertOf(end), ALERT.CLOSE_NOTIFY);
    feed(client, peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 1, 1)));
    peer.update();
    feed(client, peer.record(RECORD.DATA, Buffer.from("late")));
    assert.equal(String(client.reader.data), "late");
    feed(client, peer.record(RECORD.ALERT, Uint8Array.of(1, ALERT.CLOSE_NOTIFY)));
    client.stream.close();
    assert.equal(taken(client.wire).length, 0);
    const other = makeEnd(false);
    other.stream.shutdown();
    taken(other.wire);
    feed(other, Buffer.alloc(5, RECORD.ALERT)); // in clear
    assert.equal(other.reader.broken?.code, "HBONE_TLS_RECORD");
    assert.equal(taken(other.wire).length, 0);
  });

  test("close_notify is answered with close_notify, an end without it is not", () => {
    const [client, server, cut] = [makeEnd(false), makeEnd(true), makeEnd(false)];
    server.stream.shutdown();
    feed(client, taken(server.wire));
    client.stream.close();
    assert.equal(alertOf(taken(client.wire)), ALERT.CLOSE_NOTIFY);
    cut.stream.onEnd();
    cut.stream.close();
    assert.equal(taken(cut.wire).length, 0);
  });

  test("a KeyUpdate that asks back is answered once, before the next data", () => {
    const peer = new Peer();
    const client = makeEnd(false);
    const asks = (): Buffer => {
      const record = peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 1, 1));
      peer.update();
      return record;
    };
    client.wire.stalled = true;
    client.stream.write(noise.subarray(0, 10));
    feed(client, Buffer.concat([asks(), asks(), peer.record(RECORD.DATA, Buffer.from("after"))]));
    assert.equal(String(client.reader.data), "after");
    client.wire.stalled = false;
    client.stream.onWritten();
    client.stream.write(Buffer.from("new key"));
    const server = makeEnd(true);
    feed(server, taken(client.wire));
    assert.equal(String(server.reader.data.subarray(10)), "new key");
    assert.equal(server.reader.broken, undefined);
  });

  test("bytes that came with the handshake come first, then what the socket reads", async () => {
    const peer = new Peer();
    const wire = new FakeStream();
    const first = peer.record(RECORD.DATA, Buffer.from("first "));
    const second = peer.record(RECORD.DATA, Buffer.from("second"));
    const stream = new RecordStream({
      socket: { stream: wire, close: () => undefined, reset: () => undefined },
      isServer: false,
      sending: new RecordProtection({ suite, secret: secrets.client, use: "seal" }),
      receiving: new RecordProtection({ suite, secret: secrets.server, use: "open" }),
      left: Buffer.concat([first, second.subarray(0, 7)]),
      ended: false,
    });
    wire.paused = true;
    const reader = new Reader(stream);
    assert.ok(wire.paused, "not before the first have been taken");
    await new Promise((resolve) => setImmediate(resolve));
    assert.ok(!wire.paused);
    feed({ stream }, second.subarray(7));
    assert.equal(String(reader.data), "first second");
  });
});

test("wherever the bytes are cut off, an application sees an end only behind its peer's own", async () => {
  const client = makeEnd(false);
  client.stream.write(Buffer.concat([PREFACE, settingsFrame, connectFrame(1)]));
  const request = taken(client.wire);
  client.stream.write(frame(FRAME.DATA, 1, Buffer.from("half of ")));
  client.stream.write(frame(FRAME.DATA, 1, Buffer.from("it"), FLAG.END_STREAM));
  client.stream.shutdown();
  const bytes = taken(client.wire);
  let ends = 0;
  for (let count = 0; count <= bytes.length; count++) {
    const { stream } = bareEnd(true);
    const role = new FakeRole();
    role.session = new Session({ role, clock: new FakeClock(), limits: DEFAULT_LIMITS });
    role.session.start(stream);
    feed({ stream }, request);
    const socket = new FakeSocket();
    role.tunnels[0]?.attach(socket);
    feed({ stream }, bytes.subarray(0, count));
    await untilWritten();
    stream.onEnd();
    const { ended, wasReset } = socket.stream;
    if (ended) assert.equal(String(Buffer.concat(socket.stream.written)), "half of it", `cut at ${count}`);
    else assert.ok(wasReset, `cut at ${count}`);
    if (ended) ends++;
  }
  assert.ok(ends > 0);
});

describe("hostile records", () => {
  const data = Buffer.from("data");
  const header = (type: number, length: number): Buffer => Buffer.from([type, 3, 3, length >> 8, length & 255]);
  const ticket = (length: number): Buffer =>
    Buffer.concat([Uint8Array.of(4, 0, length >> 8, length & 255), Buffer.alloc(length)]);
  const many = (count: number, make: () => Buffer): Buffer => Buffer.concat(Array.from({ length: count }, make));
  const rows: readonly [string, number, (peer: Peer) => Buffer][] = [
    ["a byte of the content changed", ALERT.BAD_RECORD_MAC, (peer) => flip(peer.record(RECORD.DATA, data), 6)],
    ["a byte of the tag changed", ALERT.BAD_RECORD_MAC, (peer) => flip(peer.record(RECORD.DATA, data), 20)],
    ["a byte of the header changed", ALERT.BAD_RECORD_MAC, (peer) => flip(peer.record(RECORD.DATA, data), 1)],
    [
      "a record left out",
      ALERT.BAD_RECORD_MAC,
      (peer) => (peer.record(RECORD.DATA, data), peer.record(RECORD.DATA, data)),
    ],
    ["too short for a tag", ALERT.BAD_RECORD_MAC, () => Buffer.concat([header(23, 16), Buffer.alloc(16)])],
    ["a header that says too much", ALERT.RECORD_OVERFLOW, () => header(23, MOST_CONTENT_BYTES + 257)],
    [
      "too much content",
      ALERT.RECORD_OVERFLOW,
      (peer) => peer.record(RECORD.DATA, Buffer.alloc(MOST_CONTENT_BYTES + 1, 1)),
    ],
    ["clear text", ALERT.UNEXPECTED_MESSAGE, () => Buffer.concat([header(22, 5), Uint8Array.of(24, 0, 0, 1, 0)])],
    ["a clear alert", ALERT.UNEXPECTED_MESSAGE, () => Buffer.concat([header(21, 2), Uint8Array.of(1, 0)])],
    ["change_cipher_spec", ALERT.UNEXPECTED_MESSAGE, () => Buffer.concat([header(20, 1), Uint8Array.of(1)])],
    ["nothing but padding", ALERT.UNEXPECTED_MESSAGE, (peer) => peer.record(0, Buffer.alloc(0))],
    ["an unknown type", ALERT.UNEXPECTED_MESSAGE, (peer) => peer.record(24, data)],
    ["an empty handshake record", ALERT.UNEXPECTED_MESSAGE, (peer) => peer.record(RECORD.HANDSHAKE, Buffer.alloc(0))],
    ["an alert of three bytes", ALERT.UNEXPECTED_MESSAGE, (peer) => peer.record(RECORD.ALERT, Uint8Array.of(1, 0, 0))],
    ["a Finished", ALERT.UNEXPECTED_MESSAGE, (peer) => peer.record(RECORD.HANDSHAKE, Uint8Array.of(20, 0, 0, 32))],
    [
      "a request for a certificate",
      ALERT.UNEXPECTED_MESSAGE,
      (peer) => peer.record(RECORD.HANDSHAKE, Uint8Array.of(13, 0, 0, 3)),
    ],
    [
      "a KeyUpdate of two bytes",
      ALERT.DECODE_ERROR,
      (peer) => peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 2, 0, 0)),
    ],
    [
      "a KeyUpdate that asks for 2",
      ALERT.ILLEGAL_PARAMETER,
      (peer) => peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 1, 2)),
    ],
    [
      "a KeyUpdate before the end of its record",
      ALERT.UNEXPECTED_MESSAGE,
      (peer) => peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 1, 0, 4)),
    ],
    [
      "a KeyUpdate without the new key",
      ALERT.BAD_RECORD_MAC,
      (peer) =>
        Buffer.concat([peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 1, 0)), peer.record(RECORD.DATA, data)]),
    ],
    [
      "data inside a handshake message",
      ALERT.UNEXPECTED_MESSAGE,
      (peer) => Buffer.concat([peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0)), peer.record(RECORD.DATA, data)]),
    ],
    [
      "masses of empty records",
      ALERT.UNEXPECTED_MESSAGE,
      (peer) => many(MOST_EMPTY_RECORDS + 1, () => peer.record(RECORD.DATA, Buffer.alloc(0))),
    ],
    [
      "masses of tickets",
      ALERT.UNEXPECTED_MESSAGE,
      (peer) => many(MOST_EMPTY_RECORDS + 1, () => peer.record(RECORD.HANDSHAKE, ticket(9))),
    ],
    [
      "masses of KeyUpdates",
      ALERT.UNEXPECTED_MESSAGE,
      (peer) =>
        many(MOST_EMPTY_RECORDS + 1, () => {
          const record = peer.record(RECORD.HANDSHAKE, Uint8Array.of(24, 0, 0, 1, 1));
          peer.update();
          return record;
        }),
    ],
  ];

  function flip(bytes: Buffer, at: number): Buffer {
    bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
    return bytes;
  }

  for (const [name, alert, make] of rows) {
    test(`${name}: ends the session with alert ${alert}, after what came before`, () => {
      const peer = new Peer();
      const client = makeEnd(false);
      const good = peer.record(RECORD.DATA, Buffer.from("before"));
      feed(client, Buffer.concat([good, make(peer), peer.record(RECORD.DATA, Buffer.from("behind"))]));
      assert.equal(client.reader.broken?.code, "HBONE_TLS_RECORD");
      assert.match(String(client.reader.data), /^before(data)*$/);
      assert.ok(client.wire.closed);
      if (!name.startsWith("masses of KeyUpdates")) assert.equal(alertOf(taken(client.wire)), alert);
    });
  }

  test("a server takes no ticket", () => {
    const sealing = new RecordProtection({ suite, secret: secrets.client, use: "seal" });
    const out = allocate(4 + 9 + 22);
    sealing.seal({ bytes: Uint8Array.from(ticket(9)), at: 0, count: 13 }, RECORD.HANDSHAKE, { bytes: out, at: 0 });
    const server = makeEnd(true);
    feed(server, out);
    assert.equal(server.reader.broken?.code, "HBONE_TLS_RECORD");
  });

  test("tickets, padding, empty records and user_canceled pass", () => {
    const peer = new Peer();
    const client = makeEnd(false);
    const message = ticket(300);
    feed(
      client,
      Buffer.concat([
        peer.record(RECORD.HANDSHAKE, message.subarray(0, 3)),
        peer.record(RECORD.HANDSHAKE, Buffer.concat([message.subarray(3), message])),
        peer.record(RECORD.DATA, Buffer.alloc(0)),
        peer.record(RECORD.ALERT, Uint8Array.of(1, ALERT.USER_CANCELED)),
        peer.record(RECORD.DATA, data, 100),
        peer.record(RECORD.DATA, Buffer.alloc(MOST_CONTENT_BYTES, 1)),
      ]),
    );
    assert.equal(client.reader.broken, undefined);
    assert.equal(client.reader.data.length, 4 + MOST_CONTENT_BYTES);
  });

  test("a peer's alert ends the session and is named; nothing behind close_notify is read", () => {
    const peer = new Peer();
    const client = makeEnd(false);
    feed(client, peer.record(RECORD.ALERT, Uint8Array.of(2, 42)));
    assert.equal(client.reader.broken?.code, "HBONE_TLS_ALERT");
    assert.match(client.reader.broken.message, /alert 42/);
    const other = makeEnd(false);
    const quiet = new Peer();
    feed(other, Buffer.concat([quiet.record(RECORD.ALERT, Uint8Array.of(1, 0)), quiet.record(RECORD.DATA, data)]));
    assert.deepEqual([other.reader.ends, other.reader.data.length, other.reader.broken], [1, 0, undefined]);
  });

  test("whatever is done to the bytes, only what was sent arrives, in order", () => {
    const change = fc.record({
      at: fc.nat(3000),
      kind: fc.constantFrom("flip", "cut", "insert", "swap"),
      byte: fc.integer({ min: 1, max: 255 }),
    });
    fc.assert(
      fc.property(
        fc.array(fc.nat(400), { maxLength: 12 }),
        fc.array(change, { minLength: 1, maxLength: 3 }),
        fc.nat(500),
        (sizes, changes, read) => {
          const peer = new Peer();
          const contents = sizes.map((size, index) => Buffer.alloc(size, index + 1));
          let bytes = Buffer.concat(contents.map((content) => peer.record(RECORD.DATA, content)));
          for (const { at, kind, byte } of changes) {
            if (at >= bytes.length) continue;
            const [before, behind] = [bytes.subarray(0, at), bytes.subarray(at)];
            if (kind === "flip")
              bytes = Buffer.concat([before, Uint8Array.of(behind.readUInt8(0) ^ byte), behind.subarray(1)]);
            else if (kind === "cut") bytes = Buffer.concat([before, behind.subarray(byte)]);
            else if (kind === "insert") bytes = Buffer.concat([before, Buffer.alloc(byte, byte), behind]);
            else bytes = Buffer.concat([behind, before]);
          }
          const client = makeEnd(false);
          feed(client, bytes, read + 1);
          const all = Buffer.concat(contents);
          assert.ok(all.subarray(0, client.reader.data.length).equals(client.reader.data));
          client.stream.close();
        },
      ),
      { numRuns: 500 },
    );
  });

  test("noise inside authentic handshake records is refused or skipped, and never thrown otherwise", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom(0, 20, 21, 22, 23, 255), fc.uint8Array({ maxLength: 40 })), {
          maxLength: 20,
        }),
        (records) => {
          const peer = new Peer();
          const client = makeEnd(false);
          feed(client, Buffer.concat(records.map(([type, content]) => peer.record(type, content))));
          assert.ok(client.reader.broken === undefined || client.reader.broken instanceof CodedError);
          client.stream.close();
        },
      ),
      { numRuns: 500 },
    );
  });
});
