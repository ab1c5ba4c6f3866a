import { verify, type KeyObject } from "node:crypto";
import { contentEquals, TAG, type DerCursor } from "./der.ts";

const ECDSA_WITH = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3]; // 1.2.840.10045.4.3, then 2, 3, 4
const RSA_WITH = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1]; // 1.2.840.113549.1.1, then 11, 12, 13

/** How requests and revocation lists may be signed. */
export interface SignatureAlgorithm {
  /** Content of the object identifier. */
  readonly oid: readonly number[];
  readonly hash: "sha256" | "sha384" | "sha512";
  readonly key: "ec" | "rsa";
}

/** ECDSA and RSA with SHA-2 (RFC 5758, RFC 4055); nothing weaker. */
export const SIGNATURES: readonly SignatureAlgorithm[] = [
  { oid: [...ECDSA_WITH, 2], hash: "sha256", key: "ec" },
  { oid: [...ECDSA_WITH, 3], hash: "sha384", key: "ec" },
  { oid: [...ECDSA_WITH, 4], hash: "sha512", key: "ec" },
  { oid: [...RSA_WITH, 11], hash: "sha256", key: "rsa" },
  { oid: [...RSA_WITH, 12], hash: "sha384", key: "rsa" },
  { oid: [...RSA_WITH, 13], hash: "sha512", key: "rsa" },
];

/** Reads an algorithm identifier; undefined for one that is not accepted. Throws `X509_DER`. */
export function findSignatureAlgorithm(der: Uint8Array, fields: DerCursor): SignatureAlgorithm | undefined {
  const oid = fields.take(TAG.oid, "signature algorithm");
  return SIGNATURES.find((candidate) => contentEquals(der, oid, candidate.oid));
}

/** True when `signature` (the content of a bit string) is that of the key over `data`. Never throws. */
export function isSignedBy(
  publicKey: KeyObject,
  signed: { readonly hash: string; readonly data: Uint8Array; readonly signature: Uint8Array },
): boolean {
  if (signed.signature[0] !== 0) return false; // unused bits: no signature has any
  try {
    return verify(signed.hash, signed.data, publicKey, signed.signature.subarray(1));
  } catch {
    return false; // fails closed: OpenSSL could not even read it
  }
}
