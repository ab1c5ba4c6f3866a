import { sleep, type Clock } from "#base/clock";
import type { DeviceQueue } from "./device-queue.ts";
import type { DeviceAction, NodeEvent, NodeState } from "./node-state.ts";
import { isProving } from "./pair.ts";
import type { Slot, SlotStatus, Tunnels } from "./slots.ts";

type Prove = Extract<DeviceAction, { kind: "prove" }>;

/** How often a handshake is looked for, at first and (each time half as often again) at last. */
const LOOK_MS = 20;
const LOOK_MAX_MS = 1_000;
/** The initiator begins again when there was no handshake for so long; later WireGuard's own 5 s do. */
const RENEW_MS = 200;
const RENEW_FOR_MS = 10_000;
const RENEW_LATE_MS = 5_000;
/** For the answer to an echo. */
const ECHO_MS = 300;
/** Echoes under way at once. */
const MAX_ECHOES = 64;

/** What a {@link Prover} works with. */
export interface ProverOptions {
  readonly state: NodeState;
  readonly tunnels: Tunnels;
  readonly queue: Pick<DeviceQueue, "renew">;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly onProven: (event: NodeEvent) => void;
}

/**
 * Proves pairs: a handshake alone shows an old session as well, and can be there in one direction only; an echo that went out of the
 * slot and came back on it shows that both directions work.
 */
export class Prover {
  readonly #options: ProverOptions;
  readonly #looks = new Map<Slot, Promise<SlotStatus>>();
  #echoes = 0;

  constructor(options: ProverOptions) {
    this.#options = options;
  }

  /** Goes on until the pair is proven, or its proof is not wanted any more. */
  prove(proof: Prove): void {
    this.#run(proof).catch(() => undefined); // only the end of the service ends it early
  }

  async #run(proof: Prove): Promise<void> {
    const { clock, signal, onProven } = this.#options;
    const { slot, peer, pair } = proof;
    const startedMs = clock.monotonic();
    let renewedMs = startedMs; // the entry is fresh, and its device has begun a handshake by itself
    let pauseMs = LOOK_MS;
    while (!signal.aborted && this.#isWanted(proof)) {
      const hasShaken = await this.#hasShaken(proof);
      if (hasShaken && (!proof.echo || (await this.#echo(proof)))) {
        onProven({ kind: "proven", slot, node: peer.node, pair });
        return;
      }
      const nowMs = clock.monotonic();
      const patienceMs = nowMs - startedMs < RENEW_FOR_MS ? RENEW_MS : RENEW_LATE_MS;
      if (!hasShaken && peer.initiator && nowMs - renewedMs >= patienceMs) {
        renewedMs = nowMs;
        await this.#options.queue.renew(slot, peer, () => !signal.aborted && this.#isWanted(proof));
      }
      await sleep(clock, pauseMs, signal);
      if (nowMs - startedMs > 2 * RENEW_MS) pauseMs = Math.min(LOOK_MAX_MS, pauseMs * 1.5);
    }
  }

  #isWanted(proof: Prove): boolean {
    return isProving(this.#options.state, proof.peer.node, proof);
  }

  async #hasShaken({ slot, peer }: Prove): Promise<boolean> {
    const status = await this.#look(slot).catch(() => undefined); // a device that is gone is told by `onLost`
    return (status?.peers.get(peer.publicKey)?.lastHandshakeMs ?? 0) > 0;
  }

  /** One look at a device for all who ask at the same time: it lists all its peers. */
  #look(slot: Slot): Promise<SlotStatus> {
    const open = this.#looks.get(slot);
    if (open !== undefined) return open;
    const look = this.#options.tunnels.status(slot).finally(() => this.#looks.delete(slot));
    this.#looks.set(slot, look);
    return look;
  }

  async #echo({ slot, peer }: Prove): Promise<boolean> {
    if (this.#echoes >= MAX_ECHOES) return false;
    this.#echoes++;
    try {
      return await this.#options.tunnels.probe(slot, peer, { deadlineMs: ECHO_MS });
    } catch {
      return false; // no route yet, or the device is gone: tried again
    } finally {
      this.#echoes--;
    }
  }
}
