import {
  createPrivateKey,
  createPublicKey,
  generateKeyPair,
  sign as signBytes,
  type KeyObject,
  type X509Certificate,
} from "node:crypto";
import { promisify } from "node:util";
import { x509Error } from "./errors.ts";

/** The kinds of keys that Veil accepts; it makes ECDSA ones. */
export type KeyAlgorithm = "ecdsa-p256" | "ecdsa-p384" | "rsa";

/** A key pair in memory. The private half is a handle of OpenSSL's, which prints as nothing. */
export interface KeyPair {
  readonly algorithm: KeyAlgorithm;
  readonly privateKey: KeyObject;
  readonly publicKey: KeyObject;
}

const generate = promisify(generateKeyPair);
const CURVES = { "ecdsa-p256": "prime256v1", "ecdsa-p384": "secp384r1" } as const;
const LEAST_RSA_BITS = 2048;
const MOST_RSA_BITS = 4096;

/** Makes a key pair, off the main thread. Default ECDSA P-256, as the field's workload certificates use. */
export async function createKeyPair(algorithm: "ecdsa-p256" | "ecdsa-p384" = "ecdsa-p256"): Promise<KeyPair> {
  const { publicKey, privateKey } = await generate("ec", { namedCurve: CURVES[algorithm] });
  return { algorithm, publicKey, privateKey };
}

/** The private key as unencrypted PKCS#8 PEM. A secret: keep it in memory. */
export function formatPrivateKey(keyPair: KeyPair): string {
  return String(keyPair.privateKey.export({ type: "pkcs8", format: "pem" }));
}

/**
 * Reads a private key in PEM. Throws `X509_PEM`, `X509_KEY_ALGORITHM`. `place` names where the text came from.
 * The error never carries the text nor OpenSSL's reason, which may quote it.
 */
export function parsePrivateKey(pem: string, place: string): KeyPair {
  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey({ key: pem, format: "pem" });
  } catch {
    throw x509Error("X509_PEM", `cannot read a private key in ${place}`, { details: { place } });
  }
  const publicKey = createPublicKey(privateKey);
  return { algorithm: algorithmOf(publicKey, place), privateKey, publicKey };
}

/** Which accepted kind a public key is. Throws `X509_KEY_ALGORITHM`. */
export function algorithmOf(publicKey: KeyObject, place: string): KeyAlgorithm {
  const kind = describeKey(publicKey);
  if (kind === "ec on prime256v1") return "ecdsa-p256";
  if (kind === "ec on secp384r1") return "ecdsa-p384";
  const bits = publicKey.asymmetricKeyType === "rsa" ? (publicKey.asymmetricKeyDetails?.modulusLength ?? 0) : 0;
  if (bits >= LEAST_RSA_BITS && bits <= MOST_RSA_BITS) return "rsa";
  throw x509Error("X509_KEY_ALGORITHM", `the key in ${place} is not accepted: ${kind}`, { details: { place } });
}

function describeKey({ asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): string {
  if (type === "ec") return `ec on ${details?.namedCurve ?? "a curve without name"}`;
  return type === "rsa" ? `rsa with ${details?.modulusLength ?? 0} bits` : (type ?? "unknown");
}

/** Throws `X509_KEY_MISMATCH` when `keyPair` is not the one that the certificate certifies. */
export function checkKeyBelongs(openssl: X509Certificate, keyPair: KeyPair, place: string): void {
  if (openssl.checkPrivateKey(keyPair.privateKey)) return;
  throw x509Error("X509_KEY_MISMATCH", `the private key in ${place} is not that of the certificate beside it`, {
    details: { place },
  });
}

/**
 * Something that signs for an authority: a key in memory, in a Kubernetes Secret, or in a device that never gives it away.
 */
export interface Signer {
  readonly algorithm: KeyAlgorithm;
  /** The public key, SubjectPublicKeyInfo in DER. */
  readonly publicKeySpki: Uint8Array;
  /** Signs `data` with the hash that fits the key (SHA-384 for P-384, else SHA-256). ECDSA: a DER Ecdsa-Sig-Value; RSA: PKCS#1 1.5. */
  sign(data: Uint8Array): Promise<Uint8Array>;
}

/** The hash that goes with a key: SHA-384 for P-384, SHA-256 otherwise. */
export function hashFor(algorithm: KeyAlgorithm): "sha256" | "sha384" {
  return algorithm === "ecdsa-p384" ? "sha384" : "sha256";
}

/** A signer whose key is in this process's memory. */
export function keyPairSigner(keyPair: KeyPair): Signer {
  return {
    algorithm: keyPair.algorithm,
    publicKeySpki: new Uint8Array(keyPair.publicKey.export({ type: "spki", format: "der" })),
    sign: async (data) => new Uint8Array(signBytes(hashFor(keyPair.algorithm), data, keyPair.privateKey)),
  };
}
