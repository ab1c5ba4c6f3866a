import type { IpAddress } from "#base/ip";
import { inNetns, type Netns } from "./netns.ts";
import {
  bindAndListen,
  canBind,
  closeFd,
  makeTcpSocket,
  readLocalAddress,
  type SocketAddress,
} from "./socket-options.ts";

const BACKLOG = 511;

/** `details.errno` of `LINUX_PORT_IN_USE` when it is just that, and not another reason why an address cannot be bound. */
export const ADDRESS_IN_USE = 98;

/**
 * A TCP socket that listens in the namespace of this thread, as a bare descriptor: to be given to another process, which
 * serves it. Nothing accepts from it here. `port` 0 takes a free one. The caller disposes it. Throws `LINUX_PORT_IN_USE`.
 */
export function openListener(ip: IpAddress, port: number): Disposable & { readonly fd: number; readonly port: number } {
  const fd = makeTcpSocket({ v6: ip.includes(":") });
  try {
    bindAndListen(fd, { ip, port }, { reusePort: false, backlog: BACKLOG });
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return { fd, port: readLocalAddress(fd)?.port ?? port, [Symbol.dispose]: () => closeFd(fd) };
}

/**
 * Whether a socket listens in a namespace (undefined: this thread's own) on a port that it shares (`SO_REUSEPORT`) with whoever is the same user. False when nobody
 * listens there, or somebody who shares nothing. Throws `LINUX_NETNS_GONE`, `LINUX_NO_FILES`.
 */
export function isPortShared(netns: Netns | undefined, at: SocketAddress): boolean {
  const look = (): boolean => !canBind(at, { reusePort: false }) && canBind(at, { reusePort: true });
  return netns === undefined ? look() : inNetns(netns, look);
}
