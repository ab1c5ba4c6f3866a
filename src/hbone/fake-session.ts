import { FakeClock } from "#base/clock";
import type { CodedError } from "#base/errors";
import { parseIp } from "#base/ip";
import { seededRandom } from "#base/random";
import type { ByteStream, StreamOwner, WriteOutcome } from "#linux";
import { ClientSession } from "./client-session.ts";
import { FLAG, FRAME, getUint32, HEADER_BYTES, PREFACE, putFrameHeader } from "./frames.ts";
import { encodeField } from "./hpack.ts";
import { DEFAULT_LIMITS, type HboneLimits } from "./limits.ts";
import { ServerSession, type InboundTunnel } from "./server-session.ts";
import { Session, type SessionRole } from "./session.ts";
import { testId } from "./testing.ts";
import type { Tunnel, TunnelResult, TunnelSocket } from "./tunnel.ts";

/** A frame as it was written. */
export interface SeenFrame {
  readonly type: number;
  readonly flags: number;
  readonly streamId: number;
  readonly content: Buffer;
}

/** For tests: a stream without a socket. What the session writes is kept, what it is to read is put in. */
export class FakeStream implements ByteStream {
  owner: StreamOwner | undefined;
  buffer = new Uint8Array(0) as Uint8Array;
  written: Buffer[] = [];
  closed = false;
  wasReset = false;
  ended = false;
  stalled = false;
  paused = false;
  readonly error = undefined;

  start(owner: StreamOwner, buffer: Uint8Array): void {
    this.owner = owner;
    this.buffer = buffer;
  }
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    this.paused = false;
  }
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
    this.wasReset = true;
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

  /** Frames that were written, from the beginning or since the last call of `clear`. */
  frames(): SeenFrame[] {
    const written = Buffer.concat(this.written);
    const all = written.subarray(written.indexOf(PREFACE) === 0 ? PREFACE.length : 0);
    const frames = [];
    for (let at = 0; at + HEADER_BYTES <= all.length;) {
      const length = all.readUIntBE(at, 3);
      const content = all.subarray(at + HEADER_BYTES, at + HEADER_BYTES + length);
      frames.push({ type: all[at + 3] ?? 0, flags: all[at + 4] ?? 0, streamId: getUint32(all, at + 5), content });
      at += HEADER_BYTES + length;
    }
    return frames;
  }

  clear(): void {
    this.written = [];
  }
}

/** For tests: a role that answers every request with a tunnel that has no socket. */
export class FakeRole implements SessionRole {
  readonly kind = "server";
  session: Session | undefined;
  tunnels: Tunnel[] = [];
  closedWith: CodedError | undefined | "open" = "open";
  gone = false;

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
  onPeerSettings(): void {}
  onGone(): void {
    this.gone = true;
  }
  onClosed(error: CodedError | undefined): void {
    this.closedWith = error;
  }
}

/** For tests: one frame. */
// eslint-disable-next-line max-params -- a row of a table of frames reads best so
export function frame(type: number, streamId: number, content: Uint8Array | number[] = [], flags = 0): Buffer {
  const out = Buffer.alloc(HEADER_BYTES + content.length);
  putFrameHeader(out, 0, { length: content.length, type, flags, streamId });
  out.set(content, HEADER_BYTES);
  return out;
}

/** For tests: SETTINGS that change nothing. */
export const settingsFrame = frame(FRAME.SETTINGS, 0);
const settingsAck = frame(FRAME.SETTINGS, 0, [], FLAG.ACK);

/** For tests: a CONNECT request. */
export function connectFrame(streamId: number, authority = "127.0.0.1:80"): Buffer {
  const block = Buffer.concat([encodeField(":method", "CONNECT"), encodeField(":authority", authority)]);
  return frame(FRAME.HEADERS, streamId, block, FLAG.END_HEADERS);
}

/** For tests: the content of RST_STREAM, WINDOW_UPDATE. */
export function uint32(value: number): number[] {
  return [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
}

/** For tests: the plain socket of a tunnel. */
export class FakeSocket implements TunnelSocket {
  readonly stream = new FakeStream();
  close(): void {
    this.stream.close();
  }
  reset(): void {
    this.stream.reset();
  }

  /** The application has sent so much. */
  send(byteCount: number): void {
    this.stream.put(Buffer.alloc(byteCount));
  }
}

/** For tests: a session with a {@link FakeRole} whose peer has begun. */
export function fakeSession(limits: Partial<HboneLimits> = {}): {
  stream: FakeStream;
  role: FakeRole;
  session: Session;
  clock: FakeClock;
} {
  const clock = new FakeClock();
  const role = new FakeRole();
  const session = new Session({ role, clock, limits: { ...DEFAULT_LIMITS, ...limits } });
  role.session = session;
  const stream = new FakeStream();
  session.start(stream);
  stream.put(Buffer.concat([PREFACE, settingsFrame, settingsAck]));
  return { stream, role, session, clock };
}

/** For tests: a server's session as it is, whose peer has begun; not when it is `raw`. `deaf`: it acknowledges nothing. */
export function fakeServerSession(
  limits: Partial<HboneLimits> = {},
  begins: "acknowledging" | "deaf" | "raw" = "acknowledging",
): {
  stream: FakeStream;
  session: ServerSession;
  tunnels: InboundTunnel[];
  rejected: CodedError[];
  clock: FakeClock;
} {
  const clock = new FakeClock();
  const stream = new FakeStream();
  const tunnels: InboundTunnel[] = [];
  const rejected: CodedError[] = [];
  const end = { ip: parseIp("127.0.0.1"), port: 1 };
  const session = new ServerSession({
    secure: { stream, peer: testId("client") },
    remote: end,
    local: end,
    clock,
    limits: { ...DEFAULT_LIMITS, ...limits },
    onTunnel: (tunnel) => tunnels.push(tunnel),
    reject: (error) => rejected.push(error),
    onGone: () => {},
  });
  session.start();
  if (begins !== "raw") stream.put(Buffer.concat([PREFACE, settingsFrame]));
  if (begins === "acknowledging") stream.put(settingsAck);
  return { stream, session, tunnels, rejected, clock };
}

/** For tests: a client's session as it is, to which nothing has come. */
export function fakeClientSession(): {
  stream: FakeStream;
  session: ClientSession;
  /** Opens a tunnel; how it ended. */
  open: (socket: FakeSocket) => Promise<TunnelResult>;
} {
  const stream = new FakeStream();
  const session = new ClientSession({
    secure: { stream, peer: testId("server") },
    source: testId("client"),
    clock: new FakeClock(),
    random: seededRandom(1),
    limits: DEFAULT_LIMITS,
    onChanged: () => {},
  });
  session.start();
  const open = async (socket: FakeSocket): Promise<TunnelResult> =>
    new Promise((resolve) => {
      const headers = { baggage: "k=v", forwarded: "for=x" };
      const where = { source: testId("client"), accepted: [testId("server")], ip: "127.0.0.1", port: 15_008 };
      session.open({ ...where, authority: "10.1.2.3:80", headers, socket, onEnd: () => {} }, resolve);
    });
  return { stream, session, open };
}

/** Waits until what has gathered in sessions is written: a turn, and another one where more was expected. */
export async function untilWritten(): Promise<void> {
  for (let turns = 0; turns < 2; turns++) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}
