import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { FrameParser, type FrameSink } from "./frame-parser.ts";
import { FLAG, FRAME, HEADER_BYTES, PREFACE, putFrameHeader } from "./frames.ts";

// eslint-disable-next-line max-params -- a row of a table of frames reads best so
function frame(type: number, streamId: number, content: Uint8Array | number[] = [], flags = 0): Buffer {
  const out = Buffer.alloc(HEADER_BYTES + content.length);
  putFrameHeader(out, 0, { length: content.length, type, flags, streamId });
  out.set(content, HEADER_BYTES);
  return out;
}

/** Writes down what it is told; the pieces of a DATA frame are joined. */
class Recorder implements FrameSink {
  readonly events: string[] = [];
  #data = "";

  onDataFrame(streamId: number, length: number): void {
    this.#data = `data ${streamId} ${length} `;
  }
  onData({ bytes, offset, count }: FrameParser): void {
    this.#data += Buffer.from(bytes.subarray(offset, offset + count)).toString("hex");
  }
  onPadding(_streamId: number, count: number): void {
    this.#data += ".".repeat(count);
  }
  onDataEnd(_streamId: number, endStream: boolean): void {
    this.events.push(`${this.#data} ${endStream}`);
  }
  onHeaders({ streamId, endStream, bytes, offset, count }: FrameParser): void {
    const hex = Buffer.from(bytes.subarray(offset, offset + count)).toString("hex");
    this.events.push(`headers ${streamId} ${hex} ${endStream}`);
  }
  onReset(streamId: number, code: number): void {
    this.events.push(`reset ${streamId} ${code}`);
  }
  onSettings(settings: readonly (readonly [number, number])[]): void {
    this.events.push(`settings ${JSON.stringify(settings)}`);
  }
  onSettingsAck(): void {
    this.events.push("settings ack");
  }
  onPing(payload: Uint8Array, ack: boolean): void {
    this.events.push(`ping ${Buffer.from(payload).toString("hex")} ${ack}`);
  }
  onGoaway(lastStreamId: number, code: number): void {
    this.events.push(`goaway ${lastStreamId} ${code}`);
  }
  onWindowUpdate(streamId: number, increment: number): void {
    this.events.push(`window ${streamId} ${increment}`);
  }
  onIgnored(type: number): void {
    this.events.push(`ignored ${type}`);
  }
}

function parse(bytes: Uint8Array, role: "client" | "server" = "client"): string[] {
  const recorder = new Recorder();
  new FrameParser(recorder, role).push(bytes, 0, bytes.length);
  return recorder.events;
}

const settings = frame(FRAME.SETTINGS, 0, [0, 4, 0, 64, 0, 0]);

test("every kind of frame is reported with its facts", () => {
  const stream = Buffer.concat([
    PREFACE,
    settings,
    frame(FRAME.SETTINGS, 0, [], FLAG.ACK),
    frame(FRAME.HEADERS, 1, [0x82], FLAG.END_HEADERS | FLAG.END_STREAM),
    frame(FRAME.HEADERS, 3, [2, 0, 0, 0, 0, 9, 0x82, 0, 0], FLAG.END_HEADERS | FLAG.PADDED | FLAG.PRIORITY),
    frame(FRAME.HEADERS, 5, [1], FLAG.END_STREAM),
    frame(FRAME.CONTINUATION, 5, [2]),
    frame(FRAME.CONTINUATION, 5, [], FLAG.END_HEADERS),
    frame(FRAME.DATA, 1, [7, 8, 9]),
    frame(FRAME.DATA, 1, [2, 7, 0, 0], FLAG.PADDED | FLAG.END_STREAM),
    frame(FRAME.DATA, 1, [0], FLAG.PADDED),
    frame(FRAME.DATA, 1, [], FLAG.END_STREAM),
    frame(FRAME.PRIORITY, 1, [0, 0, 0, 0, 1]),
    frame(FRAME.RST_STREAM, 1, [0, 0, 0, 8]),
    frame(FRAME.PING, 0, [1, 2, 3, 4, 5, 6, 7, 8], FLAG.ACK),
    frame(FRAME.GOAWAY, 0, [0x80, 0, 0, 9, 0, 0, 0, 2, 65, 66]),
    frame(FRAME.WINDOW_UPDATE, 9, [0x80, 0, 1, 0]),
    frame(0x2a, 0, [1, 2, 3]),
  ]);
  assert.deepEqual(parse(stream, "server"), [
    "settings [[4,4194304]]",
    "settings ack",
    "headers 1 82 true",
    "headers 3 82 false",
    "headers 5 0102 true",
    "data 1 3 070809 false",
    "data 1 4 .07.. true",
    "ignored 0",
    "data 1 1 . false",
    "data 1 0  true",
    "ignored 2",
    "reset 1 8",
    "ping 0102030405060708 true",
    "goaway 9 2",
    "window 9 256",
    "ignored 42",
  ]);
});

test("each broken rule has its code", () => {
  const after = (...frames: Buffer[]): Buffer => Buffer.concat([settings, ...frames]);
  const cases: [Buffer, string, RegExp][] = [
    [frame(FRAME.PING, 0, [0, 0, 0, 0, 0, 0, 0, 0]), "HBONE_PROTOCOL", /first frame/],
    [frame(FRAME.SETTINGS, 0, [], FLAG.ACK), "HBONE_PROTOCOL", /first frame/],
    [frame(FRAME.SETTINGS, 1), "HBONE_PROTOCOL", /SETTINGS on a stream/],
    [frame(FRAME.SETTINGS, 0, [1]), "HBONE_FRAME_SIZE", /SETTINGS/],
    [after(frame(FRAME.SETTINGS, 0, [0, 0, 0, 0, 0, 0], FLAG.ACK)), "HBONE_FRAME_SIZE", /SETTINGS with ACK/],
    [after(frame(FRAME.DATA, 0, [1])), "HBONE_PROTOCOL", /stream 0/],
    [after(frame(FRAME.DATA, 1, [], FLAG.PADDED)), "HBONE_FRAME_SIZE", /padded/],
    [after(frame(FRAME.DATA, 1, [3, 0, 0], FLAG.PADDED)), "HBONE_PROTOCOL", /padding/],
    [after(frame(FRAME.HEADERS, 0, [0x82], FLAG.END_HEADERS)), "HBONE_PROTOCOL", /stream 0/],
    [after(frame(FRAME.HEADERS, 1, [9, 0x82], FLAG.END_HEADERS | FLAG.PADDED)), "HBONE_PROTOCOL", /padding/],
    [after(frame(FRAME.HEADERS, 1, [0x82], FLAG.END_HEADERS | FLAG.PRIORITY)), "HBONE_PROTOCOL", /padding/],
    [after(frame(FRAME.HEADERS, 1, [0x82]), frame(FRAME.PING, 0, [])), "HBONE_PROTOCOL", /interrupted/],
    [after(frame(FRAME.HEADERS, 1, [0x82]), frame(FRAME.CONTINUATION, 3, [])), "HBONE_PROTOCOL", /interrupted/],
    [after(frame(FRAME.CONTINUATION, 1, [])), "HBONE_PROTOCOL", /without/],
    [after(frame(FRAME.RST_STREAM, 0, [0, 0, 0, 0])), "HBONE_PROTOCOL", /stream 0/],
    [after(frame(FRAME.RST_STREAM, 1, [0])), "HBONE_FRAME_SIZE", /RST_STREAM/],
    [after(frame(FRAME.PRIORITY, 1, [0])), "HBONE_FRAME_SIZE", /PRIORITY/],
    [after(frame(FRAME.PRIORITY, 1, [0x80, 0, 0, 1, 9])), "HBONE_PROTOCOL", /depends on itself/],
    [
      after(frame(FRAME.HEADERS, 1, [0, 0, 0, 1, 9, 0x82], FLAG.END_HEADERS | FLAG.PRIORITY)),
      "HBONE_PROTOCOL",
      /depends on itself/,
    ],
    [after(frame(FRAME.PUSH_PROMISE, 1, [0, 0, 0, 2])), "HBONE_PROTOCOL", /PUSH_PROMISE/],
    [after(frame(FRAME.PING, 0, [1])), "HBONE_FRAME_SIZE", /PING/],
    [after(frame(FRAME.PING, 1, [0, 0, 0, 0, 0, 0, 0, 0])), "HBONE_PROTOCOL", /on a stream/],
    [after(frame(FRAME.GOAWAY, 0, [0])), "HBONE_FRAME_SIZE", /GOAWAY/],
    [after(frame(FRAME.WINDOW_UPDATE, 0, [0, 0, 1])), "HBONE_FRAME_SIZE", /WINDOW_UPDATE/],
    [after(frame(FRAME.HEADERS, 1, Buffer.alloc(70_000))), "HBONE_HEADERS_TOO_LARGE", /header block/],
    [after(Buffer.from([0x20, 0, 0, 0, 0, 0, 0, 0, 1])), "HBONE_FRAME_SIZE", /2097152/],
  ];
  for (const [bytes, code, message] of cases) assert.throws(() => parse(bytes), { code, message }, String(message));
  assert.throws(() => parse(Buffer.from("GET / HTTP/1.1\r\n\r\n"), "server"), { code: "HBONE_PREFACE" });
});

test("a header block cannot grow without end", () => {
  const piece = frame(FRAME.CONTINUATION, 1, Buffer.alloc(16_000));
  const empty = frame(FRAME.CONTINUATION, 1, []);
  for (const flood of [piece, empty]) {
    const stream = Buffer.concat([settings, frame(FRAME.HEADERS, 1, [1]), ...Array.from({ length: 40 }, () => flood)]);
    assert.throws(() => parse(stream), { code: "HBONE_HEADERS_TOO_LARGE" });
  }
});

const anyFrame = fc
  .record({
    type: fc.integer({ min: 0, max: 11 }),
    flags: fc.integer({ min: 0, max: 255 }),
    streamId: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 9 })),
    content: fc.oneof(fc.uint8Array({ maxLength: 12 }), fc.uint8Array({ maxLength: 600 })),
  })
  .map(({ type, flags, streamId, content }) => frame(type, streamId, content, flags));

/** Events, or the code of the error that ended them. */
function outcome(pieces: readonly Uint8Array[]): string[] {
  const recorder = new Recorder();
  const parser = new FrameParser(recorder, "server");
  try {
    for (const piece of pieces) parser.push(piece, 0, piece.length);
  } catch (error) {
    assert.ok(error instanceof CodedError && error.code.startsWith("HBONE_"), String(error));
    recorder.events.push(error.code);
  }
  return recorder.events;
}

test("the way in which bytes are cut into pieces makes no difference", () => {
  fc.assert(
    fc.property(
      fc.array(anyFrame, { maxLength: 12 }),
      fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
      (frames, cuts) => {
        const all = Buffer.concat([PREFACE, settings, ...frames]);
        const pieces: Buffer[] = [];
        for (let at = 0, i = 0; at < all.length; i++) {
          const size = cuts[i % cuts.length] ?? 1;
          pieces.push(Buffer.from(all.subarray(at, at + size)));
          at += size;
        }
        assert.deepEqual(outcome(pieces), outcome([all]));
      },
    ),
    { numRuns: 500 },
  );
});

test("any bytes end in events or in a code of ours", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      outcome([Buffer.concat([PREFACE, settings]), bytes]);
      outcome([bytes]);
    }),
    { numRuns: 1000 },
  );
});
