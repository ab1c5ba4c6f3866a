import { closeSync, fstatSync, openSync } from "node:fs";
import { libc, checkCall, linuxError } from "./libc.ts";

const CLONE_NEWNET = 0x4000_0000;
const setnsCall = libc.func("int setns(int fd, int nstype)");

/** A network namespace, held open by a descriptor. Two handles are the same namespace when `key` is equal. */
export interface Netns extends Disposable {
  readonly fd: number;
  /** `device:inode` of the namespace. */
  readonly key: string;
}

/** Opens a namespace by path (`/run/netns/NAME`, `/proc/PID/ns/net`). The caller disposes it. Throws `LINUX_NETNS_GONE`. */
export function openNetns(path: string): Netns {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (cause) {
    throw linuxError("LINUX_NETNS_GONE", `cannot open network namespace ${path}`, { cause, details: { path } });
  }
  return adoptNetns(fd);
}

/** Takes over a descriptor of a namespace, for example one received over a socket. The caller disposes it. */
export function adoptNetns(fd: number): Netns {
  const { dev, ino } = fstatSync(fd);
  return {
    fd,
    key: `${dev}:${ino}`,
    [Symbol.dispose]: () => {
      closeSync(fd);
    },
  };
}

/** The namespace that this thread was started in. Opened once per thread and kept. */
const home = openNetns("/proc/thread-self/ns/net");

/**
 * Runs `body` with this thread inside `netns`, then returns to where it was, also when `body` throws.
 * `body` must be synchronous: whatever it starts and finishes later would run outside again.
 * Throws `LINUX_NETNS_GONE` when the namespace cannot be entered. There and back costs about 6 µs.
 */
export function inNetns<T>(netns: Netns, body: () => T extends Promise<unknown> ? never : T): T {
  if (setnsCall(netns.fd, CLONE_NEWNET) < 0) {
    throw linuxError("LINUX_NETNS_GONE", `cannot enter network namespace ${netns.key}`, {
      details: { netns: netns.key },
    });
  }
  try {
    return body();
  } finally {
    checkCall("setns back", setnsCall(home.fd, CLONE_NEWNET));
  }
}
