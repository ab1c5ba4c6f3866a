import { checkCall, libc } from "./libc.ts";
import { inNetns, type Netns } from "./netns.ts";
import { closeFd, makeUdpSocket } from "./socket-options.ts";

const ioctlCall = libc.func("int ioctl(int fd, unsigned long request, void *argument)");
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const IFF_UP = 1;
const IFREQ_BYTES = 40;
const NAME_BYTES = 16;

/**
 * Switches a namespace's loopback on, as whoever sets a pod's network up does sooner or later. A socket that binds 127.0.0.1 in a namespace
 * without any address seems to work, but answers from another address ever after: the kernel takes it for a broadcast address then.
 * Throws `LINUX_SYSCALL`, `LINUX_NETNS_GONE`.
 */
export function raiseLoopback(netns: Netns): void {
  inNetns(netns, () => {
    const fd = makeUdpSocket({ v6: false });
    try {
      const request = Buffer.alloc(IFREQ_BYTES);
      request.write("lo", "latin1");
      checkCall("ioctl SIOCGIFFLAGS", Number(ioctlCall(fd, SIOCGIFFLAGS, request)));
      const flags = request.readInt16LE(NAME_BYTES);
      if ((flags & IFF_UP) !== 0) return;
      request.writeInt16LE(flags | IFF_UP, NAME_BYTES);
      checkCall("ioctl SIOCSIFFLAGS", Number(ioctlCall(fd, SIOCSIFFLAGS, request)));
    } finally {
      closeFd(fd);
    }
  });
}
