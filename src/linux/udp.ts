import { createSocket, type Socket } from "node:dgram";
import { findIp, isV6, type IpAddress } from "#base/ip";
import { bindToDevice } from "./bind-device.ts";
import { inNetns, type Netns } from "./netns.ts";
import {
  bindDatagrams,
  checkAddress,
  closeFd,
  connectDatagrams,
  hasDatagram,
  makeUdpSocket,
  readLocalAddress,
  type SocketAddress,
} from "./socket-options.ts";

/** Where a UDP socket is made, and whom it is for. */
export interface UdpOptions {
  /** Undefined: this thread's own. */
  readonly netns?: Netns | undefined;
  readonly mark?: number | undefined;
  /** Name of the interface that all its packets leave by, and none come from another. */
  readonly device?: string | undefined;
  readonly ip: string;
  /** Of a listener 0 chooses one. */
  readonly port: number;
}

/** What a UDP socket tells. */
export interface UdpHandlers {
  /** A datagram; its bytes belong to the receiver. */
  readonly onMessage: (bytes: Buffer, from: SocketAddress) => void;
  /** The kernel reports a failure, for example that nobody listens at the other end. */
  readonly onError: (error: Error) => void;
}

/** A UDP socket that anybody may send to. */
export interface UdpListener {
  readonly port: number;
  /** Sends a datagram; what the kernel cannot take is lost, as datagrams are. */
  send(bytes: Uint8Array, to: SocketAddress): void;
  /**
   * Takes no new datagrams: those for its port go to another socket that shares it, if there is one. What waits in its queue still comes,
   * and it still sends.
   */
  retire(): void;
  /** True while datagrams wait in the queue. */
  readonly waiting: boolean;
  /** Twice is harmless. */
  close(): void;
}

/** A UDP socket towards one peer. */
export interface UdpConnection {
  send(bytes: Uint8Array): void;
  /** Twice is harmless. */
  close(): void;
}

/** Nobody sends from here: what a retired socket is connected to. */
const NOBODY_PORT = 9;
const LOOPBACK = { v4: "127.0.0.1", v6: "::1" } as const;

/**
 * Binds a UDP port, which other sockets of the same user may share. The caller closes it. Throws `LINUX_PORT_IN_USE`, `LINUX_NETNS_GONE`,
 * `LINUX_NO_FILES`, `LINUX_SYSCALL`.
 */
export function listenUdp(options: UdpOptions, handlers: UdpHandlers): UdpListener {
  const ip = checkAddress(options.ip);
  const fd = makeIn(options, ip, (made) => bindDatagrams(made, { ip, port: options.port }));
  const port = readLocalAddress(fd)?.port ?? options.port;
  const socket = adopt(fd, ip, handlers);
  let open = true;
  return {
    port,
    send: (bytes, to) => {
      if (open) socket.send(bytes, to.port, to.ip, () => {});
    },
    retire: () => {
      if (open) connectDatagrams(fd, { ip: checkAddress(isV6(ip) ? LOOPBACK.v6 : LOOPBACK.v4), port: NOBODY_PORT });
    },
    get waiting() {
      return open && hasDatagram(fd);
    },
    close: () => {
      if (!open) return;
      open = false;
      socket.close();
    },
  };
}

/** Makes a UDP socket that sends to one peer and hears nobody else. The caller closes it. Throws as {@link listenUdp} does. */
export function connectUdp(options: UdpOptions, handlers: UdpHandlers): UdpConnection {
  const ip = checkAddress(options.ip);
  const socket = adopt(
    makeIn(options, ip, () => {}),
    ip,
    handlers,
  );
  let open = true;
  const connected = new Promise<void>((resolve) => {
    socket.connect(options.port, ip, resolve);
  });
  return {
    send: (bytes) => {
      void connected.then(() => {
        if (open) socket.send(bytes, () => {});
      });
    },
    close: () => {
      if (!open) return;
      open = false;
      socket.close();
    },
  };
}

function makeIn({ netns, mark, device }: UdpOptions, ip: IpAddress, ready: (fd: number) => void): number {
  const make = (): number => {
    const fd = makeUdpSocket({ v6: isV6(ip), mark });
    try {
      if (device !== undefined) bindToDevice(fd, device);
      ready(fd);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
    return fd;
  };
  return netns === undefined ? make() : inNetns(netns, make);
}

/** Makes a socket object of a descriptor, which then belongs to it. */
function adopt(fd: number, ip: IpAddress, { onMessage, onError }: UdpHandlers): Socket {
  const family = isV6(ip) ? 6 : 4;
  const socket = createSocket({
    type: `udp${family}`,
    lookup: (address, _options, done) => done(null, address, family), // only addresses come here: nothing is looked up
  });
  socket.on("error", onError);
  socket.on("message", (bytes, { address, port }) => {
    const from = findIp(address.split("%", 1)[0] ?? "");
    if (from !== undefined) onMessage(bytes, { ip: from, port });
  });
  socket.bind({ fd });
  return socket;
}
