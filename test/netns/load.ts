/**
 * A load for tests: runs inside pods, both ends check every byte. Prints one line of JSON at the end (SIGTERM, or `--seconds`).
 *
 *     load.ts server --port 9000
 *     load.ts client --target HOST:PORT --long 50 --rate 100 --seconds 30     50 long connections, 100 new ones a second
 *     load.ts client --target HOST:PORT --closed 8 --seconds 3                as many new ones as 8 at a time can
 *     load.ts client --target HOST:PORT --bulk 2 --idle 100                   2 long ones of 2 MB/s, 100 that say nothing
 *     load.ts client … --watched                                              tells how it goes five times a second; ends with its input
 *
 * A connection begins with 12 bytes: kind (0 long, 1 short), seed, length of the answer. Then the client sends the bytes that its
 * seed makes. Long: the server sends the same bytes back, inverted, as they come. Short: the client half-closes; the server checks,
 * answers with `length` bytes of the next seed, and closes.
 */
import { connect, createServer, type Socket } from "node:net";
import { parseArgs } from "node:util";

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    port: { type: "string", default: "9000" },
    target: { type: "string", default: "" },
    long: { type: "string", default: "0" },
    rate: { type: "string", default: "0" },
    closed: { type: "string", default: "0" },
    bulk: { type: "string", default: "0" },
    idle: { type: "string", default: "0" },
    seconds: { type: "string", default: "3600" },
    watched: { type: "boolean", default: false },
  },
});

/** What happened; printed at the end. */
const stats = {
  /** `stalled`: alive, and waiting for bytes for more than 10 s; `waitingMs`: the longest that one waits now. */
  long: { opened: 0, alive: 0, bytes: 0, stalled: 0, waitingMs: 0 },
  short: { tried: 0, done: 0 },
  failures: {} as Record<string, number>,
  firstFailures: [] as string[],
  /** Milliseconds since the start: first and last failure, and the last success. */
  failedFromMs: -1,
  failedToMs: -1,
  lastDoneMs: -1,
  corrupt: 0,
  latenciesMs: [] as number[],
};

const startedMs = performance.now();
const sinceStart = (): number => Math.round(performance.now() - startedMs);

function failed(kind: string, why: string): void {
  if (stats.failedFromMs < 0) stats.failedFromMs = sinceStart();
  stats.failedToMs = sinceStart();
  const key = `${kind}:${why}`;
  stats.failures[key] = (stats.failures[key] ?? 0) + 1;
  if (stats.firstFailures.length < 20) stats.firstFailures.push(`${stats.failedToMs} ms ${key}`);
}

/** Repeatable bytes (xorshift32): the n-th byte depends on the seed alone. */
class Bytes {
  #state: number;
  #word = 0;
  #left = 0;

  constructor(seed: number) {
    this.#state = seed | 1;
  }

  write(into: Uint8Array): Uint8Array {
    for (let i = 0; i < into.length; i++) {
      if (this.#left === 0) {
        let x = this.#state;
        x ^= x << 13;
        x ^= x >>> 17;
        x ^= x << 5;
        this.#state = x;
        this.#word = x;
        this.#left = 4;
      }
      into[i] = this.#word & 0xff;
      this.#word >>>= 8;
      this.#left--;
    }
    return into;
  }

  take(count: number): Uint8Array {
    return this.write(new Uint8Array(count));
  }
}

const invert = (bytes: Uint8Array): Uint8Array => bytes.map((byte) => byte ^ 0xff);
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

function serve(port: number): void {
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    let head = Buffer.alloc(0);
    let kind = -1;
    let seed = 0;
    let length = 0;
    let expected = new Bytes(0);
    let bad = false;
    socket.on("data", (chunk: Buffer) => {
      let body = chunk;
      if (kind < 0) {
        head = Buffer.concat([head, chunk]);
        if (head.length < 12) return;
        kind = head.readUInt32LE(0);
        seed = head.readUInt32LE(4);
        length = head.readUInt32LE(8);
        expected = new Bytes(seed);
        body = head.subarray(12);
      }
      if (!same(body, expected.take(body.length))) bad = true;
      if (bad) {
        stats.corrupt++;
        socket.destroy();
      } else if (kind === 0) {
        stats.long.bytes += body.length;
        if (!socket.write(invert(body))) {
          socket.pause();
          socket.once("drain", () => socket.resume());
        }
      }
    });
    socket.on("end", () => {
      if (kind === 1 && !bad) {
        stats.short.done++;
        socket.end(new Bytes(seed + 1).take(length));
      } else socket.end();
    });
    socket.on("error", (error: NodeJS.ErrnoException) => failed("server", error.code ?? "error"));
  });
  server.listen(port, "0.0.0.0", 1024, () => process.stdout.write('{"listening":true}\n'));
}

const [host = "", portText = ""] = values.target.split(":");
let over = false;
const open = new Set<Socket>();
/** Of each long connection: bytes that have not come back yet, and when the last ones came. */
const owed = new Map<Socket, { bytes: number; sinceMs: number }>();
const STALLED_MS = 10_000;
/** Short connections of `--rate` that are open at once: a machine that is slower than the rate gets what it can do. */
const MOST_AT_ONCE = 100;
let nextSeed = 1;

function header(kind: number, seed: number, length: number): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt32LE(kind, 0);
  head.writeUInt32LE(seed, 4);
  head.writeUInt32LE(length, 8);
  return head;
}

const SMALL = (seed: number): number => 200 + ((seed * 31 + stats.long.bytes) % 3800);
const BULK = (): number => 40_000;
const NOTHING = (): number => 0;

/** A long connection: `size` bytes (200 to 4,000) every 20 ms, each byte checked when it comes back. */
function long(size: (seed: number) => number = SMALL): void {
  const seed = nextSeed++ * 7919;
  const socket = connect({ host, port: Number(portText), noDelay: true });
  const sent = new Bytes(seed);
  const expected = new Bytes(seed);
  open.add(socket);
  const debt = { bytes: 0, sinceMs: sinceStart() };
  let timer: NodeJS.Timeout | undefined;
  socket.once("connect", () => {
    owed.set(socket, debt);
    stats.long.opened++;
    stats.long.alive++;
    socket.write(header(0, seed, 0));
    timer = setInterval(() => {
      if (socket.writableLength >= 65_536) return;
      const bytes = size(seed);
      debt.bytes += bytes;
      socket.write(sent.take(bytes));
    }, 20);
  });
  socket.on("data", (chunk: Buffer) => {
    stats.long.bytes += chunk.length;
    debt.bytes -= chunk.length;
    debt.sinceMs = sinceStart();
    if (same(chunk, invert(expected.take(chunk.length)))) return;
    stats.corrupt++;
    failed("long", "corrupt");
    socket.destroy();
  });
  socket.on("error", (error: NodeJS.ErrnoException) => failed("long", error.code ?? "error"));
  socket.on("close", () => {
    clearInterval(timer);
    open.delete(socket);
    owed.delete(socket);
    if (timer !== undefined) stats.long.alive--;
    if (!over) failed("long", "closed");
  });
}

/** A short connection; `then` is called when it has ended, well or badly. */
function short(then: () => void): void {
  const seed = nextSeed++ * 7919;
  const length = 100 + (seed % 20_000);
  const request = new Bytes(seed).take(50 + (seed % 9_000));
  const startMs = performance.now();
  const socket = connect({ host, port: Number(portText), noDelay: true, allowHalfOpen: true });
  const expected = new Bytes(seed + 1).take(length);
  let received = 0;
  let error = "";
  stats.short.tried++;
  open.add(socket);
  socket.setTimeout(30_000, () => {
    error = "timeout";
    socket.destroy();
  });
  socket.once("connect", () => socket.end(Buffer.concat([header(1, seed, length), request])));
  socket.on("data", (chunk: Buffer) => {
    if (!same(chunk, expected.subarray(received, received + chunk.length))) error = "corrupt";
    received += chunk.length;
  });
  socket.on("error", (cause: NodeJS.ErrnoException) => (error = cause.code ?? "error"));
  socket.on("close", () => {
    open.delete(socket);
    if (error === "" && received !== length && !over) error = received === 0 ? "empty" : "cut";
    if (error === "corrupt") stats.corrupt++;
    if (error === "") {
      stats.short.done++;
      stats.lastDoneMs = sinceStart();
    } else failed("short", error);
    if (stats.latenciesMs.length < 100_000) stats.latenciesMs.push(performance.now() - startMs);
    then();
  });
}

/** Notes how long connections have waited for bytes that they are owed. */
function look(): void {
  const waits = [...owed.values()].map(({ bytes, sinceMs }) => (bytes > 0 ? sinceStart() - sinceMs : 0));
  stats.long.stalled = waits.filter((ms) => ms > STALLED_MS).length;
  stats.long.waitingMs = Math.max(0, ...waits);
}

function progress(): void {
  look();
  const { latenciesMs: _, ...rest } = stats;
  process.stdout.write(`${JSON.stringify({ ...rest, elapsedMs: sinceStart() })}\n`);
}

function summary(): string {
  look();
  const sorted = stats.latenciesMs.toSorted((a, b) => a - b);
  const at = (share: number): number => Math.round((sorted[Math.floor(sorted.length * share)] ?? 0) * 100) / 100;
  const { latenciesMs: _, ...rest } = stats;
  return `${JSON.stringify({ ...rest, latencyMs: { p50: at(0.5), p99: at(0.99), max: at(0.9999) } })}\n`;
}

function finish(): void {
  if (over) return;
  over = true;
  process.stdout.write(summary(), () => process.exit(0));
}

process.on("SIGTERM", finish);
process.on("SIGINT", finish);
setTimeout(finish, Number(values.seconds) * 1000);
if (values.watched) {
  setInterval(progress, 200);
  process.stdin.on("end", finish).resume();
}

if (positionals[0] === "server") serve(Number(values.port));
else {
  for (let i = 0; i < Number(values.long); i++) long();
  for (let i = 0; i < Number(values.bulk); i++) long(BULK);
  for (let i = 0; i < Number(values.idle); i++) long(NOTHING);
  const again = (): void => {
    if (!over) short(again);
  };
  for (let i = 0; i < Number(values.closed); i++) again();
  const rate = Number(values.rate);
  if (rate > 0) {
    const startMs = performance.now();
    let started = 0;
    let ended = 0;
    setInterval(() => {
      const due = Math.floor(((performance.now() - startMs) / 1000) * rate);
      for (; started < due; started++) {
        if (stats.short.tried - ended < MOST_AT_ONCE) short(() => ended++);
      }
    }, 5);
  }
}
