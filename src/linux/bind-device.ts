import { checkCall, libc } from "./libc.ts";

const setOption = libc.func("int setsockopt(int fd, int level, int name, const void *value, uint32_t length)");
const SOL_SOCKET = 1;
const SO_BINDTODEVICE = 25;

/** Ties a socket to an interface of its namespace: all its packets leave by it, and none come from another. Throws `LINUX_SYSCALL`. */
export function bindToDevice(fd: number, device: string): void {
  const name = Buffer.from(`${device}\0`);
  const result = Number(setOption(fd, SOL_SOCKET, SO_BINDTODEVICE, name, name.length));
  checkCall("setsockopt SO_BINDTODEVICE", result, { device });
}
