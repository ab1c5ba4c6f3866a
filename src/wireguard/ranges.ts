import { bytesToIp, ipToBytes, isV6, type Cidr } from "#base/ip";

interface Range {
  readonly first: string;
  readonly last: string;
  readonly owner: string;
}

/** Address ranges that do not overlap, each with its owner; ranges of one owner may lie in each other. Finds an overlap in O(log n). */
export class Ranges {
  readonly #sorted: Range[] = [];

  /** Who else than `owner` has a range that overlaps this one. */
  findOther(cidr: Cidr, owner: string): string | undefined {
    const { first, last } = boundsOf(cidr);
    for (let at = Math.max(0, this.#after(first) - 1); at < this.#sorted.length; at++) {
      const range = this.#sorted[at];
      if (range === undefined || range.first > last) return undefined;
      if (range.last >= first && range.owner !== owner) return range.owner;
    }
    return undefined;
  }

  /** Takes a range that overlaps nobody else's. What lies in a range of the same owner needs no place of its own: add wide ones first. */
  add(cidr: Cidr, owner: string): void {
    const bounds = boundsOf(cidr);
    const at = this.#after(bounds.first);
    const before = this.#sorted[at - 1];
    if (before !== undefined && before.last >= bounds.last) return;
    this.#sorted.splice(at, 0, { ...bounds, owner });
  }

  /** Gives back a range of the owner; one that it has not is no failure. */
  remove(cidr: Cidr, owner: string): void {
    const { first, last } = boundsOf(cidr);
    const at = this.#after(first) - 1;
    const range = this.#sorted[at];
    if (range?.owner === owner && range.first === first && range.last === last) this.#sorted.splice(at, 1);
  }

  /** Index of the first range that begins behind `key`. */
  #after(key: string): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#sorted[middle]?.first ?? "") <= key) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The range with the bits behind its prefix cleared. */
export function networkOf(cidr: Cidr): Cidr {
  return { address: bytesToIp(bytesOf(cidr).first), length: cidr.length };
}

/** First and last address as texts that sort as addresses do; IPv4 before IPv6. */
function boundsOf(cidr: Cidr): { first: string; last: string } {
  const family = isV6(cidr.address) ? "6" : "4";
  const { first, last } = bytesOf(cidr);
  return { first: family + first.toString("hex"), last: family + last.toString("hex") };
}

function bytesOf({ address, length }: Cidr): { first: Buffer; last: Buffer } {
  const first = Buffer.from(ipToBytes(address));
  const last = Buffer.from(first);
  for (let at = 0; at < first.length; at++) {
    const bits = Math.min(8, Math.max(0, length - 8 * at));
    const host = 0xff >>> bits;
    first[at] = (first[at] ?? 0) & ~host;
    last[at] = (last[at] ?? 0) | host;
  }
  return { first, last };
}
