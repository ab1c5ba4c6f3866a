/**
 * A proxy for tests of redirection, as plain as can be: runs inside a pod's network namespace, passes each redirected connection on
 * in clear, and counts. It knows nothing of Veil's own data path. Prints `ready` when it listens, a line of counts on SIGUSR2.
 */
import { Socket, createServer } from "node:net";
import koffi from "koffi";

const libc = koffi.load("libc.so.6");
const socket = libc.func("int socket(int, int, int)");
const setsockopt = libc.func("int setsockopt(int, int, int, void *, uint32_t)");
const getsockopt = libc.func("int getsockopt(int, int, int, _Out_ void *, _Inout_ void *)");
const bind = libc.func("int bind(int, void *, uint32_t)");
const listen = libc.func("int listen(int, int)");
const connect = libc.func("int connect(int, void *, uint32_t)");
const close = libc.func("int close(int)");

let port = 20_000;
const counts = { outbound: 0, inbound: 0, failed: 0 };

function address(ip: string, port: number): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.writeUInt16LE(2, 0);
  bytes.writeUInt16BE(port, 2);
  bytes.set(ip.split(".").map(Number), 4);
  return bytes;
}

function marked(): number {
  const fd = Number(socket(2, 1, 0));
  for (const [level, name, value] of [
    [1, 36, 0x539], // SO_MARK
    [0, 19, 1], // IP_TRANSPARENT
    [1, 2, 1], // SO_REUSEADDR
  ] as const) {
    if (setsockopt(fd, level, name, new Int32Array([value]), 4) !== 0) throw new Error(`setsockopt ${name}`);
  }
  return fd;
}

function originalDestination(fd: number): { ip: string; port: number } | undefined {
  const bytes = Buffer.alloc(16);
  if (getsockopt(fd, 0, 80, bytes, new Uint32Array([16])) !== 0) return undefined; // SO_ORIGINAL_DST
  return { ip: bytes.subarray(4, 8).join("."), port: bytes.readUInt16BE(2) };
}

function serve(listenPort: number, direction: "outbound" | "inbound"): Promise<void> {
  const fd = marked();
  if (bind(fd, address("0.0.0.0", listenPort), 16) !== 0 || listen(fd, 1024) !== 0)
    throw new Error(`listen ${listenPort}`);
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (accepted) => {
    accepted.on("error", () => {});
    const handle = (accepted as unknown as { _handle: { fd: number } })._handle;
    const target = originalDestination(handle.fd);
    const out = marked();
    port = port < 32_767 ? port + 1 : 20_000; // never one that a client's kernel may choose
    const spoofed = direction === "inbound" ? bind(out, address(accepted.remoteAddress ?? "", port), 16) : 0;
    if (target === undefined || spoofed !== 0 || connect(out, address(target.ip, target.port), 16) !== 0) {
      counts.failed++;
      close(out);
      accepted.resetAndDestroy();
      return;
    }
    counts[direction]++;
    const dialled = new Socket({ fd: out, allowHalfOpen: true });
    dialled.setNoDelay(true);
    dialled.on("error", () => accepted.destroy());
    accepted.on("error", () => dialled.destroy());
    accepted.pipe(dialled);
    dialled.pipe(accepted);
  });
  return new Promise((resolve) => server.listen({ fd }, resolve));
}

process.on("SIGUSR2", () => void process.stdout.write(`${JSON.stringify(counts)}\n`));
await serve(15001, "outbound");
await serve(15006, "inbound");
process.stdout.write("ready\n");
