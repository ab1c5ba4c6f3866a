import { ipToBytes, isV6, type Cidr, type IpAddress } from "#base/ip";

/** Masked addresses of one family and prefix length. */
interface Group {
  readonly length: number;
  readonly keys: Set<number | string>;
}

/** Many address prefixes, asked together: the cost grows with the number of different lengths, not of prefixes. */
export class CidrSet {
  readonly #v4: readonly Group[];
  readonly #v6: readonly Group[];

  constructor(cidrs: readonly Cidr[]) {
    this.#v4 = group(cidrs.filter(({ address }) => !isV6(address)));
    this.#v6 = group(cidrs.filter(({ address }) => isV6(address)));
  }

  /** True when one of the prefixes holds `ip`. Families are apart. */
  has(ip: IpAddress): boolean {
    const groups = isV6(ip) ? this.#v6 : this.#v4;
    if (groups.length === 0) return false;
    const bytes = ipToBytes(ip);
    return groups.some(({ length, keys }) => keys.has(maskedKey(bytes, length)));
  }
}

function group(cidrs: readonly Cidr[]): readonly Group[] {
  const groups = new Map<number, Group>();
  for (const { address, length } of cidrs) {
    const entry = groups.get(length) ?? { length, keys: new Set() };
    entry.keys.add(maskedKey(ipToBytes(address), length));
    groups.set(length, entry);
  }
  return [...groups.values()];
}

/** The first `length` bits: of IPv4 as a number, of IPv6 as text. */
function maskedKey(bytes: Uint8Array, length: number): number | string {
  let word = 0;
  let text = "";
  for (const [i, byte] of bytes.entries()) {
    const bits = Math.min(Math.max(length - 8 * i, 0), 8);
    const masked = byte & (0xff00 >> bits);
    if (bytes.length === 4) word = word * 256 + masked;
    else text += String.fromCharCode(masked);
  }
  return bytes.length === 4 ? word : text;
}
