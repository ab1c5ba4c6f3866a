import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { systemClock } from "#base/clock";
import { CodedError } from "#base/errors";
import { seededRandom, type Random } from "#base/random";
import {
  connectTcp,
  listenTcp,
  protectionsInUse,
  socketPath,
  useSocketPath,
  type ByteStream,
  type StreamOwner,
} from "#linux";
import { allocate } from "./buffers.ts";
import { RecordStream } from "./record-stream.ts";
import { identities } from "./testing.ts";
import { handshakeAsClient, TlsAcceptor, type SecureStream } from "./tls.ts";

// Sessions over sockets, opened, used and closed in every state while the heap is collected all the time: every byte that
// arrives is the right one, and nothing of OpenSSL's stays behind.

const clock = systemClock();
const timeoutMs = 60_000;
const SESSIONS = 96;
const AT_A_TIME = 16;

/** What everybody sends, from its beginning; a prime's length, so that no two records hold the same. */
const noise = allocate(1_299_709);
for (let at = 0, x = 1; at < noise.length; at++) noise[at] = x = (Math.imul(x, 1103515245) + 12345) >>> 8;

/** When an end leaves: in its first turn, in the middle (three ways), or when all has gone both ways. */
type Leaving = "at once" | "close" | "reset" | "shutdown" | "last";
const LEAVINGS: readonly Leaving[] = ["at once", "close", "reset", "shutdown", "last", "last", "last", "last"];
const SIZES = [0, 1, 100, 16_384, 16_385, 70_000, 1_500_000];
const BUFFERS = [1000, 16_640, 65_536, 262_144];

function pick<T>(random: Random, choices: readonly T[]): T {
  const choice = choices[random.below(choices.length)];
  assert.ok(choice !== undefined);
  return choice;
}

/** One end: sends so much in random pieces with keys that change, looks at what comes, and leaves as it was told. */
class Party implements StreamOwner {
  readonly #stream: ByteStream;
  readonly #random: Random;
  readonly #onOver: (party: Party) => void;
  readonly #buffer: Uint8Array;
  #sent = 0;
  #pending = false;
  #over = false;
  readonly leaving: Leaving;
  readonly total: number;
  received = 0;
  right = true;
  ended = false;

  constructor(stream: ByteStream, random: Random, onOver: (party: Party) => void) {
    this.#stream = stream;
    this.#random = random;
    this.#onOver = onOver;
    this.leaving = pick(random, LEAVINGS);
    this.total = this.leaving === "last" ? pick(random, SIZES) : random.below(pick(random, SIZES) + 1);
    this.#buffer = allocate(pick(random, BUFFERS));
    stream.start(this, this.#buffer);
    if (this.leaving === "at once") this.#leave();
    else setImmediate(this.#send);
  }

  readonly #send = (): void => {
    for (let pieces = 0; pieces < 4 && !this.#over && !this.#pending && this.#sent < this.total; pieces++)
      this.#write();
    if (this.#over || this.#pending) return;
    if (this.#sent < this.total) setImmediate(this.#send);
    else if (this.leaving === "close" || this.leaving === "reset" || this.ended) this.#leave();
    else this.#stream.shutdown();
  };

  #write(): void {
    const from = this.#sent % noise.length;
    const count = Math.min(this.#random.below(200_000) + 1, this.total - this.#sent, noise.length - from);
    const parts = [noise.slice(from, from + (count >> 1)), noise.slice(from + (count >> 1), from + count)];
    const outcome = this.#stream.writeAll(parts);
    for (const part of parts) part.fill(0); // they are free when the call returns
    this.#sent += count;
    this.#pending = outcome === "pending";
    if (outcome === "failed") this.#leave();
    else if (this.#random.below(6) === 0 && this.#stream instanceof RecordStream) this.#stream.onKeyUpdateAsked();
  }

  #leave(): void {
    if (this.#over) return;
    this.#over = true;
    if (this.leaving === "reset") this.#stream.reset();
    else this.#stream.close();
    this.#onOver(this);
  }

  onRead(count: number): undefined {
    for (let at = 0; at < count;) {
      const from = (this.received + at) % noise.length;
      const part = Math.min(count - at, noise.length - from);
      this.right &&= Buffer.compare(this.#buffer.subarray(at, at + part), noise.subarray(from, from + part)) === 0;
      at += part;
    }
    this.received += count;
  }
  onEnd(): void {
    this.ended = true;
    if (this.leaving !== "last" || (this.#sent === this.total && !this.#pending)) this.#leave();
  }
  onWritten(): void {
    this.#pending = false;
    this.#send();
  }
  onBroken(): void {
    this.#leave();
  }
}

describe("sessions while the heap is collected all the time", () => {
  const path = socketPath();
  let collecting: NodeJS.Timeout;
  before(() => {
    useSocketPath("handles");
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void; // V8's
    collecting = setInterval(collect, 20);
  });
  after(() => {
    clearInterval(collecting);
    useSocketPath(path);
  });

  test(`${SESSIONS} of them, left in every state: only right bytes arrive, and nothing of OpenSSL's stays`, async () => {
    const { client, server } = await identities();
    const before = protectionsInUse();
    const random = seededRandom(45);
    const far = new Map<number, Party>();
    const begin = ({ stream }: SecureStream, onOver: (party: Party) => void): Party =>
      new Party(stream, random, onOver);
    let open = 0;
    const acceptor = new TlsAcceptor();
    const listener = listenTcp({ ip: "127.0.0.1", port: 0 }, (socket) => {
      const { port } = socket.remote;
      const onDone = (result: SecureStream | CodedError): void => {
        if (result instanceof CodedError) return; // the client has given up
        open++;
        far.set(
          port,
          begin(result, () => open--),
        );
      };
      acceptor.accept({ socket, identity: server, clock, timeoutMs, onDone });
    });
    const session = async (): Promise<{ near: Party; port: number } | undefined> => {
      const socket = await connectTcp({ ip: "127.0.0.1", port: listener.port, timeoutMs, clock });
      const { port } = socket.local;
      return new Promise((resolve, reject) => {
        const onDone = (result: SecureStream | CodedError): void => {
          clearTimeout(givesUp);
          if (result instanceof CodedError) reject(result);
          else begin(result, (near) => resolve({ near, port }));
        };
        const cancel = handshakeAsClient({ socket, identity: client, clock, timeoutMs, onDone });
        const giveUp = (): void => {
          cancel();
          resolve(undefined);
        };
        const givesUp = random.below(6) === 0 ? setTimeout(giveUp, random.below(10)) : undefined;
      });
    };
    const pairs: { near: Party; port: number }[] = [];
    for (let begun = 0; begun < SESSIONS; begun += AT_A_TIME) {
      const ended = await Promise.all(Array.from({ length: AT_A_TIME }, session));
      pairs.push(...ended.filter((pair) => pair !== undefined));
    }
    listener.stop();
    await until(() => open + acceptor.size === 0);
    assert.equal(protectionsInUse(), before);
    let whole = 0;
    for (const { near, port } of pairs) {
      const other = far.get(port);
      assert.ok(near.right && other?.right !== false);
      if (near.leaving !== "last" || other?.leaving !== "last") continue;
      whole++;
      assert.deepEqual([near.received, other.received, near.ended, other.ended], [other.total, near.total, true, true]);
    }
    assert.ok(whole > SESSIONS / 10 && pairs.length < SESSIONS, `${whole} of ${pairs.length} went to their end`);
  });
});

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 6000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.ok(condition());
}
