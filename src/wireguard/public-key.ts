/** What is wrong with a public key: its reason as statuses have it, and a sentence. */
export interface KeyProblem {
  readonly reason: "KeyInvalid" | "KeyZero" | "KeySmallOrder";
  readonly message: string;
}

const KEY_BYTES = 32;

/**
 * The points of X25519 whose order is small, little-endian as on the wire: whoever shares a secret with one shares zero with everybody
 * (RFC 7748, section 6.1). Their list stands at https://cr.yp.to/ecdh.html#validate.
 */
const SMALL_ORDER: ReadonlySet<string> = new Set([
  `01${"00".repeat(31)}`,
  "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
  "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
  `ec${"ff".repeat(30)}7f`,
  `ed${"ff".repeat(30)}7f`,
  `ee${"ff".repeat(30)}7f`,
]);
const ZERO = "00".repeat(KEY_BYTES);

/** Says why a text is no public key that a peer may have; undefined when it is one. */
export function keyProblem(text: string): KeyProblem | undefined {
  const bytes = Buffer.from(text, "base64");
  if (bytes.length !== KEY_BYTES || bytes.toString("base64") !== text) {
    return { reason: "KeyInvalid", message: "the key is not 32 bytes in base64" };
  }
  bytes[KEY_BYTES - 1] = (bytes[KEY_BYTES - 1] ?? 0) & 0x7f; // X25519 does not look at the highest bit
  const hex = bytes.toString("hex");
  if (hex === ZERO) return { reason: "KeyZero", message: "the key is all zero" };
  if (SMALL_ORDER.has(hex)) return { reason: "KeySmallOrder", message: "the key is a point of small order" };
  return undefined;
}
