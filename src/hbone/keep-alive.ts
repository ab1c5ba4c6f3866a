import type { Clock } from "#base/clock";
import type { CodedError } from "#base/errors";
import { hboneError } from "./errors.ts";
import { FRAME } from "./frames.ts";
import type { HboneLimits } from "./limits.ts";
import type { SessionWriter } from "./writer.ts";

/** What a keep-alive watches. */
export interface WatchedSession {
  readonly clock: Clock;
  readonly writer: SessionWriter;
  readonly settingsAcknowledged: boolean;
  fail(error: CodedError): void;
  /** Nothing has come for a while. */
  becomeQuiet(): void;
}

const ALIVE = Uint8Array.from([0x76, 0x65, 0x69, 0x6c, 0, 0, 0, 1]);
const DRAIN = Uint8Array.from([0x76, 0x65, 0x69, 0x6c, 0, 0, 0, 2]);

/**
 * Pings a silent peer and ends the session when nothing at all comes back. Anything that arrives counts as life: on a
 * busy session no ping is sent. Looks, too, whether the peer has acknowledged our settings.
 */
export class KeepAlive {
  readonly #session: WatchedSession;
  readonly #limits: HboneLimits;
  readonly #beganMs: number;
  #heard = false;
  #cancel: (() => void) | undefined;

  constructor(session: WatchedSession, limits: HboneLimits) {
    this.#session = session;
    this.#limits = limits;
    this.#beganMs = session.clock.monotonic();
  }

  start(): void {
    this.#heard = false;
    this.#cancel = this.#session.clock.after(this.#limits.pingIntervalMs, () => {
      if (this.#settingsOverdue()) {
        const { settingsTimeoutMs } = this.#limits;
        const message = `the peer did not acknowledge our settings in ${settingsTimeoutMs} ms`;
        this.#session.fail(hboneError("HBONE_SETTINGS_TIMEOUT", message));
      } else if (this.#heard) this.start();
      else this.#probe();
    });
  }

  /** A peer that says nothing at all is the ping's business. */
  #settingsOverdue(): boolean {
    const { clock, settingsAcknowledged } = this.#session;
    return !settingsAcknowledged && this.#heard && clock.monotonic() - this.#beganMs >= this.#limits.settingsTimeoutMs;
  }

  stop(): void {
    this.#cancel?.();
    this.#cancel = undefined;
  }

  /** Something came. */
  heard(): void {
    this.#heard = true;
  }

  sendDrainPing(): void {
    this.#ping(DRAIN);
  }

  isDrainPong(payload: Uint8Array): boolean {
    return payload.every((byte, index) => byte === DRAIN[index]);
  }

  #probe(): void {
    this.#session.becomeQuiet();
    this.#ping(ALIVE);
    const { pingTimeoutMs } = this.#limits;
    this.#cancel = this.#session.clock.after(pingTimeoutMs, () => {
      // When this thread was held up, the answer may wait to be read: first a look at the sockets.
      const judgement = setImmediate(() => {
        if (this.#heard) this.start();
        else this.#session.fail(hboneError("HBONE_PING_TIMEOUT", `nothing came from the peer for ${pingTimeoutMs} ms`));
      });
      this.#cancel = () => {
        clearImmediate(judgement);
      };
    });
  }

  #ping(payload: Uint8Array): void {
    const { writer } = this.#session;
    const at = writer.control({ type: FRAME.PING, flags: 0, streamId: 0, length: 8 });
    writer.buffer.set(payload, at);
  }
}
