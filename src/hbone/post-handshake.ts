import { ALERT, recordFault } from "./record-rules.ts";

const NEW_SESSION_TICKET = 4;
const KEY_UPDATE = 24;
const HEADER_BYTES = 4;
/** Two lifetimes, a nonce, a ticket and extensions, all as long as they can be (RFC 8446 §4.6.1). */
const MOST_TICKET_BYTES = 131_338;

/** A KeyUpdate message (RFC 8446 §4.6.3). */
export function keyUpdateMessage(asksBack: boolean): Uint8Array {
  return Uint8Array.of(KEY_UPDATE, 0, 0, 1, asksBack ? 1 : 0);
}

/**
 * Handshake messages after the handshake: KeyUpdate, and a server's tickets, which are skipped. Whatever else there is
 * was not offered in our handshake. Messages may be cut anywhere.
 */
export class PostHandshake {
  readonly #isServer: boolean;
  readonly #onKeyUpdate: (asksBack: boolean) => void;
  #header = new Uint8Array(HEADER_BYTES);
  #headerCount = 0;
  /** Bytes of the message that are still to come; meaningful when its header is whole. */
  #left = 0;

  constructor(isServer: boolean, onKeyUpdate: (asksBack: boolean) => void) {
    this.#isServer = isServer;
    this.#onKeyUpdate = onKeyUpdate;
  }

  /** A message has begun and not ended: no other record may come between. */
  get unfinished(): boolean {
    return this.#headerCount > 0;
  }

  /** The content of one record. Throws `HBONE_TLS_RECORD`. */
  take(content: Uint8Array): void {
    for (let at = 0; at < content.length;) {
      if (this.#headerCount < HEADER_BYTES) {
        this.#header[this.#headerCount++] = content[at++] ?? 0;
        if (this.#headerCount === HEADER_BYTES) this.#begin();
        continue;
      }
      if (this.#header[0] === KEY_UPDATE) this.#keyUpdate(content[at] ?? 0, at + 1 === content.length);
      const count = Math.min(this.#left, content.length - at);
      at += count;
      this.#left -= count;
      if (this.#left === 0) this.#headerCount = 0;
    }
  }

  #begin(): void {
    const [type = 0, high = 0, middle = 0, low = 0] = this.#header;
    this.#left = (high << 16) | (middle << 8) | low;
    if (type === KEY_UPDATE) {
      if (this.#left !== 1) throw recordFault(ALERT.DECODE_ERROR, `a KeyUpdate of ${this.#left} bytes`);
    } else if (type !== NEW_SESSION_TICKET || this.#isServer) {
      throw recordFault(ALERT.UNEXPECTED_MESSAGE, `a handshake message of type ${type} after the handshake`);
    } else if (this.#left === 0 || this.#left > MOST_TICKET_BYTES) {
      throw recordFault(ALERT.DECODE_ERROR, `a session ticket of ${this.#left} bytes`);
    }
  }

  #keyUpdate(request: number, last: boolean): void {
    if (request > 1) throw recordFault(ALERT.ILLEGAL_PARAMETER, `a KeyUpdate that asks for ${request}`);
    if (!last) throw recordFault(ALERT.UNEXPECTED_MESSAGE, "a KeyUpdate is not the last of its record");
    this.#onKeyUpdate(request === 1);
  }
}
