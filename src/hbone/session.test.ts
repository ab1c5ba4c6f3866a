import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { hboneError } from "./errors.ts";
import {
  connectFrame as connect,
  type FakeRole,
  fakeSession as make,
  FakeSocket,
  frame,
  uint32,
  untilWritten,
} from "./fake-session.ts";
import { FLAG, FRAME, getUint32 } from "./frames.ts";
import { encodeField } from "./hpack.ts";
import { LoopSocket } from "./loop-socket.ts";
import type { TunnelResult, TunnelSocket } from "./tunnel.ts";

function codeOf(role: FakeRole): string | undefined {
  return role.closedWith === "open" ? "open" : role.closedWith?.code;
}

test("each broken rule of a session ends it with its code, which the peer is told", async () => {
  const widest = frame(FRAME.SETTINGS, 0, [0, 4, 0x7f, 0xff, 0xff, 0xff]);
  const cases: [string, Buffer[], number][] = [
    ["HBONE_PROTOCOL", [frame(FRAME.DATA, 1, [1])], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.RST_STREAM, 1, uint32(8))], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.WINDOW_UPDATE, 1, uint32(8))], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.WINDOW_UPDATE, 0, uint32(0))], 1],
    ["HBONE_FLOW_CONTROL", [frame(FRAME.WINDOW_UPDATE, 0, uint32(0x7fff_ffff))], 3],
    ["HBONE_FLOW_CONTROL", [connect(1), frame(FRAME.WINDOW_UPDATE, 1, uint32(0x7fff_0000 - 1)), widest], 3],
    ["HBONE_FLOW_CONTROL", [frame(FRAME.SETTINGS, 0, [0, 4, 0x80, 0, 0, 0])], 3],
    ["HBONE_PROTOCOL", [frame(FRAME.SETTINGS, 0, [0, 5, 0, 0, 0, 1])], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.SETTINGS, 0, [0, 2, 0, 0, 0, 2])], 1],
    ["HBONE_PROTOCOL", [frame(FRAME.SETTINGS, 0, [], FLAG.ACK)], 1],
    ["HBONE_FLOOD", [frame(FRAME.SETTINGS, 0, Buffer.alloc(6 * 33))], 11],
    ["HBONE_STREAM_CLOSED", [connect(1), frame(FRAME.RST_STREAM, 1, uint32(8)), frame(FRAME.DATA, 1, [1])], 5],
    ["HBONE_COMPRESSION", [frame(FRAME.HEADERS, 1, [0x80], FLAG.END_HEADERS)], 9],
    ["HBONE_FRAME_SIZE", [frame(FRAME.PING, 0, [1])], 6],
    // nobody takes the bytes: the window of a tunnel is 256 KiB
    ["HBONE_FLOW_CONTROL", [connect(1), frame(FRAME.DATA, 1, Buffer.alloc(256 << 10)), frame(FRAME.DATA, 1, [1])], 3],
  ];
  for (const [code, frames, h2Code] of cases) {
    const { stream, role } = make();
    await untilWritten();
    stream.put(Buffer.concat(frames));
    assert.equal(codeOf(role), code);
    const last = stream.frames().at(-1);
    assert.equal(last?.type, FRAME.GOAWAY, code);
    assert.equal(getUint32(last.content, 4), h2Code, code);
    assert.ok(stream.ended && !stream.closed, "it waits for the peer's end, so that the peer hears of it");
    stream.owner?.onEnd();
    assert.ok(stream.closed && role.gone);
  }
});

test("a rule of one stream that is broken ends that stream alone", async () => {
  const end = frame(FRAME.DATA, 1, [], FLAG.END_STREAM);
  const cases: [Buffer[], number][] = [
    [[frame(FRAME.WINDOW_UPDATE, 1, uint32(0))], 1],
    [[frame(FRAME.WINDOW_UPDATE, 1, uint32(0x7fff_ffff))], 3],
    [[end, frame(FRAME.DATA, 1, [1])], 5],
    [[end, frame(FRAME.HEADERS, 1, encodeField("a", "b"), FLAG.END_HEADERS | FLAG.END_STREAM)], 5],
  ];
  for (const [frames, h2Code] of cases) {
    const { stream, role, session } = make();
    stream.put(Buffer.concat([connect(1), connect(3), ...frames]));
    await untilWritten();
    assert.equal(codeOf(role), "open");
    const resets = stream.frames().filter(({ type }) => type === FRAME.RST_STREAM);
    assert.deepEqual(
      resets.map(({ streamId, content }) => [streamId, getUint32(content, 0)]),
      [[1, h2Code]],
    );
    assert.deepEqual([...session.tunnels.keys()], [3]);
    // What was under way is no error, as far as the window allows; then it is one.
    stream.put(frame(FRAME.DATA, 1, Buffer.alloc(200_000)));
    assert.equal(codeOf(role), "open");
    stream.put(frame(FRAME.DATA, 1, Buffer.alloc(200_000)));
    assert.equal(codeOf(role), "HBONE_FLOW_CONTROL");
  }
});

test("after both sides have reset a stream nothing may come on it", () => {
  const { stream, role } = make();
  stream.put(connect(1));
  role.tunnels[0]?.fail(hboneError("HBONE_ABORTED", "enough"), 8);
  stream.put(Buffer.concat([frame(FRAME.DATA, 1, [1]), frame(FRAME.RST_STREAM, 1, uint32(8))]));
  assert.equal(codeOf(role), "open");
  stream.put(frame(FRAME.DATA, 1, [1]));
  assert.equal(codeOf(role), "HBONE_STREAM_CLOSED");
});

test("however many tunnels are stalled, each with all that it may hold, the next has its window", async () => {
  const { stream, role, session } = make();
  const all = 100;
  for (let i = 0; i < all; i++) {
    stream.put(Buffer.concat([connect(1 + 2 * i), frame(FRAME.DATA, 1 + 2 * i, Buffer.alloc(256 << 10))]));
  }
  assert.equal(codeOf(role), "open");
  assert.ok(session.intake.pinnedSlabs <= 17, `${session.intake.pinnedSlabs} slabs are pinned`);
  await untilWritten();
  const updates = stream.frames().filter(({ type, streamId }) => type === FRAME.WINDOW_UPDATE && streamId === 0);
  const given = updates.reduce((sum, { content }) => sum + content.readUInt32BE(0), 65_535);
  assert.equal(given, session.window.size);
  assert.ok(given >= all * (256 << 10) && given <= (all + 4) * (256 << 10), `${given} bytes`);
  for (const tunnel of role.tunnels) tunnel.fail(hboneError("HBONE_ABORTED", "enough"), 8);
  assert.equal(session.window.size, 16 << 20, "what stalled tunnels held is given back, but for the growth");
});

test("a byte here and there for a stalled tunnel does not hold a slab each", async () => {
  const { stream, role, session } = make();
  stream.put(connect(1));
  const filler = Buffer.alloc(64 * 1024);
  let other = 1;
  for (let i = 0; i < 400; i++) {
    stream.put(frame(FRAME.DATA, 1, [i & 255]));
    if (i % 3 === 0) {
      // Tunnels that are reset: their bytes are dropped at once.
      other += 2;
      stream.put(connect(other));
      session.tunnels.get(other)?.fail(hboneError("HBONE_ABORTED", "enough"), 8);
    }
    stream.put(frame(FRAME.DATA, other, other === 1 ? [] : filler));
    await untilWritten();
  }
  assert.equal(codeOf(role), "open");
  assert.ok(session.intake.pinnedSlabs <= 17, `${session.intake.pinnedSlabs} slabs are pinned`);
});

test("the peer's windows are obeyed while its settings change, also below zero", async () => {
  const { stream, role } = make();
  const initialWindow = (size: number): Buffer => frame(FRAME.SETTINGS, 0, [0, 4, ...uint32(size)]);
  const sent = async (): Promise<number> => {
    await untilWritten();
    const data = stream.frames().filter(({ type }) => type === FRAME.DATA);
    return data.reduce((sum, { content }) => sum + content.length, 0);
  };
  stream.put(Buffer.concat([frame(FRAME.WINDOW_UPDATE, 0, uint32(1 << 20)), initialWindow(1000), connect(1)]));
  const socket = new FakeSocket();
  role.tunnels[0]?.attach(socket);
  socket.send(3000);
  assert.equal(await sent(), 1000);
  assert.ok(socket.stream.paused, "nothing more is read meanwhile");
  stream.put(initialWindow(400)); // the window is -600 now
  stream.put(frame(FRAME.WINDOW_UPDATE, 1, uint32(500)));
  assert.equal(await sent(), 1000);
  stream.put(frame(FRAME.WINDOW_UPDATE, 1, uint32(101)));
  assert.equal(await sent(), 1001);
  stream.put(initialWindow(1400));
  assert.equal(await sent(), 2001);
  stream.put(Buffer.concat([initialWindow(0), initialWindow(2000), initialWindow(1500), initialWindow(65_535)]));
  assert.equal(await sent(), 3000);
  assert.ok(!socket.stream.paused);
});

test("a stream that its peer has ended still gets windows and priorities", async () => {
  const { stream, role } = make();
  stream.put(Buffer.concat([frame(FRAME.SETTINGS, 0, [0, 4, ...uint32(0)]), connect(1)]));
  const socket = new FakeSocket();
  role.tunnels[0]?.attach(socket);
  socket.send(10);
  stream.put(frame(FRAME.DATA, 1, [], FLAG.END_STREAM));
  stream.put(Buffer.concat([frame(FRAME.PRIORITY, 1, [0, 0, 0, 0, 1]), frame(FRAME.WINDOW_UPDATE, 1, uint32(10))]));
  await untilWritten();
  const data = stream.frames().find(({ type }) => type === FRAME.DATA);
  assert.equal(data?.content.length, 10);
  assert.equal(codeOf(role), "open");
});

test("a window grows while its bytes find their reader quickly, and not while they come slowly or wait", async () => {
  for (const [pauseMs, takes, grows] of [
    [0, true, true],
    [60, true, false],
    [0, false, false],
  ] as const) {
    const { stream, role, session, clock } = make();
    stream.put(connect(1));
    const socket = new FakeSocket();
    socket.stream.stalled = !takes;
    role.tunnels[0]?.attach(socket);
    let sent = 0;
    for (let i = 0; i < 64 && (role.tunnels[0]?.window.left ?? 0) >= 65_536; i++, sent += 65_536) {
      stream.put(frame(FRAME.DATA, 1, Buffer.alloc(65_536)));
      await untilWritten();
      await clock.advance(pauseMs);
    }
    assert.equal(codeOf(role), "open");
    assert.equal(sent, takes ? 64 * 65_536 : 256 << 10);
    assert.equal((role.tunnels[0]?.window.left ?? 0) > 256 << 10, grows);
    assert.equal(session.window.size, 16 << 20, "there was room in the session's window");
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
  await untilWritten();
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
  await untilWritten();
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
      await untilWritten();
      if (role.closedWith === "open") {
        assert.equal(session.closed, false);
        session.fail(hboneError("HBONE_ABORTED", "the end"));
      } else {
        assert.match(role.closedWith?.code ?? "", /^HBONE_/);
      }
      assert.ok(stream.ended);
      assert.equal(session.tunnels.size, 0);
      assert.equal(new Set(ends).size, ends.length);
    }),
    { numRuns: 300 },
  );
});

describe("last bytes and the end of a tunnel that come in one turn with the end of their session", () => {
  const LAST_WORDS = Buffer.from("last words");

  /** A tunnel to `socket`, whose application may `end`; then its last bytes, its end and the session's end come at once. */
  async function endAtOnce(socket: TunnelSocket, end = (): void => {}): Promise<readonly TunnelResult[]> {
    const { stream, role } = make();
    stream.put(connect(1));
    const results: TunnelResult[] = [];
    const [tunnel] = role.tunnels;
    assert.ok(tunnel);
    tunnel.onFinished = (result) => results.push(result);
    tunnel.attach(socket);
    end();
    await untilWritten();
    stream.put(frame(FRAME.DATA, 1, LAST_WORDS, FLAG.END_STREAM));
    stream.owner?.onEnd();
    return results;
  }

  test("reach the plain socket, which is closed then and not reset", async () => {
    const socket = new FakeSocket();
    const results = await endAtOnce(socket, () => socket.stream.owner?.onEnd());
    await untilWritten();
    assert.deepEqual(Buffer.concat(socket.stream.written), LAST_WORDS);
    assert.deepEqual([socket.stream.closed, socket.stream.wasReset], [true, false]);
    assert.deepEqual(
      results.map(({ error, bytesReceived }) => [error, bytesReceived]),
      [[undefined, LAST_WORDS.length]],
    );
  });

  test("wait for a plain socket that is slow", async () => {
    const socket = new FakeSocket();
    socket.stream.stalled = true;
    const results = await endAtOnce(socket, () => socket.stream.owner?.onEnd());
    await untilWritten();
    assert.deepEqual([socket.stream.closed, results.length], [false, 0]);
    socket.stream.owner?.onWritten();
    assert.deepEqual([socket.stream.closed, socket.stream.wasReset, results[0]?.error], [true, false, undefined]);
  });

  test("twin: a plain socket that has not ended itself is reset, for what it still says reaches nobody", async () => {
    const socket = new FakeSocket();
    const results = await endAtOnce(socket);
    await untilWritten();
    assert.equal(socket.stream.wasReset, true);
    assert.equal(results[0]?.error?.code, "HBONE_SESSION_LOST");
  });

  test("reach the session inside, when it is a tunnel in a tunnel that has said all it had to say", async () => {
    const socket = new LoopSocket();
    socket.far.end();
    const results = await endAtOnce(socket);
    let said = "";
    for await (const part of socket.far) said += String(part);
    assert.equal(said, LAST_WORDS.toString());
    assert.equal(results[0]?.error, undefined);
  });
});

test("an end that comes within a turn of the first bytes travels in their frame, a later one in a frame of its own", async () => {
  const { stream, role } = make();
  for (const [id, turns] of [
    [1, 1],
    [3, 3],
  ] as const) {
    stream.put(connect(id));
    const socket = new FakeSocket();
    role.tunnels.at(-1)?.attach(socket);
    await untilWritten();
    stream.clear();
    socket.send(10);
    for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
    socket.stream.owner?.onEnd();
    await untilWritten();
    const data = stream.frames().map(({ content, flags }) => `${content.length} ${flags & FLAG.END_STREAM}`);
    assert.deepEqual(data, turns === 1 ? ["10 1"] : ["10 0", "0 1"]);
    assert.equal(stream.written.length, turns === 1 ? 1 : 2);
  }
});
