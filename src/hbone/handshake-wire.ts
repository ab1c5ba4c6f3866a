import { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import { CodedError } from "#base/errors";
import { RECORD_HEADER_BYTES, RecordProtection, type RecordSuite, type StreamOwner, type TcpSocket } from "#linux";
import { hboneError } from "./errors.ts";
import { recordBuffer } from "./record-receiver.ts";
import { RECORD } from "./record-rules.ts";
import { RecordStream } from "./record-stream.ts";
import { TrafficSecrets } from "./traffic-secrets.ts";

/** Unread bytes of a handshake beyond this: nothing more is read until OpenSSL has taken some. */
const MOST_QUEUED_BYTES = 64 * 1024;
const NOTHING = Buffer.alloc(0);

/** Follows records in a stream of bytes that may be cut anywhere. */
class RecordScanner {
  #header = [0, 0, 0, 0, 0];
  #headerCount = 0;
  #left = 0;

  /** Begins no record in the middle: whatever was given so far has ended with one. */
  get atBoundary(): boolean {
    return this.#headerCount === 0;
  }

  /** The end of the record that `bytes` goes on with (or begins) at `from`; where it ends later, of the bytes. */
  endOf(bytes: Uint8Array, from: number, onBegin?: (type: number) => void): number {
    let at = from;
    while (this.#headerCount < RECORD_HEADER_BYTES) {
      if (at === bytes.length) return at;
      if (this.#headerCount === 0) onBegin?.(bytes[at] ?? 0);
      this.#header[this.#headerCount++] = bytes[at++] ?? 0;
      if (this.#headerCount === RECORD_HEADER_BYTES)
        this.#left = ((this.#header[3] ?? 0) << 8) | (this.#header[4] ?? 0);
    }
    const count = Math.min(this.#left, bytes.length - at);
    this.#left -= count;
    if (this.#left === 0) this.#headerCount = 0;
    return at + count;
  }
}

/**
 * What Node's TLS shakes hands over: the socket's bytes, handed on one record at a time, so that nothing of the session
 * behind the handshake is taken by OpenSSL. {@link handOver} then makes a stream of it.
 */
export class HandshakeWire implements StreamOwner {
  /** The socket, for a `TLSSocket`. Destroying it closes the socket until it is handed over. */
  readonly duplex: Duplex;
  readonly #socket: TcpSocket;
  readonly #isServer: boolean;
  readonly #secrets = new TrafficSecrets();
  readonly #incoming = new RecordScanner();
  readonly #outgoing = new RecordScanner();
  /** Records that were sent under the key of the session: a server's tickets. */
  #sentRecords = 0;
  #queue: Buffer = NOTHING;
  #ended = false;
  #pumping = false;
  #secured = false;
  #onWritten: (() => void) | undefined;
  #next: StreamOwner | undefined;
  #closed = false;

  constructor(socket: TcpSocket, isServer: boolean) {
    this.#socket = socket;
    this.#isServer = isServer;
    this.duplex = new Duplex({
      allowHalfOpen: false,
      read: () => {
        if (!this.#pumping)
          process.nextTick(() => {
            this.#pump();
          });
      },
      write: (bytes: Buffer, _encoding, done) => {
        this.#write(bytes, done);
      },
      destroy: (error, done) => {
        this.#close();
        done(error);
      },
    });
    socket.stream.start(this, recordBuffer);
  }

  /** Listens to the TLS session that is made over `duplex`. To be called before its handshake begins. */
  watch(secure: TLSSocket): void {
    secure.on("keylog", (line: Buffer) => {
      this.#secrets.take(line);
    });
    secure.once("secure", () => {
      this.#secured = true; // from here on what comes is not OpenSSL's
      this.#socket.stream.pause();
    });
  }

  /**
   * After the handshake: the session as a stream that owns the socket, once OpenSSL's last words are out. The TLSSocket is
   * destroyed. Nothing is called when the wire is closed meanwhile.
   */
  handOver(secure: TLSSocket, onDone: (result: RecordStream | CodedError) => void): void {
    const suite = secure.getCipher().standardName;
    setImmediate(() => {
      // OpenSSL is not on the stack any more. An empty write is over when all before it is.
      if (this.#closed) return;
      secure.write(NOTHING, () => {
        if (this.#closed) return;
        let result: RecordStream | CodedError;
        try {
          result = this.#establish(secure, suite);
        } catch (error) {
          if (!(error instanceof CodedError)) throw error;
          result = error;
        }
        this.#secrets.wipe();
        if (result instanceof RecordStream) {
          this.#closed = true;
          this.#next = result;
          secure.destroy();
        }
        onDone(result);
      });
    });
  }

  #establish(secure: TLSSocket, suite: string): RecordStream {
    const secrets = this.#secrets;
    const isKnown = suite === "TLS_AES_128_GCM_SHA256" || suite === "TLS_AES_256_GCM_SHA384";
    const [client, server] = [secrets.client, secrets.server];
    const inOrder = this.#outgoing.atBoundary && this.#incoming.atBoundary && secure.readableLength === 0;
    if (!isKnown || client === undefined || server === undefined || !this.#secured || !inOrder) {
      throw hboneError("HBONE_TLS_HANDSHAKE", `the session of the TLS handshake cannot be taken over (${suite})`);
    }
    const [own, peers] = this.#isServer ? [server, client] : [client, server];
    const names: RecordSuite = suite;
    return new RecordStream({
      socket: this.#socket,
      isServer: this.#isServer,
      sending: new RecordProtection({ suite: names, secret: own, use: "seal", sequence: this.#sentRecords }),
      receiving: new RecordProtection({ suite: names, secret: peers, use: "open" }),
      left: this.#queue,
      ended: this.#ended,
    });
  }

  // From the socket.

  onRead(count: number): Uint8Array | undefined {
    if (this.#next !== undefined) return this.#next.onRead(count);
    const bytes = recordBuffer.subarray(0, count);
    this.#queue = this.#queue.length === 0 ? Buffer.from(bytes) : Buffer.concat([this.#queue, bytes]);
    if (this.#queue.length > MOST_QUEUED_BYTES) this.#socket.stream.pause();
    this.#pump();
    return undefined;
  }

  onEnd(): void {
    if (this.#next !== undefined) {
      this.#next.onEnd();
      return;
    }
    this.#ended = true;
    this.#pump();
  }

  onWritten(): void {
    if (this.#next !== undefined) {
      this.#next.onWritten();
      return;
    }
    const onWritten = this.#onWritten;
    this.#onWritten = undefined;
    onWritten?.();
  }

  onBroken(error: CodedError): void {
    if (this.#next === undefined) this.duplex.destroy(error);
    else this.#next.onBroken(error);
  }

  /** Hands on what is there: OpenSSL takes each piece before `push` returns, unless it has stopped reading. */
  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    while (this.#queue.length > 0 && this.#takes) {
      const end = this.#incoming.endOf(this.#queue, 0);
      const piece = this.#queue.subarray(0, end);
      this.#queue = this.#queue.subarray(end);
      this.duplex.push(piece);
    }
    this.#pumping = false;
    if (!this.#takes) return;
    if (this.#ended) this.duplex.push(null);
    else this.#socket.stream.resume();
  }

  get #takes(): boolean {
    const { readableLength, readableFlowing } = this.duplex;
    return !this.#secured && !this.#closed && readableLength === 0 && readableFlowing === true;
  }

  #write(bytes: Buffer, done: (error?: Error | null) => void): void {
    for (let at = 0; at < bytes.length;) {
      at = this.#outgoing.endOf(bytes, at, (type) => {
        // A client's last word has come when its secret is there: what a server protects from then on is under the next key.
        if (this.#isServer && type === RECORD.DATA && this.#secrets.client !== undefined) this.#sentRecords++;
      });
    }
    if (bytes.length === 0 || this.#closed) {
      done();
      return;
    }
    const outcome = this.#socket.stream.write(bytes);
    if (outcome === "pending") this.#onWritten = done;
    else done(outcome === "failed" ? this.#socket.stream.error : null);
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#secrets.wipe();
    this.#socket.close();
  }
}
