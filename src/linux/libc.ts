import koffi from "koffi";
import { defineErrors, type CodedError } from "#base/errors";

/**
 * The C library, loaded once. Only this folder calls it.
 */
export const libc = koffi.load("libc.so.6");

/** Failures of the seam to the kernel. */
export const linuxError = defineErrors("linux", {
  LINUX_SYSCALL: {
    when: "a system call failed",
    hint: "the message names the call and the kernel's reason; most need root (CAP_NET_ADMIN, CAP_SYS_ADMIN)",
  },
  LINUX_NETNS_GONE: {
    when: "a network namespace could not be opened or entered",
    hint: "the pod or node it belonged to has ended; nothing is to be done when that was intended",
  },
  LINUX_WRONG_SHAPE: {
    when: "the running Node's socket internals differ from the version this release is made for",
    hint: "run Veil with the Node version it ships (bin/veil does)",
  },
  LINUX_CRYPTO: {
    when: "OpenSSL refused to protect a TLS record",
    hint: "a defect, or no memory is left: please report it with the message",
  },
  LINUX_SOCKET: {
    when: "a connected socket failed: reset by the peer, or broken otherwise",
    hint: "the message carries the kernel's word for it; look at the other end of the connection",
  },
  LINUX_CONNECT_REFUSED: {
    when: "nobody listens at the address that was dialled",
    hint: "check that the application listens on that port and on all addresses of its pod",
  },
  LINUX_CONNECT_TIMEOUT: {
    when: "no answer came from the address that was dialled",
    hint: "a firewall or NetworkPolicy may drop the packets (HBONE needs tcp/15008 between pods), or the pod is gone",
  },
  LINUX_CONNECT_UNREACHABLE: {
    when: "there is no route to the address that was dialled",
    hint: "check the routes of the pod's and the node's namespaces",
  },
  LINUX_CONNECT_NO_PORTS: {
    when: "no local port is free for a new connection to that address",
    hint: "too many connections to one destination are open or in TIME_WAIT; widen net.ipv4.ip_local_port_range",
  },
  LINUX_NO_FILES: {
    when: "the process has no file descriptor left",
    hint: "raise the limit of open files (ulimit -n, LimitNOFILE) of the process",
  },
  LINUX_CONNECT_ABORTED: { when: "whoever dialled gave up", hint: "none: the cause says who" },
  LINUX_PORT_IN_USE: {
    when: "a port that was to be listened on is taken, or may not be used",
    hint: "find who listens there (ss -ltnp, in the namespace that the message names) or choose another port",
  },
  LINUX_SEQPACKET_PATH: {
    when: "a path cannot name a Unix socket",
    hint: "use a path of at most 107 bytes",
  },
  LINUX_SEQPACKET_IN_USE: {
    when: "another process already listens at a Unix socket",
    hint: "stop the other process, or give this one another path",
  },
  LINUX_SEQPACKET_CONNECT: {
    when: "nobody accepts connections at a Unix socket",
    hint: "start the process that listens there (for the ZDS socket: the agent of this node)",
  },
  LINUX_SEQPACKET_CLOSED: { when: "a packet is sent to a peer that is gone", hint: "none: the sender connects again" },
  LINUX_SEQPACKET_FULL: {
    when: "a peer does not read its packets",
    hint: "look at the log of the peer; restart it when it hangs",
  },
  LINUX_SEQPACKET_SIZE: {
    when: "a message does not fit into one packet",
    hint: "a defect of the sender, or a name of more than a kilobyte",
  },
  LINUX_SEQPACKET_TRUNCATED: {
    when: "a packet is longer than a message may be, or carries too many descriptors",
    hint: "the peer does not speak this protocol: check which program is connected to the socket",
  },
  LINUX_COMMAND: {
    when: "a system program such as nft or ip failed",
    hint: "the message carries the program's own words; check that the package is installed and that you are root",
  },
});

const strerror = libc.func("const char *strerror(int)");

/** `errno` of the last libc call on this thread, with its text. */
export function lastErrno(): { errno: number; text: string } {
  const errno = koffi.errno();
  const text: unknown = strerror(errno);
  return { errno, text: String(text) };
}

/** Throws `LINUX_SYSCALL` for `call` when `result` is negative; returns it otherwise. */
export function checkCall(call: string, result: number, details: Record<string, unknown> = {}): number {
  if (result >= 0) return result;
  const { errno, text } = lastErrno();
  throw linuxError("LINUX_SYSCALL", `${call} failed: ${text}`, { details: { ...details, call, errno } });
}

/** A failure of a connected socket. `reason` is the kernel's or OpenSSL's word. */
export function socketError(call: string, reason: string, cause?: unknown): CodedError {
  return linuxError("LINUX_SOCKET", `${call} failed: ${reason}`, { details: { call, reason }, cause });
}
