import type { Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import type { Log } from "#base/log";
import { decodeAddress } from "#proto";
import { addressName, type Address } from "#model/workload";
import type { Rejection, ResourceUpdate } from "#xds";
import { WorkloadTable, type PackedChange } from "./table.ts";

/**
 * Addresses that go to the data threads at once, 0.1 to 0.2 ms of their time: connections get their turn between two such parts of a
 * large push. Both threads look for the other's word after each part, so that the main thread rests, too.
 */
export const ADDRESSES_PER_MESSAGE = 100;

/** What the addresses of the mesh go through. */
export interface AddressesParts {
  /** Puts a change in force on all data threads; resolves when it is. */
  readonly spread: (change: PackedChange, synced: boolean) => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Takes the control plane's updates: decodes them, refuses the bad resources by name, and puts the good ones in force on
 * the main thread's table (for explanations and dumps) and on every data thread, before they are acknowledged.
 */
export class Addresses {
  readonly table = new WorkloadTable();
  readonly #parts: AddressesParts;
  #isSynced = false;

  constructor(parts: AddressesParts) {
    this.#parts = parts;
  }

  /** True when the first snapshot is complete. */
  get synced(): boolean {
    return this.#isSynced;
  }

  /** Takes one update. The names that it returns were refused; all else is in force when it resolves. */
  async take(update: ResourceUpdate): Promise<readonly Rejection[]> {
    const { upserts, removes } = update;
    const rejections: Rejection[] = [];
    for (let at = 0; at === 0 || at < upserts.length; at += ADDRESSES_PER_MESSAGE) {
      const part: Address[] = [];
      for (const { name, value } of upserts.slice(at, at + ADDRESSES_PER_MESSAGE)) {
        const decoded = decode(name, value);
        if ("reason" in decoded) rejections.push(decoded);
        else part.push(decoded.address);
      }
      const refused = await this.#put(part, at === 0 ? removes : []);
      rejections.push(...refused.map((name) => ({ name, reason: "more addresses than this proxy keeps" })));
    }
    for (let part = this.#findWasteful(); part.length > 0; part = this.#findWasteful()) await this.#put(part, []);
    return rejections;
  }

  #findWasteful(): readonly Address[] {
    return this.table.wasteful(ADDRESSES_PER_MESSAGE);
  }

  async #put(upserts: readonly Address[], removes: readonly string[]): Promise<readonly string[]> {
    const { change, refused } = this.table.pack({ upserts, removes, old: !this.#isSynced });
    this.table.apply(change, this.#parts.clock.monotonic());
    await this.#parts.spread(change, false);
    return refused;
  }

  /** The first snapshot is complete. */
  async markSynced(): Promise<void> {
    this.#isSynced = true;
    await this.#parts.spread({ packet: undefined, removes: [], old: true }, true);
    this.#parts.log.info({ addresses: this.table.size }, "first snapshot of addresses complete");
  }
}

function decode(name: string, value: Uint8Array): { address: Address } | Rejection {
  try {
    const address = decodeAddress(value);
    const own = addressName(address);
    if (own !== name) return { name, reason: `the resource calls itself "${own}"` };
    return { address };
  } catch (error) {
    return { name, reason: messageOf(error) };
  }
}
