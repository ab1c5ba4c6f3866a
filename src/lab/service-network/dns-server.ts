import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { createServer, type Server, type Socket } from "node:net";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Service } from "#base/service";
import { answerQuery } from "./dns-message.ts";
import type { ClusterNames } from "./names.ts";

const PORT = 53;
const MAX_TCP_CLIENTS = 64;
const TCP_IDLE_MS = 10_000;

/** The cluster's DNS on one node, over UDP and TCP. */
export class DnsServer implements Service {
  readonly name = "dns";
  readonly #address: string;
  readonly #names: () => ClusterNames;
  readonly #log: Log;
  readonly #clients = new Set<Socket>();
  #udp: UdpSocket | undefined;
  #tcp: Server | undefined;

  constructor(address: string, names: () => ClusterNames, log: Log) {
    this.#address = address;
    this.#names = names;
    this.#log = log;
  }

  async start(): Promise<void> {
    const udp = createSocket({ type: "udp4", reuseAddr: true });
    udp.on("message", (query, peer) => {
      const answer = answerQuery(query, this.#names(), "udp");
      if (answer !== undefined) udp.send(answer, peer.port, peer.address);
    });
    await new Promise<void>((resolve, reject) => {
      udp.once("error", reject);
      udp.bind(PORT, this.#address, () => {
        udp.off("error", reject);
        resolve();
      });
    });
    udp.on("error", (error) => this.#log.warn({ error: messageOf(error) }, "dns socket has failed"));
    this.#udp = udp;
    const tcp = createServer((client) => this.#serve(client));
    tcp.maxConnections = MAX_TCP_CLIENTS;
    await new Promise<void>((resolve, reject) => {
      tcp.once("error", reject);
      tcp.listen(PORT, this.#address, resolve);
    });
    this.#tcp = tcp;
  }

  async drain(_deadlineMs: number): Promise<void> {
    for (const client of this.#clients) client.destroy();
    this.#udp?.close();
    this.#tcp?.close();
  }

  /** Each message has its length before it (RFC 1035 section 4.2.2). */
  #serve(client: Socket): void {
    this.#clients.add(client);
    client.setTimeout(TCP_IDLE_MS, () => client.destroy());
    client.on("error", () => client.destroy());
    client.on("close", () => this.#clients.delete(client));
    let rest = Buffer.alloc(0);
    client.on("data", (chunk: Buffer) => {
      rest = Buffer.concat([rest, chunk]); // at most one message of 64 KiB and a chunk
      while (rest.length >= 2 && rest.length >= 2 + rest.readUInt16BE(0)) {
        const length = rest.readUInt16BE(0);
        const answer = answerQuery(rest.subarray(2, 2 + length), this.#names(), "tcp");
        rest = rest.subarray(2 + length);
        if (answer === undefined) {
          client.destroy();
          break;
        }
        const head = Buffer.alloc(2);
        head.writeUInt16BE(answer.length);
        client.write(Buffer.concat([head, answer]));
      }
    });
  }
}
