import { readSync, writeSync } from "node:fs";
import koffi from "koffi";
import { checkCall, lastErrno, libc } from "./libc.ts";

/**
 * Waits for descriptors that libuv refuses to watch (SOCK_SEQPACKET), on one thread of libuv's pool for all of them together:
 * one `poll(2)` at a time runs there, with an eventfd that wakes it when the set changes. Nothing runs there while nobody waits.
 */

/** Most descriptors watched at once; one more is refused with `LINUX_SYSCALL`. */
const MAX_WATCHED = 1024;

const POLLIN = 1;
const EINTR = 4;
const POLLFD_BYTES = 8;
const pollCall = libc.func("int poll(void *fds, unsigned long nfds, int timeout)");
const eventfdCall = libc.func("int eventfd(unsigned int initval, int flags)");
const EFD_CLOEXEC = 0x8_0000;
const EFD_NONBLOCK = 0x800;

interface Waiter {
  readonly fd: number;
  readonly ready: () => void;
}

const waiters = new Set<Waiter>();
const table = koffi.alloc("uint8_t", (MAX_WATCHED + 1) * POLLFD_BYTES) as bigint; // koffi types it as any
const tableView = Buffer.from(koffi.view(table, (MAX_WATCHED + 1) * POLLFD_BYTES));
let wakeFd: number | undefined;
let running = false;

/**
 * Calls `ready` once when `fd` can be read, or has been hung up. The returned function takes the wish back; take it back before
 * the descriptor is closed. Calls back in a turn of its own, never from within this function.
 */
export function whenReadable(fd: number, ready: () => void): () => void {
  if (waiters.size >= MAX_WATCHED) throw new RangeError(`more than ${MAX_WATCHED} descriptors are watched`);
  const waiter: Waiter = { fd, ready };
  waiters.add(waiter);
  if (running) wake();
  else run();
  return () => {
    if (waiters.delete(waiter) && running) wake();
  };
}

function run(): void {
  wakeFd ??= openWakeFd();
  const watched = [...waiters];
  writeEntry(0, wakeFd);
  for (const [i, { fd }] of watched.entries()) writeEntry(i + 1, fd);
  running = true;
  pollCall.async(table, watched.length + 1, -1, (error: unknown, result: number) => {
    running = false;
    if (error !== null && error !== undefined) throw error;
    if (result < 0 && lastErrno().errno !== EINTR) checkCall("poll", result);
    if (result > 0) settle(watched);
    if (waiters.size > 0 && !running) run();
  });
}

function settle(watched: readonly Waiter[]): void {
  if (readEvents(0) !== 0) drainWakeFd();
  const ready = watched.filter((_, i) => readEvents(i + 1) !== 0);
  for (const waiter of ready) if (waiters.delete(waiter)) waiter.ready();
}

function writeEntry(index: number, fd: number): void {
  tableView.writeInt32LE(fd, index * POLLFD_BYTES);
  tableView.writeInt16LE(POLLIN, index * POLLFD_BYTES + 4);
  tableView.writeInt16LE(0, index * POLLFD_BYTES + 6);
}

function readEvents(index: number): number {
  return tableView.readInt16LE(index * POLLFD_BYTES + 6);
}

function openWakeFd(): number {
  const fd = checkCall("eventfd", eventfdCall(0, EFD_CLOEXEC | EFD_NONBLOCK));
  process.once("exit", wake); // the pool's threads are joined at exit: a poll without end would hold the process
  return fd;
}

const one = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]);

function wake(): void {
  if (wakeFd !== undefined) writeSync(wakeFd, one);
}

function drainWakeFd(): void {
  if (wakeFd !== undefined) readSync(wakeFd, Buffer.alloc(8));
}
