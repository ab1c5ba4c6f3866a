import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { CodedError } from "#base/errors";
import { connectFrame, fakeServerSession, frame, settingsFrame, uint32 } from "./fake-session.ts";
import { FLAG, FRAME, getUint32 } from "./frames.ts";
import { encodeField } from "./hpack.ts";

// What a hostile peer may make us do for nothing. Each flood ends the session with ENHANCE_YOUR_CALM, soon; without the
// bound (a twin shows it) all of it would be dealt with; and a peer that sends the same at a rate that proper peers reach
// is served.

interface Flood {
  readonly name: string;
  /** The i-th of them, with stream numbers that go on from `streamId`. */
  readonly make: (streamId: number) => Buffer;
  /** How many a second a proper peer may send for as long as it likes. */
  readonly properRate: number;
}

const get = (streamId: number): Buffer => {
  const fields = { ":method": "GET", ":scheme": "https", ":path": "/", ":authority": "a" };
  const block = Buffer.concat(Object.entries(fields).map(([name, value]) => encodeField(name, value)));
  return frame(FRAME.HEADERS, streamId, block, FLAG.END_HEADERS | FLAG.END_STREAM);
};
const reset = (streamId: number): Buffer => frame(FRAME.RST_STREAM, streamId, uint32(8));

const FLOODS: readonly Flood[] = [
  { name: "PING", make: () => frame(FRAME.PING, 0, Buffer.alloc(8)), properRate: 500 },
  { name: "PING acknowledgements", make: () => frame(FRAME.PING, 0, Buffer.alloc(8), FLAG.ACK), properRate: 500 },
  { name: "SETTINGS", make: () => settingsFrame, properRate: 500 },
  {
    name: "SETTINGS that turn the windows of all tunnels",
    make: (id) => frame(FRAME.SETTINGS, 0, [0, 4, ...uint32(id % 4 === 1 ? 0 : 0x7fff_0000)]),
    properRate: 500,
  },
  { name: "empty DATA", make: () => frame(FRAME.DATA, 1), properRate: 500 },
  { name: "DATA that is padding alone", make: () => frame(FRAME.DATA, 1, [2, 0, 0], FLAG.PADDED), properRate: 500 },
  { name: "PRIORITY", make: (id) => frame(FRAME.PRIORITY, id, [0, 0, 0, 0, 1]), properRate: 500 },
  { name: "frames of unknown types", make: () => frame(0x77, 0, [1, 2, 3]), properRate: 500 },
  { name: "tiny WINDOW_UPDATEs", make: () => frame(FRAME.WINDOW_UPDATE, 0, uint32(1)), properRate: 500 },
  { name: "GOAWAY", make: () => frame(FRAME.GOAWAY, 0, [...uint32(0), ...uint32(0)]), properRate: 500 },
  {
    name: "rapid reset: CONNECT and RST_STREAM (CVE-2023-44487)",
    make: (id) => Buffer.concat([connectFrame(id), reset(id)]),
    properRate: 250,
  },
  {
    name: "streams that we are made to reset (CVE-2025-8671)",
    make: (id) => Buffer.concat([connectFrame(id), frame(FRAME.WINDOW_UPDATE, id, uint32(0))]),
    properRate: 250,
  },
  {
    name: "HEADERS on tunnels",
    make: (id) => Buffer.concat([connectFrame(id), connectFrame(id)]),
    properRate: 250,
  },
  { name: "requests that are no CONNECT", make: get, properRate: 250 },
  {
    name: "malformed requests",
    make: (id) => frame(FRAME.HEADERS, id, encodeField("A", "b"), FLAG.END_HEADERS),
    properRate: 250,
  },
];

/** Sends floods in one moment; the result is how many were dealt with before the session ended, and what was written. */
function attack(flood: Flood, mostPoints?: number): { taken: number; error: CodedError | undefined; bytes: number } {
  const { stream, rejected } = fakeServerSession(mostPoints === undefined ? {} : { nuisancePoints: mostPoints });
  stream.put(connectFrame(1));
  let taken = 0;
  for (let i = 0; i < SENT && !stream.ended; i++, taken++) stream.put(flood.make(3 + 2 * i));
  const bytes = stream.written.reduce((sum, one) => sum + one.length, 0);
  return { taken, error: stream.ended ? rejected.at(-1) : undefined, bytes };
}

const SENT = 12_000;

describe("floods", () => {
  for (const flood of FLOODS) {
    test(`${flood.name}: ends the session soon, and would not without the bound`, () => {
      const { taken, error } = attack(flood);
      assert.equal(error?.code, "HBONE_FLOOD");
      assert.ok(taken <= (flood.properRate === 250 ? 5010 : 10_010), `${taken} were dealt with`);
      const unbounded = attack(flood, Number.POSITIVE_INFINITY);
      assert.equal(unbounded.taken, SENT, "the twin: everything is dealt with");
    });

    test(`${flood.name}: at a rate of proper peers the session serves`, async () => {
      const { stream, clock, tunnels, rejected } = fakeServerSession();
      stream.put(connectFrame(1));
      let streamId = 3;
      for (let second = 0; second < 30; second++) {
        for (let i = 0; i < flood.properRate; i++, streamId += 2) stream.put(flood.make(streamId));
        await clock.advance(1000);
        stream.clear();
      }
      assert.ok(!stream.ended, rejected.at(-1)?.message);
      const before = tunnels.length;
      stream.put(connectFrame(streamId));
      assert.equal(tunnels.length, before + 1, "a tunnel is still taken");
    });
  }

  test("a flood is named to the peer: ENHANCE_YOUR_CALM", () => {
    const { stream } = fakeServerSession();
    for (let i = 0; i < 11_000 && !stream.ended; i++) stream.put(frame(FRAME.PING, 0, Buffer.alloc(8)));
    const last = stream.frames().at(-1);
    assert.equal(last?.type, FRAME.GOAWAY);
    assert.equal(getUint32(last.content, 4), 11);
  });

  test("header blocks without end (CVE-2024-27316) stop at 32 frames or 64 KiB; a large one in pieces is taken", () => {
    const block = Buffer.concat([encodeField(":method", "CONNECT"), encodeField(":authority", "127.0.0.1:80")]);
    const filler = (size: number): Uint8Array => encodeField("x-filler", "f".repeat(size));
    for (const [piece, most] of [
      [filler(16), 34],
      [new Uint8Array(0), 34],
      [filler(15_000), 6],
    ] as const) {
      const { stream, rejected } = fakeServerSession();
      stream.put(frame(FRAME.HEADERS, 1, block));
      let taken = 0;
      while (!stream.ended && taken < 1000) {
        stream.put(frame(FRAME.CONTINUATION, 1, piece));
        taken++;
      }
      assert.ok(taken <= most, `${taken} frames were taken`);
      assert.equal(rejected.at(-1)?.code, "HBONE_HEADERS_TOO_LARGE");
    }
    const { stream, tunnels } = fakeServerSession();
    stream.put(frame(FRAME.HEADERS, 1, block));
    for (let i = 0; i < 30; i++)
      stream.put(frame(FRAME.CONTINUATION, 1, filler(1500), i === 29 ? FLAG.END_HEADERS : 0));
    assert.equal(tunnels[0]?.authority, "127.0.0.1:80");
    assert.ok(!stream.ended);
  });

  test("a small block that unpacks to a large list (a bomb) is refused; one below the limit is taken", () => {
    const head = Buffer.concat([encodeField(":method", "CONNECT"), encodeField(":authority", "127.0.0.1:80")]);
    // A field of 3,002 characters goes into the table; then it is named again and again, a byte each.
    const entry = Buffer.concat([Buffer.from([0x40, 1, 0x61, 0x7f, 0xba, 0x16]), Buffer.alloc(3001, "b")]);
    for (const [times, isTaken] of [
      [20, true],
      [30, false],
      [20_000, false],
    ] as const) {
      const { stream, tunnels } = fakeServerSession();
      const block = Buffer.concat([head, entry, Buffer.alloc(times, 0xbe)]);
      for (let at = 0; at < block.length; at += 16_384) {
        const part = block.subarray(at, at + 16_384);
        const end = at + 16_384 >= block.length ? FLAG.END_HEADERS : 0;
        stream.put(frame(at === 0 ? FRAME.HEADERS : FRAME.CONTINUATION, 1, part, end));
      }
      assert.equal(tunnels.length === 1, isTaken, `${times} times`);
    }
  });

  test("windows cannot be overflown, neither by updates nor by settings", () => {
    for (const [frames, h2Code] of [
      [[frame(FRAME.WINDOW_UPDATE, 0, uint32(0x7fff_ffff))], 3],
      [
        [frame(FRAME.WINDOW_UPDATE, 1, uint32(0x7000_0000)), frame(FRAME.SETTINGS, 0, [0, 4, ...uint32(0x7fff_ffff)])],
        3,
      ],
    ] as const) {
      const { stream } = fakeServerSession();
      stream.put(connectFrame(1));
      stream.put(Buffer.concat(frames));
      assert.equal(getUint32(stream.frames().at(-1)?.content ?? Buffer.alloc(8), 4), h2Code);
    }
    const { stream } = fakeServerSession();
    stream.put(Buffer.concat([connectFrame(1), frame(FRAME.WINDOW_UPDATE, 1, uint32(0x7fff_0000))]));
    stream.put(frame(FRAME.WINDOW_UPDATE, 0, uint32(0x7fff_0000)));
    assert.ok(!stream.ended, "the twin: the largest windows are taken");
  });
});
