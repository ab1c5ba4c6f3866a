import type { CodedError } from "#base/errors";
import type { SocketAddress } from "./socket-options.ts";
import { linuxError } from "./libc.ts";

/** What connect(2) failed with, by the numbers of Linux. */
export const ERRNO_NAMES: Readonly<Record<number, string>> = {
  11: "ETIMEDOUT", // the send timeout passed
  99: "EADDRNOTAVAIL",
  101: "ENETUNREACH",
  110: "ETIMEDOUT",
  111: "ECONNREFUSED",
  113: "EHOSTUNREACH",
  115: "ETIMEDOUT",
};

/** The error of a failed connect. `name` is Node's and libc's word for it, `reason` what is said of it. */
export function connectError(name: string, to: SocketAddress, reason: string): CodedError {
  const message = `cannot connect to ${to.ip} port ${to.port}: ${reason}`;
  const options = { details: { ip: to.ip, port: to.port, reason: name } };
  switch (name) {
    case "ECONNREFUSED":
    case "ECONNRESET":
      return linuxError("LINUX_CONNECT_REFUSED", message, options);
    case "ETIMEDOUT":
      return linuxError("LINUX_CONNECT_TIMEOUT", message, options);
    case "EADDRNOTAVAIL":
    case "EADDRINUSE":
      return linuxError("LINUX_CONNECT_NO_PORTS", message, options);
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EACCES":
    case "EPERM":
      return linuxError("LINUX_CONNECT_UNREACHABLE", message, options);
    default:
      return linuxError("LINUX_SYSCALL", message, options);
  }
}
