import { createPublicKey, type KeyObject } from "node:crypto";
import type { SpiffeId } from "#model/spiffe-id";
import { contentEquals, contentOf, DerCursor, malformed, TAG, wholeOf, type DerElement } from "./der.ts";
import { derBitString, derElement, derOid, derSequence } from "./der-write.ts";
import { x509Error } from "./errors.ts";
import { readExtensions } from "./extensions.ts";
import { algorithmOf, hashFor, keyPairSigner, type KeyAlgorithm, type KeyPair } from "./keys.ts";
import { formatPem, parsePem } from "./pem.ts";
import { findSignatureAlgorithm, isSignedBy, SIGNATURES, type SignatureAlgorithm } from "./signature.ts";

/** A certificate request whose own signature was checked: whoever sent it holds the private key. */
export interface CertificateRequest {
  readonly algorithm: KeyAlgorithm;
  /** SubjectPublicKeyInfo in DER. */
  readonly publicKeySpki: Uint8Array;
  /** What the request asks to be named. An authority must not believe it: the name comes from the authenticated caller. */
  readonly requestedUris: readonly string[];
}

const LIMITS = { mostBytes: 16 * 1024, mostBlocks: 1 };
const EXTENSION_REQUEST = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14]; // 1.2.840.113549.1.9.14
const SUBJECT_ALT_NAME = [0x55, 0x1d, 17]; // 2.5.29.17

/**
 * Writes a request in PEM for an ECDSA key: empty subject, the ID as the only and critical SAN, as ztunnel's.
 * Written here and not with @peculiar/x509, since that would cost every node's agent 150 ms and 40 MB for these lines.
 */
export async function createCsr(keyPair: KeyPair, id: SpiffeId): Promise<string> {
  const signer = keyPairSigner(keyPair);
  const name = derElement(0x86, new TextEncoder().encode(id));
  const critical = derElement(TAG.boolean, Uint8Array.of(0xff));
  const san = derSequence(derOid(SUBJECT_ALT_NAME), critical, derElement(TAG.octetString, derSequence(name)));
  const attribute = derSequence(derOid(EXTENSION_REQUEST), derElement(TAG.set, derSequence(san)));
  const version = derElement(TAG.integer, Uint8Array.of(0));
  const info = derSequence(version, derSequence(), signer.publicKeySpki, derElement(0xa0, attribute));
  const algorithm = SIGNATURES.find(({ key, hash }) => key === "ec" && hash === hashFor(keyPair.algorithm));
  if (algorithm === undefined || keyPair.algorithm === "rsa") {
    throw x509Error("X509_KEY_ALGORITHM", "requests are written for ECDSA keys only");
  }
  const signature = derBitString(await signer.sign(info));
  return formatPem("CERTIFICATE REQUEST", derSequence(info, derSequence(derOid(algorithm.oid)), signature));
}

/**
 * Reads a PKCS#10 request (RFC 2986) in PEM and checks its signature. `place` names the sender in messages. Throws `X509_PEM`,
 * `X509_TOO_LARGE`, `X509_DER`, `X509_DUPLICATE_EXTENSION`, `X509_KEY_ALGORITHM`, `X509_CSR_SIGNATURE_ALGORITHM`,
 * `X509_CSR_SIGNATURE`.
 */
export function parseCsr(pem: string, place: string): CertificateRequest {
  const [block] = parsePem(pem, place, LIMITS);
  if (block === undefined || !/^(NEW )?CERTIFICATE REQUEST$/.test(block.label)) {
    throw x509Error("X509_PEM", `${place} is a ${block?.label ?? "nothing"}, not a certificate request`);
  }
  const { der } = block;
  const outer = new DerCursor(der);
  const request = outer.enter(outer.take(TAG.sequence, "certificate request"));
  outer.finish("certificate request");
  const info = request.take(TAG.sequence, "certificationRequestInfo");
  const algorithm = request.take(TAG.sequence, "signatureAlgorithm");
  const signature = request.take(TAG.bitString, "signature");
  request.finish("certificate request");
  const { publicKeySpki, requestedUris } = readInfo(der, request.enter(info));
  const publicKey = readPublicKey(publicKeySpki, place);
  const keyAlgorithm = algorithmOf(publicKey, place);
  const { hash, key } = readSignatureAlgorithm(der, request.enter(algorithm));
  if ((key === "rsa") !== (keyAlgorithm === "rsa")) {
    throw x509Error("X509_CSR_SIGNATURE_ALGORITHM", `the signature of ${place} does not fit its key`);
  }
  if (!isSignedBy(publicKey, { hash, data: wholeOf(der, info), signature: contentOf(der, signature) })) {
    throw x509Error("X509_CSR_SIGNATURE", `the signature of ${place} is not that of the key in it`);
  }
  return { algorithm: keyAlgorithm, publicKeySpki, requestedUris };
}

function readInfo(der: Uint8Array, info: DerCursor): { publicKeySpki: Uint8Array; requestedUris: readonly string[] } {
  if (!contentEquals(der, info.take(TAG.integer, "version"), [0])) throw malformed("version", "it is not 0");
  info.take(TAG.sequence, "subject");
  const publicKeySpki = wholeOf(der, info.take(TAG.sequence, "subjectPublicKeyInfo"));
  const attributes = info.takeIf(0xa0, "attributes");
  info.finish("certificationRequestInfo");
  if (attributes === undefined) return { publicKeySpki, requestedUris: [] };
  const list = info.enter(attributes);
  let extensions: DerElement | undefined;
  while (!list.done) {
    const attribute = list.enter(list.take(TAG.sequence, "attribute"));
    const type = attribute.take(TAG.oid, "attribute type");
    const values = attribute.take(TAG.set, "attribute values");
    attribute.finish("attribute");
    if (!contentEquals(der, type, EXTENSION_REQUEST)) continue;
    if (extensions !== undefined) throw malformed("attributes", "extensions are requested twice");
    const inside = attribute.enter(values);
    extensions = inside.take(TAG.sequence, "requested extensions");
    inside.finish("requested extensions");
  }
  return { publicKeySpki, requestedUris: readExtensions(der, extensions).uris };
}

function readPublicKey(spki: Uint8Array, place: string): KeyObject {
  // A curve must be named: OpenSSL takes one that is spelled out for the named one, and verifiers refuse such certificates
  // (or, worse, believe a generator of the attacker's choice, CVE-2020-0601).
  const outer = new DerCursor(spki);
  const algorithm = outer.enter(outer.take(TAG.sequence, "subjectPublicKeyInfo")).take(TAG.sequence, "key algorithm");
  const fields = outer.enter(algorithm);
  fields.take(TAG.oid, "key algorithm");
  if (fields.peekTag === TAG.sequence) {
    throw x509Error("X509_KEY_ALGORITHM", `the key in ${place} spells its parameters out`, { details: { place } });
  }
  try {
    return createPublicKey({ key: Buffer.from(spki), format: "der", type: "spki" });
  } catch (cause) {
    throw x509Error("X509_KEY_ALGORITHM", `the key in ${place} cannot be read`, { cause, details: { place } });
  }
}

function readSignatureAlgorithm(der: Uint8Array, fields: DerCursor): SignatureAlgorithm {
  const known = findSignatureAlgorithm(der, fields);
  if (known !== undefined) return known;
  throw x509Error(
    "X509_CSR_SIGNATURE_ALGORITHM",
    "a certificate request is signed with an algorithm that is not accepted",
  );
}
