/**
 * Datagrams with numbers for tests: runs in each place of a mesh, sends to all others at a rate, and counts what comes.
 *
 *     flows.ts --self 10.244.1.5 --peers 10.244.2.5,10.244.3.5 --rate 500 --bytes 200,1200
 *
 * Takes commands by line: `stop` ends sending, `report` prints one line of JSON ({@link FlowReport}). Ends with its input. `--rate 0`
 * sends as fast as it can. A datagram: number (8 bytes), time in microseconds of the machine's monotonic clock (8 bytes), filling.
 */
import { createSocket } from "node:dgram";
import { existsSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    self: { type: "string", default: "" },
    peers: { type: "string", default: "" },
    port: { type: "string", default: "9100" },
    rate: { type: "string", default: "500" },
    bytes: { type: "string", default: "200,1200" },
  },
});

/** What came from one place. Delays in milliseconds. */
interface Received {
  distinct: number;
  duplicates: number;
  reordered: number;
  highest: number;
  longestGapMs: number;
}

const HEADER_BYTES = 16;
const TURN_MS = 4;
/** Tenths of a millisecond; the last cell is for all above. */
const DELAY_CELLS = 20_000;
/** Most datagrams that are told apart from one place. */
const MOST = 1 << 24;

const port = Number(values.port);
const peers = values.peers.split(",").filter((ip) => ip !== "");
const [least = 200, most = least] = values.bytes.split(",").map(Number);
const rate = Number(values.rate);

const sent: Record<string, number> = Object.fromEntries(peers.map((ip) => [ip, 0]));
const failed: Record<string, number> = {};
const received = new Map<string, Received & { seen: Uint8Array; lastUs: number }>();
const delays = new Uint32Array(DELAY_CELLS);

const socket = createSocket({
  type: values.self.includes(":") ? "udp6" : "udp4",
  lookup: (ip, _options, done) => done(null, ip, ip.includes(":") ? 6 : 4),
});
const micros = (): number => Number(process.hrtime.bigint() / 1000n);

socket.on("message", (bytes, { address }) => {
  if (bytes.length < HEADER_BYTES) return;
  const number = Number(bytes.readBigUInt64LE(0));
  const nowUs = micros();
  const from = received.get(address) ?? {
    distinct: 0,
    duplicates: 0,
    reordered: 0,
    highest: -1,
    longestGapMs: 0,
    seen: new Uint8Array(MOST / 8),
    lastUs: nowUs,
  };
  received.set(address, from);
  const bit = 1 << (number & 7);
  if (((from.seen[number >> 3] ?? 0) & bit) !== 0) from.duplicates++;
  else from.distinct++;
  from.seen[number >> 3] = (from.seen[number >> 3] ?? 0) | bit;
  if (number < from.highest) from.reordered++;
  from.highest = Math.max(from.highest, number);
  from.longestGapMs = Math.max(from.longestGapMs, (nowUs - from.lastUs) / 1000);
  from.lastUs = nowUs;
  const cell = Math.floor((nowUs - Number(bytes.readBigUInt64LE(8))) / 100);
  const at = Math.min(DELAY_CELLS - 1, Math.max(0, cell));
  delays[at] = (delays[at] ?? 0) + 1;
});

function send(ip: string): void {
  const number = sent[ip] ?? 0;
  if (number >= MOST) return;
  const bytes = Buffer.alloc(least + ((number * 37) % (most - least + 1)));
  bytes.writeBigUInt64LE(BigInt(number), 0);
  bytes.writeBigUInt64LE(process.hrtime.bigint() / 1000n, 8);
  sent[ip] = number + 1;
  socket.send(bytes, port, ip, (error) => {
    if (error === null) return;
    const code = "code" in error ? String(error.code) : error.message;
    failed[code] = (failed[code] ?? 0) + 1;
  });
}

let sending = true;
const startedMs = performance.now();

/** What is due by now, at most a tenth of a second of it at once: a machine that stood still does not make a flood. */
let due = 0;
let lastMs = startedMs;
function turn(): void {
  if (!sending) return;
  const nowMs = performance.now();
  due = Math.min(due + ((nowMs - lastMs) * rate) / 1000, Math.max(1, rate / 10));
  lastMs = nowMs;
  const count = rate === 0 ? 50 : Math.floor(due);
  due -= rate === 0 ? 0 : count;
  for (let each = 0; each < count; each++) for (const ip of peers) send(ip);
  if (rate === 0) setImmediate(turn);
  else setTimeout(turn, TURN_MS);
}

function quantile(share: number): number {
  const total = delays.reduce((sum, count) => sum + count, 0);
  let sum = 0;
  for (let at = 0; at < delays.length; at++) {
    sum += delays[at] ?? 0;
    if (sum >= total * share) return at / 10;
  }
  return 0;
}

/** Datagrams for which this socket had no room: they came, and the machine was too slow to take them. */
function overflow(): number {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  // A pod's own /proc does not know whoever was brought in from outside: its first process has the same network.
  const folder = existsSync("/proc/self/net") ? "/proc/self/net" : "/proc/1/net";
  const lines = ["udp", "udp6"].flatMap((file) => readFileSync(`${folder}/${file}`, "utf8").split("\n"));
  return lines
    .filter((line) => line.trim().split(/\s+/)[1]?.endsWith(`:${hex}`))
    .reduce((sum, line) => sum + Number(line.trim().split(/\s+/).at(-1)), 0);
}

function report(): object {
  const from = [...received].map(([ip, { seen: _seen, lastUs: _lastUs, ...rest }]) => [ip, rest] as const);
  return {
    seconds: (performance.now() - startedMs) / 1000,
    sent,
    failed,
    received: Object.fromEntries(from),
    overflow: overflow(),
    delayMs: { p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999) },
  };
}

socket.bind(port, values.self, () => {
  socket.setRecvBufferSize(4 << 20);
  process.stdout.write("ready\n");
  createInterface({ input: process.stdin })
    .on("line", (line) => {
      if (line === "start") turn();
      if (line === "stop") sending = false;
      if (line === "report") process.stdout.write(`${JSON.stringify(report())}\n`);
    })
    .on("close", () => process.exit(0));
});
