/**
 * Sends one TCP packet that no TCP made, for tests of what leaves a pod: its first of a connection, with words in it.
 *
 *     raw-send.ts --from 10.244.1.5 --to 10.244.2.5 --port 15008 --words TEXT --how raw|packet [--times 3]
 *
 * `raw`: a raw IP socket, past TCP; `packet`: a packet socket on eth0, past IP and its rules, too.
 */
import { parseArgs } from "node:util";
import koffi from "koffi";

const { values } = parseArgs({
  options: {
    from: { type: "string", default: "" },
    to: { type: "string", default: "" },
    port: { type: "string", default: "15008" },
    words: { type: "string", default: "" },
    how: { type: "string", default: "raw" },
    times: { type: "string", default: "3" },
  },
});

const libc = koffi.load("libc.so.6");
const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const sendTo = libc.func("long sendto(int fd, void *data, size_t length, int flags, void *to, uint32_t size)");
const indexOf = libc.func("unsigned int if_nametoindex(const char *name)");
const [AF_INET, AF_PACKET, SOCK_DGRAM, SOCK_RAW, IPPROTO_RAW, ETH_P_IP] = [2, 17, 2, 3, 255, 0x0800];
const SYN = 0x02;

const bytesOf = (ip: string): Buffer => Buffer.from(ip.split(".").map(Number));

function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** IPv4 and TCP (RFC 791, RFC 9293), with right checksums: connection tracking looks at them. */
function packet(sourcePort: number): Buffer {
  const [from, to] = [bytesOf(values.from), bytesOf(values.to)];
  const payload = Buffer.from(values.words);
  const tcp = Buffer.alloc(20 + payload.length);
  tcp.writeUInt16BE(sourcePort, 0);
  tcp.writeUInt16BE(Number(values.port), 2);
  tcp.writeUInt32BE(sourcePort * 1000, 4);
  tcp[12] = 5 << 4;
  tcp[13] = SYN;
  tcp.writeUInt16BE(65_535, 14);
  tcp.set(payload, 20);
  const pseudo = Buffer.concat([from, to, Buffer.from([0, 6, tcp.length >> 8, tcp.length & 255])]);
  tcp.writeUInt16BE(checksum(Buffer.concat([pseudo, tcp])), 16);
  const ip = Buffer.alloc(20);
  ip.set([0x45, 0]);
  ip.writeUInt16BE(20 + tcp.length, 2);
  ip.set([64, 6], 8);
  ip.set(from, 12);
  ip.set(to, 16);
  ip.writeUInt16BE(checksum(ip), 10);
  return Buffer.concat([ip, tcp]);
}

/** `struct sockaddr_in`, or `struct sockaddr_ll` with the hardware address that a lab's node has towards the pod. */
function target(): Buffer {
  if (values.how === "raw")
    return Buffer.concat([Buffer.from([AF_INET, 0, 0, 0]), bytesOf(values.to), Buffer.alloc(8)]);
  const to = Buffer.alloc(20);
  to.writeUInt16LE(AF_PACKET, 0);
  to.writeUInt16BE(ETH_P_IP, 2);
  to.writeInt32LE(Number(indexOf("eth0")), 4);
  to[11] = 6;
  to.set([0xee, 0, ...bytesOf(values.from)], 12);
  return to;
}

const fd = Number(
  values.how === "raw"
    ? socketCall(AF_INET, SOCK_RAW, IPPROTO_RAW)
    : socketCall(AF_PACKET, SOCK_DGRAM, ((ETH_P_IP & 255) << 8) | (ETH_P_IP >> 8)),
);
if (fd < 0) throw new Error("no such socket");
const to = target();
for (let time = 0; time < Number(values.times); time++) {
  const bytes = packet(40_000 + time);
  process.stdout.write(`${Number(sendTo(fd, bytes, bytes.length, 0, to, to.length))}\n`);
}
