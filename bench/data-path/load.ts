/**
 * A load generator, run inside a client's namespace: sockets and epoll by system calls, so that it costs little and wakes up when
 * it is due (Node's timers are good to a millisecond). Requests are `GET /`; the answer of 16 bytes is known to fit one read.
 *
 *     load.ts rate IP PORT CONNECTIONS PER_SECOND SECONDS    one JSON line: latency in µs, from when each request was due
 *     load.ts beats IP PORT CONNECTIONS PER_SECOND BEAT_MS   the same without end, a line each beat
 *     load.ts dials IP PORT PER_SECOND BEAT_MS               so for new connections, one at a time: until the answer to its request
 *     load.ts hold IP PORT CONNECTIONS                       one JSON line once each was served; holds them until stdin ends
 *     load.ts trickle IP PORT BYTES_PER_SECOND               reads /big slowly; a JSON line once it has stalled; until stdin ends
 */
import koffi from "koffi";

const libc = koffi.load("libc.so.6");
const socket = libc.func("int socket(int, int, int)");
const connect = libc.func("int connect(int, uint8_t *, int)");
const setsockopt = libc.func("int setsockopt(int, int, int, int *, int)");
const send = libc.func("long send(int, uint8_t *, unsigned long, int)");
const receive = libc.func("long recv(int, uint8_t *, unsigned long, int)");
const close = libc.func("int close(int)");
const epollCreate = libc.func("int epoll_create1(int)");
const epollControl = libc.func("int epoll_ctl(int, int, int, uint8_t *)");
const epollWait = libc.func("int epoll_pwait2(int, _Out_ uint8_t *, int, int64_t *, void *)");
const prctl = libc.func("int prctl(int, unsigned long)");

const PR_SET_TIMERSLACK = 29;
const [AF_INET, SOCK_STREAM, SOCK_CLOEXEC] = [2, 1, 0o2000000];
const [IPPROTO_TCP, TCP_NODELAY, MSG_DONTWAIT, MSG_NOSIGNAL] = [6, 1, 0x40, 0x4000];
const [SOL_SOCKET, SO_RCVBUF] = [1, 8];
const [EPOLLIN, EPOLL_CTL_ADD, EVENT_BYTES, MOST_EVENTS] = [1, 1, 12, 1024];
/** At the end, answers that are still due are waited for this long. */
const PATIENCE_MS = 5_000;

const [kind = "", ip = "", port = "", ...numbers] = process.argv.slice(2);
const [first = 0, second = 0, third = 0] = numbers.map(Number);
const textOf = (path: string): Buffer => Buffer.from(`GET ${path} HTTP/1.1\r\nHost: bench\r\n\r\n`);
const small = textOf("/");
const answer = Buffer.alloc(1 << 16);
const events = Buffer.alloc(EVENT_BYTES * MOST_EVENTS);
const epoll = epollCreate(0) as number;
const nowUs = (): number => performance.now() * 1000;

/** A connected socket; the call blocks until it is there. */
function dial(receiveBuffer = 0): number {
  const fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) as number;
  const where = Buffer.alloc(16);
  where.writeUInt16LE(AF_INET, 0);
  where.writeUInt16BE(Number(port), 2);
  where.set(ip.split(".").map(Number), 4);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, [1], 4);
  if (receiveBuffer > 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, [receiveBuffer], 4);
  if (fd < 0 || connect(fd, where, where.length) !== 0) throw new Error(`cannot connect to ${ip}:${port}`);
  return fd;
}

function say(what: object): void {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

/** Waits for readable sockets at most so long; calls `onReadable` with the index of each. */
function wait(timeoutUs: number, onReadable: (index: number) => void): void {
  const whole = Math.floor(timeoutUs / 1e6);
  const count = epollWait(
    epoll,
    events,
    MOST_EVENTS,
    [whole, Math.round((timeoutUs - whole * 1e6) * 1000)],
    null,
  ) as number;
  for (let i = 0; i < count; i++) onReadable(events.readUInt32LE(i * EVENT_BYTES + 4));
}

function watch(fd: number, index: number): void {
  const event = Buffer.alloc(EVENT_BYTES);
  event.writeUInt32LE(EPOLLIN, 0);
  event.writeUInt32LE(index, 4);
  epollControl(epoll, EPOLL_CTL_ADD, fd, event);
}

/** How many requests, and how often; told of each answer with its latency, from when the request was due. */
interface Pace {
  readonly perSecond: number;
  readonly total: number;
  readonly onAnswer: (latencyUs: number) => void;
}

/** One request each `1 / perSecond`, on the next free connection; when none is free it waits, and the wait counts. */
function request(connections: number, { perSecond, total, onAnswer }: Pace): void {
  const fds = Array.from({ length: connections }, () => dial());
  fds.forEach(watch);
  const free = fds.map((_, index) => index);
  const dueUs = new Float64Array(connections);
  const count = { sent: 0, got: 0 };
  const startUs = nowUs() + 10_000;
  const dueAt = (number: number): number => startUs + (number * 1e6) / perSecond;
  const onReadable = (index: number): void => {
    if (Number(receive(fds[index], answer, answer.length, MSG_DONTWAIT)) <= 0)
      throw new Error("a connection was closed");
    count.got++;
    onAnswer(nowUs() - (dueUs[index] ?? 0));
    free.push(index);
  };
  const endUs = dueAt(total) + PATIENCE_MS * 1000;
  while (count.got < total && nowUs() < endUs) {
    while (count.sent < total && free.length > 0 && dueAt(count.sent) <= nowUs()) {
      const index = free.shift() ?? 0;
      dueUs[index] = dueAt(count.sent++);
      send(fds[index], small, small.length, MSG_NOSIGNAL);
    }
    const canSend = count.sent < total && free.length > 0;
    wait(canSend ? Math.max(0, dueAt(count.sent) - nowUs()) : 100_000, onReadable);
  }
}

/**
 * One connection after the other for ever, `perSecond` at most: the latency of connecting and of one request. What comes late delays
 * the next, so that a pause is in one figure and not in all that follow.
 */
function dials(perSecond: number, onAnswer: (latencyUs: number) => void): void {
  for (let dueUs = nowUs(); ; dueUs = Math.max(dueUs + 1e6 / perSecond, nowUs())) {
    for (let restUs = dueUs - nowUs(); restUs > 0; restUs = dueUs - nowUs()) wait(restUs, () => undefined);
    const fd = dial();
    send(fd, small, small.length, MSG_NOSIGNAL);
    if (Number(receive(fd, answer, answer.length, 0)) <= 0) throw new Error("a connection was closed");
    close(fd);
    onAnswer(nowUs() - dueUs);
  }
}

function rate(connections: number, perSecond: number, seconds: number): void {
  const total = Math.round(perSecond * seconds);
  const warm = Math.min(total >> 2, perSecond);
  const latencies: number[] = [];
  let got = 0;
  const startUs = nowUs() + 10_000;
  const onAnswer = (latencyUs: number): void => {
    if (++got > warm) latencies.push(latencyUs);
  };
  request(connections, { perSecond, total, onAnswer });
  say({ requests: got, missing: total - got, seconds: (nowUs() - startUs) / 1e6, ...percentiles(latencies) });
}

/** Takes latencies, and says a line for each beat. */
function beats(beatMs: number): (latencyUs: number) => void {
  let latencies: number[] = [];
  let endUs = nowUs() + beatMs * 1000;
  return (latencyUs) => {
    latencies.push(latencyUs);
    if (nowUs() < endUs) return;
    say(percentiles(latencies));
    latencies = [];
    endUs = nowUs() + beatMs * 1000;
  };
}

function percentiles(latencies: readonly number[]): { p50: number; p99: number; p999: number; max: number } {
  const sorted = latencies.toSorted((a, b) => a - b);
  const at = (share: number): number =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
  return { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1) };
}

function untilStdinEnds(): void {
  process.stdin.once("end", () => process.exit(0)).resume();
}

function hold(connections: number): void {
  for (let index = 0; index < connections; index++) {
    const fd = dial();
    send(fd, small, small.length, MSG_NOSIGNAL);
    if (Number(receive(fd, answer, answer.length, 0)) <= 0) throw new Error(`connection ${index} was closed`);
  }
  say({ connections });
  untilStdinEnds();
}

function trickle(bytesPerSecond: number): void {
  const fd = dial(64 * 1024);
  const big = textOf("/big");
  send(fd, big, big.length, MSG_NOSIGNAL);
  const each = Math.ceil(bytesPerSecond / 10);
  let total = 0;
  const read = (): void => {
    total += Math.max(0, Number(receive(fd, answer, Math.min(each, answer.length), MSG_DONTWAIT)));
  };
  setInterval(read, 100);
  setTimeout(() => say({ total }), 1000);
  untilStdinEnds();
}

prctl(PR_SET_TIMERSLACK, 1);
if (kind === "rate") rate(first, second, third);
else if (kind === "beats") request(first, { perSecond: second, total: Infinity, onAnswer: beats(third) });
else if (kind === "dials") dials(first, beats(second));
else if (kind === "hold") hold(first);
else if (kind === "trickle") trickle(first);
else throw new Error(`what is ${kind}?`);
