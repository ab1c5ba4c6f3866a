import { hboneError } from "./errors.ts";

/**
 * The Huffman code of HPACK (RFC 7541 Appendix B). It is canonical: the lengths determine the codes.
 * One character for each symbol from 0 to 256 (end of string): the length of its code in bits, in base 36.
 */
const LENGTHS =
  "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6ca" +
  "d67777777777777777777777878djde6f56565666577666567655677777fbeds" +
  "kmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmn" +
  "qqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrq" +
  "u";

const EOS = 256;
/** What a nibble leads to when it completes no symbol. */
const NO_SYMBOL = -1;
const INVALID = -2;

interface Automaton {
  /** [state * 16 + nibble] → next state. */
  readonly next: Int16Array;
  /** [state * 16 + nibble] → the symbol that is complete, NO_SYMBOL, or INVALID. The shortest code has 5 bits: one at most. */
  readonly symbol: Int16Array;
  /** Whether a string may end in this state: less than a byte of ones since the last symbol. */
  readonly mayEnd: Uint8Array;
}

/** The codes, by symbol: [code, bits]. */
function canonicalCodes(): [number, number][] {
  const lengths = Array.from(LENGTHS, (digit) => Number.parseInt(digit, 36));
  const order = lengths.map((bits, symbol) => ({ bits, symbol }));
  order.sort((a, b) => a.bits - b.bits || a.symbol - b.symbol);
  const codes: [number, number][] = lengths.map((bits) => [0, bits]);
  let code = 0;
  let width = 0;
  for (const { bits, symbol } of order) {
    code *= 2 ** (bits - width);
    width = bits;
    codes[symbol] = [code, bits];
    code++;
  }
  return codes;
}

/** A binary tree: children[node * 2 + bit] is a node, or -(symbol + 1), or 0 (nothing). */
function buildTree(): { children: Int16Array; nodes: number; onesDepth: Map<number, number> } {
  const children = new Int16Array(2 * 512);
  let nodes = 1;
  const onesDepth = new Map([[0, 0]]);
  canonicalCodes().forEach(([code, bits], symbol) => {
    let node = 0;
    for (let bit = bits - 1; bit >= 0; bit--) {
      const at = node * 2 + ((code >>> bit) & 1);
      if (bit === 0) children[at] = -(symbol + 1);
      else if (children[at] === 0) children[at] = nodes++;
      node = children[at] ?? 0;
    }
  });
  for (let node = 0, depth = 1; depth <= 7; depth++) {
    node = children[node * 2 + 1] ?? 0;
    onesDepth.set(node, depth);
  }
  return { children, nodes, onesDepth };
}

function buildAutomaton(): Automaton {
  const { children, nodes, onesDepth } = buildTree();
  const next = new Int16Array(nodes * 16);
  const symbol = new Int16Array(nodes * 16).fill(NO_SYMBOL);
  for (let index = 0; index < nodes * 16; index++) {
    let node = index >> 4;
    for (let bit = 3; bit >= 0; bit--) {
      const child = children[node * 2 + ((index >> bit) & 1)] ?? 0;
      if (child < 0) symbol[index] = -child - 1 === EOS ? INVALID : -child - 1;
      node = Math.max(child, 0);
    }
    next[index] = node;
  }
  const mayEnd = new Uint8Array(nodes);
  for (const node of onesDepth.keys()) mayEnd[node] = 1;
  return { next, symbol, mayEnd };
}

const { next: NEXT, symbol: SYMBOL, mayEnd: MAY_END } = buildAutomaton();
let scratch = Buffer.allocUnsafeSlow(4096);

/**
 * Decodes a Huffman-coded string to text (one character per byte). Throws `HBONE_COMPRESSION` on the end-of-string
 * symbol and on padding that is not a prefix of it shorter than a byte.
 */
export function decodeHuffman(bytes: Uint8Array, start: number, end: number): string {
  const most = (end - start) * 2;
  if (scratch.length < most) scratch = Buffer.allocUnsafeSlow(most);
  const out = scratch;
  let state = 0;
  let count = 0;
  for (let at = start; at < end; at++) {
    const byte = bytes[at] ?? 0;
    for (let nibble = byte >> 4, half = 0; half < 2; nibble = byte & 15, half++) {
      const index = state * 16 + nibble;
      const symbol = SYMBOL[index] ?? INVALID;
      state = NEXT[index] ?? 0;
      if (symbol >= 0) out[count++] = symbol;
      else if (symbol === INVALID) throw hboneError("HBONE_COMPRESSION", "a Huffman string holds the end symbol");
    }
  }
  if (MAY_END[state] !== 1) throw hboneError("HBONE_COMPRESSION", "the padding of a Huffman string is wrong");
  return out.toString("latin1", 0, count);
}

const CODES = canonicalCodes();

/** Encodes text (characters up to 255). For tests and peers of tests: what Veil sends is not Huffman-coded. */
export function encodeHuffman(text: string): Uint8Array {
  const out: number[] = [];
  let bits = 0n;
  let width = 0;
  for (const char of text) {
    const [code, length] = CODES[char.charCodeAt(0)] ?? [0, 0];
    bits = (bits << BigInt(length)) | BigInt(code);
    width += length;
    while (width >= 8) {
      width -= 8;
      out.push(Number((bits >> BigInt(width)) & 255n));
      bits &= (1n << BigInt(width)) - 1n;
    }
  }
  if (width > 0) out.push(Number((bits << BigInt(8 - width)) & 255n) | ((1 << (8 - width)) - 1));
  return Uint8Array.from(out);
}
