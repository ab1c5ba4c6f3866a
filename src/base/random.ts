import { randomFillSync, randomInt } from "node:crypto";

/** Randomness, injected so that tests can repeat a run. */
export interface Random {
  /** A number in [0, 1). */
  unit(): number;
  /** An integer in [0, limit). */
  below(limit: number): number;
  /** Cryptographically strong bytes, as lower-case hex of `byteCount` bytes. */
  hex(byteCount: number): string;
}

/** Cryptographically strong randomness. */
export const systemRandom: Random = {
  unit: () => randomInt(2 ** 47) / 2 ** 47,
  below: (limit) => randomInt(limit),
  hex: (byteCount) => takeBytes(byteCount).toString("hex"),
};

/** Drawn in blocks, as one draw costs as much for 16 bytes as for 4,096. No byte is given out twice. */
const BLOCK_BYTES = 4096;
const block = Buffer.alloc(BLOCK_BYTES);
let used = BLOCK_BYTES;

function takeBytes(byteCount: number): Buffer {
  if (byteCount > BLOCK_BYTES) return randomFillSync(Buffer.alloc(byteCount));
  if (used + byteCount > BLOCK_BYTES) {
    randomFillSync(block);
    used = 0;
  }
  used += byteCount;
  return block.subarray(used - byteCount, used);
}

/** Repeatable randomness for tests (mulberry32). Never for keys. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  const unit = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    unit,
    below: (limit) => Math.floor(unit() * limit),
    hex: (byteCount) =>
      Array.from({ length: byteCount }, () =>
        Math.floor(unit() * 256)
          .toString(16)
          .padStart(2, "0"),
      ).join(""),
  };
}
