import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FakeClock } from "#base/clock";
import type { CodedError } from "#base/errors";
import type { ByteStream, StreamOwner, WriteOutcome } from "#linux";
import { hboneError } from "./errors.ts";
import { FLAG, FRAME, getUint32, HEADER_BYTES, PREFACE, putFrameHeader } from "./frames.ts";
import { encodeField } from "./hpack.ts";
import { DEFAULT_LIMITS } from "./limits.ts";
import { Session, type SessionRole } from "./session.ts";
import type { Tunnel } from "./tunnel.ts";

/** A stream without a socket: what the session writes is kept, what it is to read is put in. */
class FakeStream implements ByteStream {
  owner: StreamOwner | undefined;
  buffer = new Uint8Array(0) as Uint8Array;
  written: Buffer[] = [];
  closed = false;
  ended = false;
  stalled = false;
  readonly error = undefined;

  start(owner: StreamOwner, buffer: Uint8Array): void {
    this.owner = owner;
    this.buffer = buffer;
  }
  pause(): void {}
  resume(): void {}
  replaceBuffer(buffer: Uint8Array): void {
    this.buffer = buffer;
  }
  write(bytes: Uint8Array): WriteOutcome {
    this.written.push(Buffer.from(bytes));
    return this.stalled ? "pending" : "done";
  }
  writeAll(pieces: readonly Uint8Array[]): WriteOutcome {
    return this.write(Buffer.concat(pieces));
  }
  shutdown(): void {
    this.ended = true;
  }
  close(): void {
    this.closed = true;
  }
  reset(): void {
    this.closed = true;
  }

  /** Delivers bytes as a TLS session does: at most 16 KiB at a time. */
  put(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.closed;) {
      const count = Math.min(bytes.length - at, this.buffer.length, 16_384);
      this.buffer.set(bytes.subarray(at, at + count));
      at += count;
      this.buffer = this.owner?.onRead(count) ?? this.buffer;
    }
  }

  /** Frames that were written: type, flags, stream, content. */
  frames(): { type: number; flags: number; streamId: number; content: Buffer }[] {
    const all = Buffer.concat(this.written);
    const frames = [];
    for (let at = 0; at + HEADER_BYTES <= all.length;) {
      const length = all.readUIntBE(at, 3);
      const content = all.subarray(at + HEADER_BYTES, at + HEADER_BYTES + length);
      frames.push({ type: all[at + 3] ?? 0, flags: all[at + 4] ?? 0, streamId: getUint32(all, at + 5), content });
      at += HEADER_BYTES + length;
    }
    return frames;
  }
}

class FakeRole implements SessionRole {
  readonly kind = "server";
  session: Session | undefined;
  tunnels: Tunnel[] = [];
  closedWith: CodedError | undefined | "open" = "open";

  onRequest(streamId: number, _list: readonly string[], endStream: boolean): void {
    const tunnel = this.session?.addTunnel(streamId);
    if (tunnel === undefined) return;
    tunnel.answered = true;
    this.tunnels.push(tunnel);
    if (endStream) tunnel.receiveEnd();
  }
  onTunnelHeaders(tunnel: Tunnel): void {
    tunnel.receiveEnd();
  }
  onGoaway(): void {}
  onTunnelEnded(): void {}
  onDrainPong(): void {}
  onClosed(error: CodedError | undefined): void {
    this.closedWith = error;
  }
}

// eslint-disable-next-line max-params -- a row of a table of frames reads best so
function frame(type: number, streamId: number, content: Uint8Array | number[] = [], flags = 0): Buffer {
  const out = Buffer.alloc(HEADER_BYTES + content.length);
  putFrameHeader(out, 0, { length: content.length, type, flags, streamId });
  out.set(content, HEADER_BYTES);
  return out;
}

const settings = frame(FRAME.SETTINGS, 0);
const connect = (streamId: number): Buffer =>
  frame(FRAME.HEADERS, streamId, encodeField(":method", "CONNECT"), FLAG.END_HEADERS);
const uint32 = (value: number): number[] => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];

function make(): { stream: FakeStream; role: FakeRole; session: Session; clock: FakeClock } {
  const clock = new FakeClock();
  const role = new FakeRole();
  const session = new Session({ role, clock, limits: DEFAULT_LIMITS });
  role.session = session;
  const stream = new FakeStream();
  session.start(stream, new Uint8Array(0));
  stream.put(Buffer.concat([PREFACE, settings]));
  return { stream, role, session, clock };
}

async function nextTurn(): Promise<void> {
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
}

function codeOf(role: FakeRole): string | undefined {
  return role.closedWith === "open" ? "open" : role.closedWith?.code;
}

test("each broken rule of a session ends it with its code, which the peer is told", async () => {
  const mega = Buffer.alloc(1 << 20);
  const data = (streamId: number): Buffer => frame(FRAME.DATA, streamId, mega);
  const cases: [string, Buffer[], number][] = [
    ["HBONE_PROTOCOL", [frame(FRAME.DATA, 1, [1])], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.RST_STREAM, 1, uint32(8))], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.WINDOW_UPDATE, 1, uint32(8))], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.WINDOW_UPDATE, 0, uint32(0))], 1],
    ["HBONE_FLOW_CONTROL", [frame(FRAME.WINDOW_UPDATE, 0, uint32(0x7fff_ffff))], 3],
    ["HBONE_FLOW_CONTROL", [connect(1), frame(FRAME.WINDOW_UPDATE, 1, uint32(0x7fff_ffff))], 3],
    ["HBONE_FLOW_CONTROL", [frame(FRAME.SETTINGS, 0, [0, 4, 0x80, 0, 0, 0])], 3],
    ["HBONE_PROTOCOL", [frame(FRAME.SETTINGS, 0, [0, 5, 0, 0, 0, 1])], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.SETTINGS, 0, [0, 2, 0, 0, 0, 2])], 1],
    ["HBONE_STREAM_CLOSED", [connect(1), frame(FRAME.DATA, 1, [], FLAG.END_STREAM), frame(FRAME.DATA, 1, [1])], 5],
    ["HBONE_STREAM_CLOSED", [connect(1), frame(FRAME.RST_STREAM, 1, uint32(8)), frame(FRAME.DATA, 1, [1])], 5],
    ["HBONE_COMPRESSION", [frame(FRAME.HEADERS, 1, [0x80], FLAG.END_HEADERS)], 9],
    ["HBONE_FRAME_SIZE", [frame(FRAME.PING, 0, [1])], 6],
    // nobody takes the bytes: the window of a tunnel is 4 MiB
    ["HBONE_FLOW_CONTROL", [connect(1), data(1), data(1), data(1), data(1), frame(FRAME.DATA, 1, [1])], 3],
  ];
  for (const [code, frames, h2Code] of cases) {
    const { stream, role } = make();
    await nextTurn();
    stream.put(Buffer.concat(frames));
    assert.equal(codeOf(role), code);
    assert.ok(stream.closed);
    const last = stream.frames().at(-1);
    assert.equal(last?.type, FRAME.GOAWAY, code);
    assert.equal(getUint32(last.content, 4), h2Code, code);
  }
});

test("the session's window bounds what all tunnels together hold", async () => {
  const { stream, role, session } = make();
  for (let id = 1; id <= 9; id += 2) stream.put(connect(id));
  const mega = Buffer.alloc(1 << 20);
  for (let i = 0; i < 16; i++) stream.put(frame(FRAME.DATA, 1 + 2 * (i % 4), mega));
  assert.equal(codeOf(role), "open");
  assert.ok(session.intake.pinnedSlabs <= 17, `${session.intake.pinnedSlabs} slabs are pinned`);
  stream.put(frame(FRAME.DATA, 9, [1]));
  assert.equal(codeOf(role), "HBONE_FLOW_CONTROL");
  await nextTurn();
});

test("a byte here and there for a stalled tunnel does not hold a slab each", async () => {
  const { stream, role, session } = make();
  stream.put(Buffer.concat([connect(1), connect(3)]));
  role.tunnels[1]?.fail(hboneError("HBONE_ABORTED", "enough"), 8);
  const filler = Buffer.alloc(64 * 1024);
  // The second tunnel was reset: its bytes are dropped at once and credited, so that this could go on for ever.
  for (let i = 0; i < 400; i++) {
    stream.put(frame(FRAME.DATA, 1, [i & 255]));
    if (i < 180) stream.put(frame(FRAME.DATA, 3, filler));
    await nextTurn();
  }
  assert.equal(codeOf(role), "open");
  assert.ok(session.intake.pinnedSlabs <= 17, `${session.intake.pinnedSlabs} slabs are pinned`);
});

test("floods of frames that carry nothing end the session", () => {
  const floods: [string, Buffer][] = [
    ["PING", frame(FRAME.PING, 0, [1, 2, 3, 4, 5, 6, 7, 8])],
    ["SETTINGS", settings],
    ["empty DATA", frame(FRAME.DATA, 1)],
    ["PRIORITY", frame(FRAME.PRIORITY, 1, [0, 0, 0, 0, 1])],
    ["unknown", frame(0x77, 0)],
  ];
  for (const [name, one] of floods) {
    const { stream, role } = make();
    stream.put(connect(1));
    for (let i = 0; i < 100; i++) stream.put(Buffer.concat(Array.from({ length: 200 }, () => one)));
    assert.equal(codeOf(role), "HBONE_FLOOD", name);
  }
});

test("a peer that asks and never reads cannot make the session gather without end", () => {
  const { stream, role, clock } = make();
  stream.stalled = true;
  const pings = Buffer.concat(Array.from({ length: 5000 }, () => frame(FRAME.PING, 0, [1, 2, 3, 4, 5, 6, 7, 8])));
  for (let i = 0; i < 100 && codeOf(role) === "open"; i++) {
    stream.put(pings);
    void clock.advance(20_000);
  }
  assert.equal(codeOf(role), "HBONE_FLOOD");
});

test("a silent peer is pinged, and dropped when nothing comes back", async () => {
  const { stream, role, clock } = make();
  await clock.advance(10_000); // the preface was heard in this time
  await clock.advance(10_000);
  await nextTurn();
  const ping = stream.frames().find(({ type }) => type === FRAME.PING);
  assert.ok(ping);
  stream.put(frame(FRAME.PING, 0, ping.content, FLAG.ACK));
  await clock.advance(20_000);
  assert.equal(codeOf(role), "open");
  await clock.advance(31_000);
  assert.equal(codeOf(role), "HBONE_PING_TIMEOUT");
});

test("settings and pings are answered in order", async () => {
  const { stream } = make();
  stream.put(frame(FRAME.PING, 0, [8, 7, 6, 5, 4, 3, 2, 1]));
  await nextTurn();
  const [own, window, ack, pong] = stream.frames();
  assert.deepEqual([own?.type, own?.flags], [FRAME.SETTINGS, 0]);
  assert.deepEqual([window?.type, window?.content.readUInt32BE(0)], [FRAME.WINDOW_UPDATE, (16 << 20) - 65_535]);
  assert.deepEqual([ack?.type, ack?.flags], [FRAME.SETTINGS, FLAG.ACK]);
  assert.deepEqual(
    [pong?.type, pong?.flags, pong?.content.toString("hex")],
    [FRAME.PING, FLAG.ACK, "0807060504030201"],
  );
});

const anyFrame = fc
  .record({
    type: fc.integer({ min: 0, max: 10 }),
    flags: fc.constantFrom(0, 1, 4, 5, 8, 9),
    streamId: fc.constantFrom(0, 1, 3, 5),
    content: fc.oneof(
      fc.uint8Array({ maxLength: 9 }),
      fc.constant(encodeField(":method", "CONNECT")),
      fc.constant(Uint8Array.from(uint32(8))),
    ),
  })
  .map(({ type, flags, streamId, content }) => frame(type, streamId, content, flags));

test("any frames leave a session open or end it with a code of ours, and every tunnel with it", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(anyFrame, { maxLength: 30 }), async (frames) => {
      const { stream, role, session } = make();
      const ends: number[] = [];
      for (const one of frames) {
        stream.put(one);
        for (const tunnel of role.tunnels) tunnel.onFinished ??= () => ends.push(tunnel.id);
      }
      await nextTurn();
      if (role.closedWith === "open") {
        assert.equal(session.closed, false);
        session.fail(hboneError("HBONE_ABORTED", "the end"));
      } else {
        assert.match(role.closedWith?.code ?? "", /^HBONE_/);
      }
      assert.ok(stream.closed);
      assert.equal(session.tunnels.size, 0);
      assert.equal(new Set(ends).size, ends.length);
    }),
    { numRuns: 300 },
  );
});
