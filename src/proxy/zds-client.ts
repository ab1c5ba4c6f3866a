import { closeSync } from "node:fs";
import { Backoff } from "#base/backoff";
import { sleep, type Clock } from "#base/clock";
import { CodedError, messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Random } from "#base/random";
import type { Service } from "#base/service";
import type { SeqpacketConnection } from "#linux";
import type { Pods } from "./pods.ts";
import { decodeRequest, encodeAck, encodeHello } from "./zds-messages.ts";

/** What this needs of a connection to the agent. */
export type ZdsConnection = Pick<SeqpacketConnection, "send" | "receive" | "close">;

/** What the ZDS client is made of. */
export interface ZdsClientParts {
  /** Connects to the agent's socket. Throws when nobody listens there. */
  readonly connect: () => ZdsConnection;
  readonly pods: Pods;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** Between two tries to reach the agent: short, because a restarted agent is to find its pods served. */
const RECONNECT = { initialMs: 20, maxMs: 1_000 } as const;

/** How long the end of a request is waited for when the proxy stops. */
const PATIENCE_MS = 200;

/** Requests that are worked on at once; the agent's next ones wait in the socket. */
const MAX_REQUESTS = 128;

/**
 * The proxy's end of ZDS: says hello, then does what the agent asks, for ever. An agent may ask on without waiting for answers: each
 * request begins when it comes, and they are answered in their order. A malformed message ends the connection (not the process),
 * and the next one begins with a new snapshot.
 */
export class ZdsClient implements Service {
  readonly name = "zds client";
  readonly #parts: ZdsClientParts;
  readonly #stop = new AbortController();
  #running: Promise<void> = Promise.resolve();

  constructor(parts: ZdsClientParts) {
    this.#parts = parts;
  }

  /** Begins to connect and resolves at once: an agent that is away is no failure. */
  start(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#running = this.#run();
    return Promise.resolve();
  }

  /** Takes no more requests. A request that waits for a certificate is not waited for: the time belongs to connections. */
  async drain(deadlineMs: number): Promise<void> {
    this.#stop.abort(new Error("draining"));
    this.#parts.pods.stop();
    await Promise.race([this.#running, sleep(this.#parts.clock, Math.min(deadlineMs, PATIENCE_MS))]);
  }

  async #run(): Promise<void> {
    const { clock, random, log, pods } = this.#parts;
    const backoff = new Backoff(RECONNECT, random);
    while (!this.#stop.signal.aborted) {
      try {
        using connection = this.#open();
        backoff.reset();
        await this.#serve(connection.inner);
      } catch (error) {
        if (!this.#stop.signal.aborted) log.warn({ error: messageOf(error) }, "agent not connected");
      }
      pods.loseAgent();
      await sleep(clock, backoff.next(), this.#stop.signal).catch(() => undefined); // aborted: the loop ends
    }
  }

  #open(): Disposable & { inner: ZdsConnection } {
    const inner = this.#parts.connect();
    return {
      inner,
      [Symbol.dispose]: () => {
        inner.close();
      },
    };
  }

  async #serve(connection: ZdsConnection): Promise<void> {
    const { pods, log } = this.#parts;
    pods.beginSnapshot();
    connection.send(encodeHello());
    log.info({}, "agent connected");
    const broken = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, broken.signal]);
    let answered = Promise.resolve();
    for (let count = 0; ; count++) {
      if (count % MAX_REQUESTS === 0) await answered;
      const message = await connection.receive(signal);
      if (message === undefined) return;
      const answer = this.#answer(message.data, message.fds);
      answered = Promise.all([answer, answered]).then(([error]) => {
        connection.send(encodeAck(error));
      });
      answered.catch((error: unknown) => {
        broken.abort(error);
      });
    }
  }

  /** The text of the acknowledgement. Throws when the connection cannot go on. */
  async #answer(data: Uint8Array, fds: readonly number[]): Promise<string> {
    const { pods, log } = this.#parts;
    let request;
    try {
      request = decodeRequest(data, fds.length);
      if (fds.length > 1) for (const fd of fds.slice(1)) closeSync(fd); // of a request that is not known
    } catch (error) {
      for (const fd of fds) closeSync(fd);
      throw error;
    }
    try {
      await pods.handle(request, fds[0]);
      return "";
    } catch (error) {
      if (error instanceof CodedError && error.code === "PROXY_ZDS_MESSAGE") throw error;
      log.warn({ request, error: messageOf(error) }, "agent's request refused");
      return messageOf(error);
    }
  }
}
