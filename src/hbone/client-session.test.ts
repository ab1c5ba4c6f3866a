import assert from "node:assert/strict";
import { test } from "node:test";
import {
  fakeClientSession,
  FakeSocket,
  type FakeStream,
  frame,
  settingsFrame,
  uint32,
  untilWritten,
} from "./fake-session.ts";
import { FLAG, FRAME, getUint32 } from "./frames.ts";
import { encodeField } from "./hpack.ts";

const answer = (streamId: number, status: number): Buffer =>
  frame(FRAME.HEADERS, streamId, encodeField(":status", String(status)), FLAG.END_HEADERS);
const goaway = (last: number): Buffer => frame(FRAME.GOAWAY, 0, [...uint32(last), ...uint32(0)]);

/** Stream numbers of the DATA frames that were written. */
async function dataOf(stream: FakeStream): Promise<number[]> {
  await untilWritten();
  return stream.frames().flatMap(({ type, streamId }) => (type === FRAME.DATA ? [streamId] : []));
}

function opened(count: number): ReturnType<typeof fakeClientSession> & {
  sockets: FakeSocket[];
  /** By tunnel: the code it ended with, `well`, or `not yet`. */
  ends: string[];
} {
  const rig = fakeClientSession();
  const sockets = Array.from({ length: count }, () => new FakeSocket());
  const ends = sockets.map(() => "not yet");
  for (const [index, socket] of sockets.entries()) {
    void rig.open(socket).then(({ error }) => {
      ends[index] = error?.code ?? "well";
    });
  }
  return { ...rig, sockets, ends };
}

test("first bytes travel on the first tunnel at once, on others when the server has said how many it takes", async () => {
  const { stream, sockets, session } = opened(3);
  sockets[0]?.send(10);
  assert.deepEqual(await dataOf(stream), [1]);
  assert.deepEqual(
    sockets.map((socket) => socket.stream.owner !== undefined),
    [true, false, false],
    "the others are not read",
  );
  stream.put(frame(FRAME.SETTINGS, 0, [0, 3, ...uint32(2)]));
  sockets[1]?.send(10);
  assert.deepEqual(await dataOf(stream), [1, 3]);
  assert.equal(sockets[2]?.stream.owner, undefined, "it is one too many, and may still be tried elsewhere");
  assert.equal(session.hasRoom, false);
  stream.put(answer(5, 200));
  sockets[2]?.send(10);
  assert.deepEqual(await dataOf(stream), [1, 3, 5], "the server took it after all");
});

test("first bytes that come within a turn share the request's write, and a request without any waits no longer", async () => {
  const { stream, open } = opened(0);
  stream.put(settingsFrame);
  await untilWritten();
  for (const speaks of [true, false]) {
    stream.clear();
    const socket = new FakeSocket();
    void open(socket);
    if (speaks) setImmediate(() => socket.send(10));
    await untilWritten();
    assert.equal(stream.written.length, 1);
    const types = stream.frames().map(({ type }) => type);
    assert.deepEqual(types, speaks ? [FRAME.HEADERS, FRAME.DATA] : [FRAME.HEADERS]);
  }
});

test("a server that goes away in two steps keeps what it has taken, and takes no more", async () => {
  const { stream, sockets, ends, session } = opened(2);
  stream.put(Buffer.concat([settingsFrame, answer(1, 200), goaway(0x7fff_ffff)]));
  await untilWritten();
  assert.equal(session.hasRoom, false);
  assert.deepEqual(ends, ["not yet", "not yet"]);
  stream.put(goaway(1));
  await untilWritten();
  assert.deepEqual(ends, ["not yet", "HBONE_STREAM_REFUSED"]);
  sockets[0]?.send(10);
  assert.deepEqual(await dataOf(stream), [1]);
  sockets[0]?.stream.owner?.onEnd();
  stream.put(frame(FRAME.DATA, 1, [1], FLAG.END_STREAM));
  await untilWritten();
  await untilWritten();
  assert.equal(ends[0], "well");
  assert.ok(stream.ended, "the session ends with its last tunnel");
});

test("a server answers and sends on what we have opened, and nothing else", async () => {
  const cases: [Buffer, number][] = [
    [answer(2, 200), 1],
    [answer(7, 200), 1],
    [frame(FRAME.PUSH_PROMISE, 1, [0, 0, 0, 2], FLAG.END_HEADERS), 1],
    [frame(FRAME.DATA, 1, [1]), 1],
    [frame(FRAME.SETTINGS, 0, [0, 2, ...uint32(1)]), 1],
  ];
  for (const [bytes, h2Code] of cases) {
    const { stream, ends } = opened(1);
    stream.put(Buffer.concat([settingsFrame, bytes]));
    await untilWritten();
    const last = stream.frames().at(-1);
    assert.equal(last?.type, FRAME.GOAWAY);
    assert.equal(getUint32(last.content, 4), h2Code);
    assert.deepEqual(ends, ["HBONE_PROTOCOL"]);
  }
});

test("interim answers are passed over, masses of them are a flood", async () => {
  const { stream, ends, sockets } = opened(1);
  stream.put(Buffer.concat([settingsFrame, answer(1, 103), answer(1, 100), answer(1, 200), frame(FRAME.DATA, 1, [7])]));
  await untilWritten();
  assert.deepEqual(Buffer.concat(sockets[0]?.stream.written ?? []), Buffer.from([7]));
  const other = opened(1);
  other.stream.put(settingsFrame);
  for (let i = 0; i < 11_000 && !other.stream.ended; i++) other.stream.put(answer(1, 103));
  await untilWritten();
  assert.deepEqual(other.ends, ["HBONE_FLOOD"]);
  assert.deepEqual(ends, ["not yet"], "the twin goes on");
});
