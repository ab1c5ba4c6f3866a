import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { IpAddress } from "#base/ip";
import type { Random } from "#base/random";
import { connectTcp, connectUdp, type Netns } from "#linux";
import { dnsError } from "./errors.ts";
import { answersQuery, rcodeOf, relayed, withId, type Query } from "./message.ts";
import { readMessages, writeMessage } from "./tcp-messages.ts";

/** How long one nameserver is waited for, and how often one is asked: together as long as clients wait (resolv.conf(5): 5 s). */
const TRY_MS = 1_250;
const MAX_TRIES = 4;
/** The least code that says that this server cannot tell (SERVFAIL, NOTIMP, REFUSED); NXDOMAIN is an answer. */
const UNDECIDED: ReadonlySet<number> = new Set([2, 4, 5]);

/** What a forwarder is made of. */
export interface ForwarderOptions {
  readonly nameservers: readonly IpAddress[];
  /** 53 but in tests. */
  readonly port: number;
  /** Questions leave from the pod itself, so that network policies see whose they are; undefined: from here. */
  readonly netns: Netns | undefined;
  /** So that redirection leaves them alone. */
  readonly mark: number | undefined;
  readonly clock: Clock;
  readonly random: Random;
}

/**
 * Passes questions on to the nameservers, over the protocol that the client uses, and their answers back as they came. Each question has a
 * port and a number of its own, and only an answer to it counts. Nothing is kept.
 */
export class Forwarder {
  readonly #options: ForwarderOptions;
  readonly #stop = new AbortController();

  constructor(options: ForwarderOptions) {
    this.#options = options;
  }

  /** Asks the nameservers in turn. Rejects with `DNS_UPSTREAM` when none answers. */
  async forward(query: Query, protocol: "udp" | "tcp"): Promise<Buffer> {
    const { nameservers, random } = this.#options;
    let cause: unknown;
    let undecided: Buffer | undefined;
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const server = nameservers[tries % nameservers.length];
      if (server === undefined) throw dnsError("DNS_UPSTREAM", "the proxy's resolv.conf names no nameserver");
      const isLast = tries + 1 >= nameservers.length;
      if (isLast && undecided !== undefined && tries >= nameservers.length) break;
      try {
        const id = random.below(0x1_0000);
        const answer = await this.#ask(server, { query, id, protocol });
        if (isLast || !UNDECIDED.has(rcodeOf(answer))) return relayed(answer, query);
        undecided = relayed(answer, query);
      } catch (error) {
        cause = error;
      }
      if (this.#stop.signal.aborted) break;
    }
    if (undecided !== undefined) return undecided;
    throw dnsError("DNS_UPSTREAM", `no nameserver answered: ${messageOf(cause)}`, { cause });
  }

  /** Gives up what waits, and uses the namespace no more. */
  close(): void {
    this.#stop.abort(new Error("the pod is given up"));
  }

  async #ask(server: IpAddress, asked: Asked): Promise<Buffer> {
    const { port, mark, clock } = this.#options;
    // The proxy's loopback is not the pod's.
    const netns = server.startsWith("127.") || server === "::1" ? undefined : this.#options.netns;
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    const onAbort = (): void => reject(new Error("the pod is given up"));
    const cancel = clock.after(TRY_MS, () => reject(new Error(`${server} has not answered in ${TRY_MS} ms`)));
    this.#stop.signal.throwIfAborted();
    this.#stop.signal.addEventListener("abort", onAbort, { once: true });
    using connection = new DisposableStack();
    try {
      const where = { netns, mark, ip: server, port, clock, timeoutMs: TRY_MS };
      const take = (answer: Buffer): void => {
        if (answersQuery(answer, asked.query, asked.id)) resolve(answer);
      };
      if (asked.protocol === "udp") askUdp(where, asked, { take, reject, connection });
      else askTcp(where, asked, { take, reject, connection });
      return await promise;
    } finally {
      cancel();
      this.#stop.signal.removeEventListener("abort", onAbort);
    }
  }
}

interface Asked {
  readonly query: Query;
  readonly id: number;
  readonly protocol: "udp" | "tcp";
}

interface Waiting {
  readonly take: (answer: Buffer) => void;
  readonly reject: (error: unknown) => void;
  /** What is to be closed when the wait is over. */
  readonly connection: DisposableStack;
}

type Where = Parameters<typeof connectTcp>[0];

function askUdp(where: Where, { query, id }: Asked, { take, reject, connection }: Waiting): void {
  const socket = connectUdp(where, { onMessage: take, onError: reject });
  connection.defer(() => socket.close());
  socket.send(withId(query.bytes, id));
}

function askTcp(where: Where, { query, id }: Asked, { take, reject, connection }: Waiting): void {
  let over = false;
  connection.defer(() => (over = true));
  connectTcp(where).then((tcp) => {
    if (over) return tcp.close();
    const socket = tcp.toNetSocket();
    connection.defer(() => socket.destroy());
    socket.on("error", reject);
    socket.on("close", () => reject(new Error(`${where.ip} has closed the connection`)));
    readMessages(socket, take);
    writeMessage(socket, withId(query.bytes, id));
  }, reject);
}
