import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { CodedError, messageOf } from "#base/errors";
import { dataFrame, pingFrame, readFrames, replyFrame, resetFrame, type SpdyFrame } from "./spdy.ts";

/** Connects to a port of the pod. Rejects when nobody listens. The caller owns the socket. */
export type DialPort = (port: number) => Promise<Socket>;

/** Connections of one client, opened and not yet over. Further ones are reset. */
const MAX_FORWARDED = 1_024;
/** A client sends nothing more while so much waits for the pod. */
const MAX_WAITING_BYTES = 1 << 20;
const EMPTY = Buffer.alloc(0);

/** One connection: its stream of data, the stream on which its failure is told, and the socket in the pod. */
interface Forwarded {
  readonly data: number;
  readonly errors: number;
  readonly socket: Promise<Socket | undefined>;
}

/**
 * Serves a client that forwards ports (`portforward.k8s.io`, version 1): for each connection it opens a stream of type `error` and
 * one of type `data`, both with the port and the same `requestID`. Resolves when the client has gone; all sockets are closed then.
 * Rejects with `KUBELET_PORT_FORWARD` when it speaks something else.
 */
export async function forwardPorts(client: Duplex, dial: DialPort): Promise<void> {
  const forward = new PortForward(client, dial);
  client.on("error", () => {}); // its end says enough
  try {
    for await (const frame of readFrames(client)) {
      if (frame.kind === "away") return;
      await forward.take(frame);
    }
  } catch (error) {
    if (error instanceof CodedError) throw error; // else it has hung up, which ends it, too
  } finally {
    forward.end();
    client.destroy();
  }
}

class PortForward {
  readonly #client: Duplex;
  readonly #dial: DialPort;
  /** Error streams whose data stream has not come yet, by request. */
  readonly #asked = new Map<string, number>();
  readonly #forwarded = new Map<number, Forwarded>();
  readonly #sockets = new Set<Socket>();
  #answered = false;

  constructor(client: Duplex, dial: DialPort) {
    this.#client = client;
    this.#dial = dial;
    client.on("drain", () => {
      for (const socket of this.#sockets) socket.resume();
    });
  }

  async take(frame: Exclude<SpdyFrame, { kind: "away" }>): Promise<void> {
    if (frame.kind === "ping") this.#client.write(pingFrame(frame.bytes));
    else if (frame.kind === "open") this.#open(frame.stream, frame.headers);
    else {
      const socket = await this.#forwarded.get(frame.stream)?.socket;
      if (frame.kind === "reset") socket?.destroy();
      else if (socket !== undefined) await deliver(socket, frame);
    }
  }

  end(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#forwarded.clear();
    this.#asked.clear();
  }

  #open(stream: number, headers: ReadonlyMap<string, string>): void {
    const request = headers.get("requestid") ?? "";
    const port = Number(headers.get("port"));
    const errors = this.#asked.get(request);
    const wrong = !Number.isInteger(port) || port < 1 || port > 65_535;
    if (wrong || this.#asked.size + this.#forwarded.size >= MAX_FORWARDED) return this.#refuse(stream);
    if (headers.get("streamtype") === "error") this.#asked.set(request, stream);
    else if (errors === undefined) return this.#refuse(stream);
    else {
      this.#asked.delete(request);
      this.#forwarded.set(stream, { data: stream, errors, socket: this.#connect({ data: stream, errors, port }) });
    }
    this.#client.write(replyFrame(stream, !this.#answered));
    this.#answered = true;
  }

  #refuse(stream: number): void {
    this.#client.write(resetFrame(stream));
  }

  async #connect(streams: { data: number; errors: number; port: number }): Promise<Socket | undefined> {
    const { data, errors, port } = streams;
    try {
      const socket = await this.#dial(port);
      if (this.#client.destroyed) socket.destroy();
      this.#sockets.add(socket);
      socket.on("error", () => {}); // its close says enough
      socket.on("data", (bytes: Buffer) => {
        if (!this.#client.write(dataFrame(data, bytes, false))) for (const each of this.#sockets) each.pause();
      });
      socket.on("end", () => this.#client.write(dataFrame(data, EMPTY, true)));
      socket.on("close", () => this.#over(socket, { data, errors }));
      return socket;
    } catch (error) {
      this.#client.write(dataFrame(errors, Buffer.from(messageOf(error)), true));
      this.#refuse(data);
      this.#forwarded.delete(data);
      return undefined;
    }
  }

  #over(socket: Socket, streams: { data: number; errors: number }): void {
    this.#sockets.delete(socket);
    this.#forwarded.delete(streams.data);
    if (this.#client.destroyed) return;
    if (!socket.readableEnded) this.#refuse(streams.data);
    this.#client.write(dataFrame(streams.errors, EMPTY, true));
  }
}

async function deliver(socket: Socket, frame: { readonly bytes: Buffer; readonly ended: boolean }): Promise<void> {
  if (socket.destroyed || socket.writableEnded) return;
  if (frame.bytes.length > 0) socket.write(frame.bytes);
  if (frame.ended) socket.end();
  if (socket.writableLength <= MAX_WAITING_BYTES) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  for (const event of ["drain", "close"]) socket.once(event, () => resolve());
  await promise;
}
