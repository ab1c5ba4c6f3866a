import { MessageChannel, receiveMessageOnPort, type MessagePort } from "node:worker_threads";
import type { Clock } from "#base/clock";
import type { ToThread } from "./messages.ts";

/**
 * The way of messages from the main thread to a data thread. A message port wakes its reader while it holds the lock that the
 * reader then needs. The main thread goes last: woken so, a data thread takes the processor from it, stands at the lock, and
 * waits until all others have let the main thread go on. So a data thread that is being told things looks for them by itself:
 *
 *     listening ── message ──▶ looking: the port is parked, nothing wakes the thread, it looks every 2 ms
 *         ▲────── 100 ms without a message ──┘
 *
 * A port is parked by sending it to oneself: on its way it gathers messages and belongs to nobody whom they could wake.
 */
export interface MailboxStart {
  readonly port: MessagePort;
  /** 32-bit numbers, see {@link SHARED}. */
  readonly shared: SharedArrayBuffer;
}

/** What the numbers count that both threads see: messages to the data thread, batches of records taken from it. */
const SHARED = { posted: 0, recordsTaken: 1 } as const;

const LOOK_MS = 2;
const LISTEN_AFTER_LOOKS = 50;

/** The main thread's end. */
export class MailboxSender {
  /** For the data thread; `start.port` is to be transferred. */
  readonly start: MailboxStart;
  readonly #port: MessagePort;
  readonly #shared: Int32Array;

  constructor() {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    this.start = { port: port2, shared: new SharedArrayBuffer(Object.keys(SHARED).length * 4) };
    this.#shared = new Int32Array(this.start.shared);
  }

  post(message: ToThread): void {
    this.#port.postMessage(message);
    Atomics.add(this.#shared, SHARED.posted, 1);
  }

  /** A batch of records has been taken: the next may come. */
  recordsTaken(): void {
    Atomics.add(this.#shared, SHARED.recordsTaken, 1);
  }

  /** Ends the way: nothing arrives any more. */
  close(): void {
    this.#port.close();
  }
}

/** The data thread's end. */
export class MailboxReader {
  readonly #shared: Int32Array;
  readonly #clock: Clock;
  readonly #handle: (message: ToThread) => void;
  readonly #lot = new MessageChannel();
  #seen = 0;

  /** `handle` gets the messages in order. */
  constructor({ port, shared }: MailboxStart, clock: Clock, handle: (message: ToThread) => void) {
    this.#shared = new Int32Array(shared);
    this.#clock = clock;
    this.#handle = handle;
    this.#listen(port);
  }

  /** How many batches of records were taken, as a 32-bit number. */
  get recordsTaken(): number {
    return Atomics.load(this.#shared, SHARED.recordsTaken);
  }

  #listen(port: MessagePort): void {
    port.once("message", (message: ToThread) => {
      this.#take(message);
      this.#read(port);
      this.#park(port);
      this.#look(LISTEN_AFTER_LOOKS);
    });
  }

  #look(looks: number): void {
    this.#clock.after(LOOK_MS, () => {
      const isNew = Atomics.load(this.#shared, SHARED.posted) !== this.#seen;
      if (!isNew && looks > 0) {
        this.#look(looks - 1);
        return;
      }
      const port = this.#unpark();
      this.#read(port);
      if (!isNew) {
        this.#listen(port);
        return;
      }
      this.#park(port);
      this.#look(LISTEN_AFTER_LOOKS);
    });
  }

  #read(port: MessagePort): void {
    for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) {
      this.#take(next.message as ToThread); // the main thread wrote it
    }
  }

  #take(message: ToThread): void {
    this.#seen = (this.#seen + 1) | 0;
    this.#handle(message);
  }

  #park(port: MessagePort): void {
    this.#lot.port1.postMessage(port, [port]);
  }

  #unpark(): MessagePort {
    const parked = receiveMessageOnPort(this.#lot.port2);
    if (parked === undefined) throw new Error("the port is not where it was parked"); // cannot happen
    return parked.message as MessagePort; // see #park
  }
}
