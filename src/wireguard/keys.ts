import { createPrivateKey, createPublicKey, randomFillSync } from "node:crypto";

/** Bytes of a Curve25519 key, private or public. */
export const KEY_BYTES = 32;

/** PKCS #8 (RFC 8410) of an X25519 private key, up to the key itself. */
const PRIVATE_PREFIX = Buffer.from("302e020100300506032b656e04220420", "hex");

/** A fresh pair of keys. Dispose it as soon as the device has it: that overwrites the private half. */
export interface KeyPair extends Disposable {
  readonly privateKey: Buffer;
  /** Base64, 44 characters, as everybody writes WireGuard's keys. */
  readonly publicKey: string;
}

/** Makes a pair of keys. */
export function generateKeyPair(): KeyPair {
  const privateKey = randomFillSync(Buffer.allocUnsafeSlow(KEY_BYTES));
  // Clamped, as WireGuard keeps it (RFC 7748 §5): what is read back is what was written.
  privateKey[0] = (privateKey[0] ?? 0) & 248;
  privateKey[31] = ((privateKey[31] ?? 0) & 127) | 64;
  return {
    privateKey,
    publicKey: publicKeyOf(privateKey),
    [Symbol.dispose]: () => {
      privateKey.fill(0);
    },
  };
}

/** The public half of a private key, in base64. Leaves no copy of the private one but OpenSSL's, which it overwrites itself. */
export function publicKeyOf(privateKey: Uint8Array): string {
  const encoded = Buffer.allocUnsafeSlow(PRIVATE_PREFIX.length + KEY_BYTES);
  encoded.set(PRIVATE_PREFIX);
  encoded.set(privateKey, PRIVATE_PREFIX.length);
  try {
    const parsed = createPrivateKey({ key: encoded, format: "der", type: "pkcs8" });
    return createPublicKey(parsed).export({ format: "der", type: "spki" }).subarray(-KEY_BYTES).toString("base64");
  } finally {
    encoded.fill(0);
  }
}

/** The bytes of a key in its one base64 form; undefined when the text is none. */
export function decodeKey(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, "base64");
  return bytes.length === KEY_BYTES && bytes.toString("base64") === text ? bytes : undefined;
}
