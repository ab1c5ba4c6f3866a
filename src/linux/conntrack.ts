import { closeSync } from "node:fs";
import { checkCall, libc, linuxError } from "./libc.ts";
import { inNetns, type Netns } from "./netns.ts";

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 3 | 0x8_0000;
const NETLINK_NETFILTER = 12;
const CTNETLINK_DELETE = (1 << 8) | 2;
const NLM_F_REQUEST_ACK = 0x1 | 0x4;
const NLMSG_ERROR = 2;
const HEADER_BYTES = 16;

const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const sendCall = libc.func("long send(int fd, void *data, size_t length, int flags)");
const recvCall = libc.func("long recv(int fd, _Out_ void *data, size_t length, int flags)");

/**
 * Forgets every connection that the kernel tracks in a namespace (what `conntrack -F` does). Connections that no address
 * translation applies to go on. Throws `LINUX_SYSCALL` when the kernel refuses.
 */
export function flushConntrack(netns: Netns): void {
  const fd = inNetns(netns, () =>
    checkCall("socket(NETLINK_NETFILTER)", socketCall(AF_NETLINK, SOCK_RAW_CLOEXEC, NETLINK_NETFILTER)),
  );
  try {
    const request = Buffer.alloc(HEADER_BYTES + 4); // nlmsghdr and an empty nfgenmsg: all families, no filter
    request.writeUInt32LE(request.length, 0);
    request.writeUInt16LE(CTNETLINK_DELETE, 4);
    request.writeUInt16LE(NLM_F_REQUEST_ACK, 6);
    checkCall("send to ctnetlink", sendCall(fd, request, request.length, 0));
    const answer = Buffer.alloc(256);
    const length: number = checkCall("receive from ctnetlink", recvCall(fd, answer, answer.length, 0));
    const code =
      length >= HEADER_BYTES + 4 && answer.readUInt16LE(4) === NLMSG_ERROR ? answer.readInt32LE(HEADER_BYTES) : -1;
    if (code !== 0) throw linuxError("LINUX_SYSCALL", `cannot flush tracked connections: errno ${-code}`);
  } finally {
    closeSync(fd);
  }
}
