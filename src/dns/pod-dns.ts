import type { Socket } from "node:net";
import { every, type Clock } from "#base/clock";
import { findCodedError, messageOf } from "#base/errors";
import type { CellSet } from "#base/metrics";
import {
  listenTcp,
  listenUdp,
  raiseLoopback,
  type Netns,
  type TcpListener,
  type TcpSocket,
  type UdpListener,
} from "#linux";
import type { DnsRecord } from "#model/access-log";
import type { Workload } from "#model/workload";
import { dnsError } from "./errors.ts";
import { Forwarder, type ForwarderOptions } from "./forwarder.ts";
import {
  answerCount,
  CLASS_IN,
  decodeQuery,
  encodeAnswer,
  encodeRefusal,
  RCODE,
  TYPE_A,
  TYPE_AAAA,
  typeName,
  type Query,
} from "./message.ts";
import { resolve, type Resolver } from "./resolve.ts";
import { readMessages, writeMessage } from "./tcp-messages.ts";

/** Where captured questions arrive: upstream's port. */
export const DNS_PORT = 15053;

/** Questions of one pod that wait for a nameserver, or for the first snapshot; a further one gets SERVFAIL. */
const MAX_PENDING = 1_024;
/** TCP connections of one pod; a further one is closed. */
const MAX_TCP_CLIENTS = 128;
/** A TCP connection that says nothing for so long, or whose question takes so long, is closed (upstream's value). */
const TCP_IDLE_MS = 5_000;
/** Answers that wait for a client that does not read; beyond that it is cut off. */
const MAX_UNREAD_BYTES = 1 << 20;

/** What the DNS of a pod is made of. */
export interface PodDnsOptions {
  /** Undefined: this thread's own, as tests have it. */
  readonly netns: Netns | undefined;
  readonly port: number;
  readonly resolver: Resolver;
  readonly forwarder: Omit<ForwarderOptions, "netns" | "clock" | "random">;
  /** Resolves with true when the first snapshot of the mesh is there, with false when it does not come in time. */
  readonly whenReady: () => Promise<boolean>;
  /** The pod as the control plane describes it, for labels. */
  readonly source: () => Workload | undefined;
  readonly clock: Clock;
  readonly cells: CellSet;
  /** Called for each question. */
  readonly record: (question: Omit<DnsRecord, "timeMs" | "pod">) => void;
}

type Protocol = "udp" | "tcp";

/**
 * The DNS that a pod's captured questions come to, on the loopback addresses of its namespace:
 *
 *   1 decode   what is no question is answered with its fault, or not at all
 *   2 who      addresses (A, AAAA): `resolve` decides whether the mesh knows the name
 *   3 answer   it does: from the table, now
 *   4 forward  it does not: the nameservers' answer, as it comes
 *   5 count    metrics, and the record at level debug
 *
 * `start` once, `drain` once. It does not own the namespace's descriptor.
 */
export class PodDns {
  readonly #options: PodDnsOptions;
  readonly #forwarder: Forwarder;
  readonly #udp: UdpListener[] = [];
  readonly #tcp: TcpListener[] = [];
  readonly #clients = new Set<Socket>();
  #pending = 0;

  constructor(options: PodDnsOptions) {
    this.#options = options;
    const { netns, clock, resolver } = options;
    this.#forwarder = new Forwarder({ ...options.forwarder, netns, clock, random: resolver.random });
  }

  /** Listens, on IPv6 where the namespace has it. Throws `DNS_LISTEN`; then nothing listens. */
  start(): void {
    try {
      if (this.#options.netns !== undefined) raiseLoopback(this.#options.netns); // the pod may be about to be set up
      this.#listen("127.0.0.1");
    } catch (cause) {
      this.#close();
      throw dnsError("DNS_LISTEN", `cannot listen for DNS on port ${this.#options.port}: ${messageOf(cause)}`, {
        cause,
      });
    }
    try {
      this.#listen("::1");
    } catch {
      // a namespace without IPv6 has no questions over it
    }
  }

  /** Takes no new questions, answers those it has, at most until `deadlineMs`, and closes everything. */
  async drain(deadlineMs: number): Promise<void> {
    for (const listener of this.#tcp) listener.stop();
    for (const listener of this.#udp) listener.retire();
    const isIdle = (): boolean => this.#pending === 0 && !this.#udp.some(({ waiting }) => waiting);
    if (!isIdle()) await until(this.#options.clock, isIdle, deadlineMs);
    this.#close();
  }

  #listen(ip: string): void {
    const { netns, forwarder, port } = this.#options;
    const where = { netns, mark: forwarder.mark, ip, port };
    const udp = listenUdp(where, {
      onMessage: (bytes, from) => void this.#answer(bytes, "udp", (answer) => udp.send(answer, from)),
      onError: () => undefined, // a client that is gone
    });
    this.#udp.push(udp);
    this.#tcp.push(listenTcp({ ...where, reusePort: true }, (socket) => this.#serve(socket)));
  }

  #serve(tcp: TcpSocket): void {
    if (this.#clients.size >= MAX_TCP_CLIENTS) return tcp.close();
    const socket = tcp.toNetSocket();
    socket.allowHalfOpen = true; // a client may end its side after its question
    this.#clients.add(socket);
    let waiting = 0;
    let ended = false;
    const end = (): void => {
      if (ended && waiting === 0) socket.end();
    };
    socket.setTimeout(TCP_IDLE_MS, () => socket.destroy());
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#clients.delete(socket));
    socket.on("end", () => {
      ended = true;
      end();
    });
    readMessages(socket, (message) => {
      waiting++;
      void this.#answer(message, "tcp", (answer) => writeMessage(socket, answer)).finally(() => {
        waiting--;
        end();
        if (socket.writableLength > MAX_UNREAD_BYTES) socket.destroy();
      });
    });
  }

  /** Stages 1 to 5. Never rejects. */
  async #answer(bytes: Buffer, protocol: Protocol, reply: (answer: Buffer) => void): Promise<void> {
    const { clock } = this.#options;
    const query = decodeQuery(bytes);
    if ("failure" in query) {
      if (query.failure !== undefined) reply(query.failure);
      return;
    }
    const startMs = clock.monotonic();
    const outcome = await this.#settle(query, protocol);
    reply(outcome.answer);
    this.#count("istio_dns_requests_total", query, protocol);
    this.#options.record({
      queryType: typeName(query.type),
      protocol,
      name: query.name ?? "",
      result: outcome.result,
      service: outcome.service,
      endpoints: outcome.endpoints,
      durationMs: clock.monotonic() - startMs,
    });
  }

  async #settle(query: Query, protocol: Protocol): Promise<Outcome> {
    if (this.#pending >= MAX_PENDING) return failed(query, "too many");
    this.#pending++;
    try {
      if (!(await this.#options.whenReady())) return failed(query, "not ready");
      return this.#resolve(query, protocol) ?? (await this.#forward(query, protocol));
    } finally {
      this.#pending--;
    }
  }

  #resolve(query: Query, protocol: Protocol): Outcome | undefined {
    const { name, type } = query;
    if (name === undefined || query.class !== CLASS_IN || (type !== TYPE_A && type !== TYPE_AAAA)) return undefined;
    const found = resolve(name, type, this.#options.resolver);
    if (found.kind === "forward") return undefined;
    const { service, addresses } = found;
    return {
      answer: encodeAnswer(query, found, protocol),
      result: addresses.length > 0 ? "success" : "no records",
      service: `${service.namespace}/${service.hostname}`,
      endpoints: addresses.length,
    };
  }

  async #forward(query: Query, protocol: Protocol): Promise<Outcome> {
    const { clock, cells } = this.#options;
    this.#count("istio_dns_upstream_requests_total", query, protocol);
    const startMs = clock.monotonic();
    try {
      const answer = await this.#forwarder.forward(query, protocol);
      return { answer, result: "forwarded", service: undefined, endpoints: answerCount(answer) };
    } catch (error) {
      this.#count("istio_dns_upstream_failures_total", query, protocol);
      return failed(query, `forwarding failed: ${findCodedError(error)?.message ?? messageOf(error)}`);
    } finally {
      const seconds = (clock.monotonic() - startMs) / 1000;
      cells.observe("istio_dns_upstream_request_duration_seconds", this.#labels(query, protocol), seconds);
    }
  }

  #count(metric: string, query: Query, protocol: Protocol): void {
    this.#options.cells.bind(metric, this.#labels(query, protocol)).value++;
  }

  #labels(query: Query, protocol: Protocol): Record<string, string> {
    const source = this.#options.source();
    return {
      request_query_type: typeName(query.type),
      request_protocol: protocol,
      source_canonical_service: source?.canonicalName || "unknown",
      source_canonical_revision: source?.canonicalRevision || "unknown",
    };
  }

  #close(): void {
    this.#forwarder.close();
    for (const listener of this.#tcp) listener.stop();
    for (const listener of this.#udp) listener.close();
    for (const client of this.#clients) client.destroy();
  }
}

interface Outcome {
  readonly answer: Buffer;
  readonly result: string;
  readonly service: string | undefined;
  readonly endpoints: number;
}

function failed(query: Query, result: string): Outcome {
  return { answer: encodeRefusal(query, RCODE.serverFailure), result, service: undefined, endpoints: 0 };
}

/** How often the end of the last question is looked for. */
const POLL_MS = 10;

async function until(clock: Clock, isDone: () => boolean, patienceMs: number): Promise<void> {
  await new Promise<void>((done) => {
    const stop = (): void => {
      stopLooking();
      cancel();
      done();
    };
    const stopLooking = every(clock, POLL_MS, () => {
      if (isDone()) stop();
    });
    const cancel = clock.after(patienceMs, stop);
  });
}
