import { closeSync } from "node:fs";
import { deadline, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { Netns, SeqpacketConnection } from "#linux";
import { enrolmentError } from "./errors.ts";
import { decodeZdsAck, decodeZdsHello, encodeZdsRequest, type ZdsRequest } from "./zds-codec.ts";

/** How long the proxy may take to answer the next message, and to say hello. */
const ZDS_ANSWER_MS = 5000;
/** How often in a row no answer may come in that time before the connection is given up. */
const MAX_SILENCES = 8;
/** Messages that may wait for their answers: a snapshot does not take one turn of both processes for each pod. */
const MAX_UNANSWERED = 64;

interface Asked {
  readonly settle: (answer: string | Error) => void;
}

/**
 * One proxy's connection. Requests need not wait for the answers to those before: a proxy takes one packet after the other and
 * answers in that order (ztunnel, which reads the next when it has answered, as well as ours, which works on several at once).
 */
export class ZdsConnection {
  readonly #socket: SeqpacketConnection;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #asked: Asked[] = [];
  readonly #ended = Promise.withResolvers<void>();
  #answered = Promise.withResolvers<void>();
  /** Stops the clock of the next answer. */
  #cancelPatience = (): void => {};
  #silences = 0;

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

  /** Resolves when one more request may be sent, or the connection has ended. */
  async whenRoom(): Promise<void> {
    while (!this.closed && this.#asked.length >= MAX_UNANSWERED) await this.#answered.promise;
  }

  /**
   * Asks the proxy and waits for its answer: empty when it is done, otherwise its objection. `netns` goes along with `add`. The
   * request leaves before this returns. Throws `ENROLMENT_ZDS_TIMEOUT` when the proxy has been silent for too long (the answer may
   * then still come and is ignored), or `ENROLMENT_ZDS_CLOSED`.
   */
  async ask(request: ZdsRequest, netns?: Netns): Promise<string> {
    if (this.closed) throw closedError();
    this.#socket.send(encodeZdsRequest(request), netns === undefined ? [] : [netns.fd]);
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    this.#asked.push({
      settle: (answer) => {
        if (answer instanceof Error) reject(answer);
        else resolve(answer);
      },
    });
    if (this.#asked.length === 1) this.#awaitAnswer();
    return promise;
  }

  /** Ends the connection; the proxy keeps what it has. May be called twice. */
  close(): void {
    this.#socket.close();
    this.#cancelPatience();
    for (const { settle } of this.#asked.splice(0)) settle(closedError());
    this.#answered.resolve();
    this.#ended.resolve();
  }

  /** From now on the proxy has its time again, when anything is asked. */
  #awaitAnswer(): void {
    this.#cancelPatience();
    if (this.#asked.length === 0) return;
    this.#cancelPatience = this.#clock.after(ZDS_ANSWER_MS, () => {
      for (const { settle } of this.#asked) {
        settle(enrolmentError("ENROLMENT_ZDS_TIMEOUT", `the proxy has answered nothing for ${ZDS_ANSWER_MS} ms`));
      }
      if (++this.#silences > MAX_SILENCES) this.close();
      else this.#awaitAnswer();
    });
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
        this.#silences = 0;
        this.#awaitAnswer();
        this.#answered.resolve();
        this.#answered = Promise.withResolvers();
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
