import type { Slot, SlotPeer, Tunnels } from "./slots.ts";

/** For the answer to an echo. */
const ECHO_MS = 500;
/** Large echoes that are tried before they count as lost. */
const TRIES = 3;
/** Pairs that are looked at at once. */
const AT_ONCE = 16;

/** A pair over whose slot packets are sent. */
export interface SendingPair {
  readonly slot: Slot;
  readonly peer: SlotPeer;
}

/**
 * Looks whether the largest packets that a tunnel takes arrive, too: a path that carries less than the nodes' interfaces say, and tells
 * nobody, lets handshakes and small packets through, and stalls everything else.
 */
export class PathCheck {
  readonly #tunnels: Pick<Tunnels, "probe">;
  #narrow: ReadonlySet<string> = new Set();

  constructor(tunnels: Pick<Tunnels, "probe">) {
    this.#tunnels = tunnels;
  }

  /** Nodes at which small packets arrive and large ones do not, as of the last look. */
  get narrow(): ReadonlySet<string> {
    return this.#narrow;
  }

  /** Looks at each pair once. Never rejects. */
  async look(pairs: readonly SendingPair[]): Promise<void> {
    const narrow = new Set<string>();
    const rest = [...pairs];
    const work = async (): Promise<void> => {
      for (let pair = rest.pop(); pair !== undefined; pair = rest.pop()) {
        if (await this.#isNarrow(pair)) narrow.add(pair.peer.node);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    this.#narrow = narrow;
  }

  async #isNarrow(pair: SendingPair): Promise<boolean> {
    for (let tries = 0; tries < TRIES; tries++) if (await this.#echo(pair, true)) return false;
    return this.#echo(pair, false); // neither: that the pair does not work at all is told already
  }

  async #echo({ slot, peer }: SendingPair, full: boolean): Promise<boolean> {
    return this.#tunnels.probe(slot, peer, { deadlineMs: ECHO_MS, full }).catch(() => false); // no device: told elsewhere
  }
}
