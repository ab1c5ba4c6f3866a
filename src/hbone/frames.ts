/** Frame types of HTTP/2 (RFC 9113 §6). */
export const FRAME = {
  DATA: 0,
  HEADERS: 1,
  PRIORITY: 2,
  RST_STREAM: 3,
  SETTINGS: 4,
  PUSH_PROMISE: 5,
  PING: 6,
  GOAWAY: 7,
  WINDOW_UPDATE: 8,
  CONTINUATION: 9,
} as const;

/** Flags of frames. */
export const FLAG = { ACK: 1, END_STREAM: 1, END_HEADERS: 4, PADDED: 8, PRIORITY: 32 } as const;

/** Identifiers of settings. */
export const SETTING = {
  HEADER_TABLE_SIZE: 1,
  ENABLE_PUSH: 2,
  MAX_CONCURRENT_STREAMS: 3,
  INITIAL_WINDOW_SIZE: 4,
  MAX_FRAME_SIZE: 5,
  MAX_HEADER_LIST_SIZE: 6,
} as const;

export const HEADER_BYTES = 9;
export const DEFAULT_WINDOW = 65_535;
export const DEFAULT_MAX_FRAME = 16_384;
export const LARGEST_WINDOW = 0x7fff_ffff;
export const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");

/** What we announce and obey as receivers: what windows begin with, and how far they grow. */
export const STREAM_WINDOW_BYTES = 256 << 10;
export const MOST_STREAM_WINDOW_BYTES = 4 << 20;
export const SESSION_WINDOW_BYTES = 16 << 20;
export const MOST_SESSION_WINDOW_BYTES = 64 << 20;
export const MAX_FRAME_BYTES = 1 << 20;
/** Bytes of a session that are used up are given back in batches of this size. */
export const SESSION_CREDIT_BYTES = 4 << 20;

/** Writes a frame's header at `at`. */
export function putFrameHeader(
  out: Uint8Array,
  at: number,
  frame: { length: number; type: number; flags: number; streamId: number },
): void {
  const { length, streamId } = frame;
  out[at] = length >>> 16;
  out[at + 1] = length >>> 8;
  out[at + 2] = length;
  out[at + 3] = frame.type;
  out[at + 4] = frame.flags;
  putUint32(out, at + 5, streamId);
}

/** Makes the DATA frame that begins at `at` the last of its stream. */
export function putEndStream(out: Uint8Array, at: number): void {
  out[at + 4] = FLAG.END_STREAM;
}

/** Writes a number in network order. */
export function putUint32(out: Uint8Array, at: number, value: number): void {
  out[at] = value >>> 24;
  out[at + 1] = value >>> 16;
  out[at + 2] = value >>> 8;
  out[at + 3] = value;
}

/** Reads a number in network order. */
export function getUint32(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)) >>> 0
  );
}

/** A whole GOAWAY frame. */
export function goawayFrame(lastStreamId: number, code: number): Uint8Array {
  const frame = new Uint8Array(HEADER_BYTES + 8);
  putFrameHeader(frame, 0, { length: 8, type: FRAME.GOAWAY, flags: 0, streamId: 0 });
  putUint32(frame, HEADER_BYTES, lastStreamId);
  putUint32(frame, HEADER_BYTES + 4, code);
  return frame;
}
