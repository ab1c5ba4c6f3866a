import assert from "node:assert/strict";
import { test } from "node:test";
import {
  connectFrame,
  fakeServerSession,
  type FakeStream,
  frame,
  settingsFrame,
  uint32,
  untilWritten,
} from "./fake-session.ts";
import { FLAG, FRAME, getUint32, PREFACE } from "./frames.ts";
import { encodeField } from "./hpack.ts";

/** RST_STREAM and GOAWAY frames that were written: `reset 1 5`, `goaway 7 0`. */
async function ends(stream: FakeStream): Promise<string[]> {
  await untilWritten();
  return stream.frames().flatMap(({ type, streamId, content }) => {
    if (type === FRAME.RST_STREAM) return [`reset ${streamId} ${getUint32(content, 0)}`];
    return type === FRAME.GOAWAY ? [`goaway ${getUint32(content, 0)} ${getUint32(content, 4)}`] : [];
  });
}

const trailers = frame(FRAME.HEADERS, 1, encodeField("a", "b"), FLAG.END_HEADERS | FLAG.END_STREAM);

test("HEADERS on a tunnel are an error of that tunnel, pseudo-fields or not, END_STREAM or not", async () => {
  for (const late of [trailers, connectFrame(1)]) {
    const { stream, tunnels } = fakeServerSession();
    stream.put(Buffer.concat([connectFrame(1), late, connectFrame(3)]));
    assert.deepEqual(await ends(stream), ["reset 1 1"]);
    assert.deepEqual(
      tunnels.map(({ closed }) => closed),
      [true, false],
    );
  }
});

test("a tunnel beyond the limit is refused, and taken once there is room again", async () => {
  const { stream, tunnels } = fakeServerSession({ streamsPerPeer: 3 });
  for (let id = 1; id <= 7; id += 2) stream.put(connectFrame(id));
  assert.equal(tunnels.length, 3);
  assert.deepEqual(await ends(stream), ["reset 7 7"]);
  stream.put(Buffer.concat([frame(FRAME.RST_STREAM, 1, uint32(8)), connectFrame(9)]));
  assert.equal(tunnels.length, 4);
});

test("stream numbers are the client's, and only go up", async () => {
  for (const [id, end] of [
    [2, "goaway 5 1"],
    [3, "goaway 5 5"],
  ] as const) {
    const { stream } = fakeServerSession();
    stream.put(connectFrame(5));
    stream.put(connectFrame(id));
    assert.deepEqual(await ends(stream), [end]);
  }
});

test("after both sides have reset a tunnel it cannot be opened again", async () => {
  const { stream, tunnels } = fakeServerSession();
  stream.put(connectFrame(1));
  tunnels[0]?.refuse(503);
  stream.put(frame(FRAME.RST_STREAM, 1, uint32(8)));
  stream.put(connectFrame(1));
  assert.deepEqual(await ends(stream), ["reset 1 0", "goaway 1 5"]);
});

test("draining: GOAWAY for all numbers, then, once the ping came back, for what was taken; later ones are refused", async () => {
  const { stream, session, tunnels } = fakeServerSession();
  stream.put(connectFrame(1));
  await untilWritten();
  stream.clear();
  session.drain();
  await untilWritten();
  const [goaway, ping] = stream.frames();
  assert.deepEqual([goaway?.type, getUint32(goaway?.content ?? Buffer.alloc(8), 0)], [FRAME.GOAWAY, 0x7fff_ffff]);
  stream.put(connectFrame(3));
  assert.equal(tunnels.length, 2, "it was on its way");
  stream.put(frame(FRAME.PING, 0, ping?.content ?? [], FLAG.ACK));
  stream.put(connectFrame(5));
  assert.equal(tunnels.length, 2);
  assert.deepEqual(await ends(stream), ["goaway 2147483647 0", "goaway 3 0", "reset 5 7"]);
  assert.ok(!stream.ended);
  for (const id of [1, 3]) stream.put(frame(FRAME.RST_STREAM, id, uint32(8)));
  await untilWritten();
  assert.ok(stream.ended && !stream.closed, "the last tunnel has ended, the peer has not yet");
  stream.owner?.onEnd();
  assert.ok(stream.closed);
});

test("draining does not wait for a peer that does not answer the ping", async () => {
  const { stream, session, clock } = fakeServerSession();
  session.drain();
  await clock.advance(5000);
  assert.deepEqual(await ends(stream), ["goaway 2147483647 0", "goaway 0 0"]);
  assert.ok(stream.ended);
  await clock.advance(1000);
  assert.ok(stream.closed, "nor for one that does not close");
});

test("what a peer sends after its session was ended is read and dropped, up to a bound", async () => {
  const { stream, rejected } = fakeServerSession();
  stream.put(frame(FRAME.DATA, 1, [1]));
  assert.equal(rejected[0]?.code, "HBONE_PROTOCOL");
  stream.put(Buffer.alloc(3 << 20));
  assert.ok(!stream.closed);
  stream.put(Buffer.alloc(2 << 20));
  assert.ok(stream.closed);
  assert.equal(rejected.length, 1);
});

test("a peer that does not acknowledge our settings is given up; one that does may be silent", async () => {
  for (const acknowledges of [false, true]) {
    const { stream, rejected, clock } = fakeServerSession({}, acknowledges ? "acknowledging" : "deaf");
    for (let second = 0; second < 25; second++) {
      await clock.advance(1000);
      stream.put(frame(FRAME.PING, 0, Buffer.alloc(8)));
    }
    assert.equal(rejected[0]?.code, acknowledges ? undefined : "HBONE_SETTINGS_TIMEOUT");
    assert.deepEqual(await ends(stream), acknowledges ? [] : ["goaway 0 4"]);
  }
});

test("settings are in force from the frame on that brings them", async () => {
  const { stream, rejected } = fakeServerSession();
  stream.put(Buffer.concat([settingsFrame, settingsFrame, connectFrame(1)]));
  await untilWritten();
  const acknowledged = stream.frames().filter(({ type, flags }) => type === FRAME.SETTINGS && flags === FLAG.ACK);
  assert.equal(acknowledged.length, 3, "each is acknowledged, the first included");
  stream.put(PREFACE);
  assert.equal(rejected.at(-1)?.code, "HBONE_FRAME_SIZE", "the preface comes once");
});
