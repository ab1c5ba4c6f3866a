import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import type { DeviceAction, NodeEvent } from "./node-state.ts";
import type { SlotPeer, Tunnels } from "./slots.ts";

type Queued = Exclude<DeviceAction, { kind: "prove" }>;

/** What a {@link DeviceQueue} works on. */
export interface DeviceQueueOptions {
  readonly tunnels: Tunnels;
  readonly log: Log;
  /** After it nothing new is begun. */
  readonly signal: AbortSignal;
  /** Hears what became of each action. */
  readonly onDone: (event: NodeEvent) => void;
}

/** Carries out what is to be done with the devices: those of a slot one after the other, and the routes one after the other. */
export class DeviceQueue {
  readonly #options: DeviceQueueOptions;
  readonly #tails = new Map<number | "route", Promise<void>>();

  constructor(options: DeviceQueueOptions) {
    this.#options = options;
  }

  /** Takes an action; its end is told to `onDone`. */
  push(action: Queued): void {
    const lane = action.kind === "route" ? "route" : action.slot;
    const { signal, onDone, log } = this.#options;
    const next = (this.#tails.get(lane) ?? Promise.resolve()).then(async () => {
      if (signal.aborted) return;
      let event: NodeEvent | undefined;
      try {
        event = await this.#carryOut(action);
      } catch (error) {
        const message = messageOf(error);
        log.warn(
          { action: action.kind, slot: action.slot, error: message },
          "a device or route cannot be changed, trying again",
        );
        event = { kind: "failed", action, message };
      }
      if (event !== undefined) onDone(event);
    });
    this.#tails.set(lane, next);
  }

  /** Makes a peer's entry anew, which begins a handshake; in its turn. Never rejects. */
  async renew(slot: 0 | 1, peer: SlotPeer, isWanted: () => boolean): Promise<void> {
    const { tunnels, log } = this.#options;
    const next = (this.#tails.get(slot) ?? Promise.resolve()).then(async () => {
      if (!isWanted()) return;
      await tunnels.install(slot, peer, peer.publicKey).catch((error: unknown) => {
        log.debug({ error: messageOf(error) }, "a handshake cannot be begun, trying again");
      });
    });
    this.#tails.set(slot, next);
    await next;
  }

  /** Resolves when everything that was taken has ended. */
  async idle(): Promise<void> {
    await Promise.all(this.#tails.values());
  }

  async #carryOut(action: Queued): Promise<NodeEvent | undefined> {
    const { tunnels } = this.#options;
    if (action.kind === "rekey") {
      return { kind: "rekeyed", action, publicKey: await tunnels.rekey(action.slot, action.peers) };
    }
    if (action.kind === "install") await tunnels.install(action.slot, action.peer, action.replacing);
    else if (action.kind === "remove") await tunnels.remove(action.slot, action.publicKey);
    else {
      await tunnels.route(action.peer, action.slot);
      if (action.slot !== undefined) return { kind: "routed", node: action.peer.node, slot: action.slot };
    }
    return undefined;
  }
}
