import { closeSync } from "node:fs";
import { deadline, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Netns, SeqpacketConnection } from "#linux";
import { enrolmentError } from "./errors.ts";
import { decodeZdsAck, decodeZdsHello, encodeZdsRequest, type ZdsRequest } from "./zds-codec.ts";

/** How long the proxy may take to answer one message, and to say hello. */
const ZDS_ANSWER_MS = 5000;
/** Answers that may be overdue before the connection is given up. */
const MAX_OVERDUE_ANSWERS = 8;

interface Asked {
  readonly settle: (answer: string | Error) => void;
}

/**
 * One proxy's connection. Strictly one request at a time; answers come in the order of the requests, so an answer that is
 * overdue when the next request is sent is still told apart from the next one's.
 */
export class ZdsConnection {
  readonly #socket: SeqpacketConnection;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #asked: Asked[] = [];
  readonly #ended = Promise.withResolvers<void>();

  constructor(socket: SeqpacketConnection, options: { clock: Clock; log: Log }) {
    this.#socket = socket;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  /** True once the proxy has gone, or was given up. */
  get closed(): boolean {
    return this.#socket.closed;
  }

  /** Resolves when the connection has ended, for whatever reason. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Waits for the proxy's hello and begins to read its answers. Throws when the proxy says something else, or nothing. */
  async greet(): Promise<void> {
    const bound = deadline(this.#clock, ZDS_ANSWER_MS, {
      reason: enrolmentError("ENROLMENT_ZDS_TIMEOUT", "the proxy connected and did not say hello"),
    });
    try {
      const message = await this.#socket.receive(bound.signal);
      if (message === undefined) throw enrolmentError("ENROLMENT_ZDS_CLOSED", "the proxy left without a hello");
      decodeZdsHello(noDescriptors(message));
    } catch (error) {
      this.close();
      throw error;
    } finally {
      bound.clear();
    }
    void this.#readAnswers();
  }

  /**
   * Asks the proxy and waits for its answer: empty when it is done, otherwise its objection. `netns` goes along with `add`.
   * Throws `ENROLMENT_ZDS_TIMEOUT` or `ENROLMENT_ZDS_CLOSED`; the answer may then still come and is ignored.
   */
  async ask(request: ZdsRequest, netns?: Netns): Promise<string> {
    if (this.closed) throw closedError();
    this.#socket.send(encodeZdsRequest(request), netns === undefined ? [] : [netns.fd]);
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const cancel = this.#clock.after(ZDS_ANSWER_MS, () => {
      reject(
        enrolmentError("ENROLMENT_ZDS_TIMEOUT", `the proxy did not answer ${request.kind} in ${ZDS_ANSWER_MS} ms`),
      );
      if (this.#asked.length > MAX_OVERDUE_ANSWERS) this.close();
    });
    this.#asked.push({
      settle: (answer) => {
        cancel();
        if (answer instanceof Error) reject(answer);
        else resolve(answer);
      },
    });
    return promise;
  }

  /** Ends the connection; the proxy keeps what it has. May be called twice. */
  close(): void {
    this.#socket.close();
    for (const { settle } of this.#asked.splice(0)) settle(closedError());
    this.#ended.resolve();
  }

  async #readAnswers(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#socket.receive();
        if (message === undefined) break;
        const answer = decodeZdsAck(noDescriptors(message));
        const asked = this.#asked.shift();
        if (asked === undefined) throw enrolmentError("ENROLMENT_ZDS_MESSAGE", "the proxy spoke without being asked");
        asked.settle(answer);
      }
    } catch (error) {
      this.#log.warn({ reason: messageOf(error) }, "connection of a proxy ended by an error");
    }
    this.close();
  }
}

function closedError(): Error {
  return enrolmentError("ENROLMENT_ZDS_CLOSED", "the proxy's connection has ended");
}

function noDescriptors(message: { data: Uint8Array; fds: readonly number[] }): Uint8Array {
  if (message.fds.length === 0) return message.data;
  for (const fd of message.fds) closeSync(fd);
  throw enrolmentError("ENROLMENT_ZDS_MESSAGE", "the proxy sent a descriptor, which only the agent may do");
}
