import type { KeyObject } from "node:crypto";
import { contentEquals, contentOf, DerCursor, malformed, TAG, wholeOf, type DerElement } from "./der.ts";
import { x509Error } from "./errors.ts";
import { parsePem } from "./pem.ts";
import { findSignatureAlgorithm, isSignedBy, type SignatureAlgorithm } from "./signature.ts";

/** A certificate revocation list (RFC 5280 §5). Whose it really is, only {@link Crl.isSignedBy} tells. */
export interface Crl {
  readonly der: Uint8Array;
  /** The issuer's name in DER, as lower-case hex. */
  readonly issuer: string;
  /** Serial numbers of revoked certificates, as lower-case hex without leading zeros. */
  readonly serials: ReadonlySet<string>;
  isSignedBy(publicKey: KeyObject): boolean;
}

/** Larger files are refused before they are read. */
export const MAX_CRL_BYTES = 16 * 1024 * 1024;
const LIMITS = { mostBytes: MAX_CRL_BYTES, mostBlocks: 1024 };
const MOST_EXTENSIONS = 64;
const UTC_TIME = 0x17;
const GENERALIZED_TIME = 0x18;

/**
 * Reads a file of revocation lists: PEM with any number of blocks (other blocks are passed over), or one in DER. An empty
 * file holds none. Throws `X509_PEM`, `X509_DER`, `X509_TOO_LARGE`, `X509_CRL_UNSUPPORTED`.
 */
export function parseCrls(bytes: Uint8Array, place: string): readonly Crl[] {
  if (bytes.length > MAX_CRL_BYTES) {
    throw x509Error("X509_TOO_LARGE", `${place} has ${bytes.length} bytes, at most ${MAX_CRL_BYTES} are read`);
  }
  if (bytes[0] === TAG.sequence) return [decodeCrl(bytes)];
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
  if (text.trim() === "") return [];
  return parsePem(text, place, LIMITS).flatMap(({ label, der }) => (label === "X509 CRL" ? [decodeCrl(der)] : []));
}

/** Reads one list in DER. Its dates are not looked at: one that has expired still says what was revoked. Throws as {@link parseCrls}. */
export function decodeCrl(der: Uint8Array): Crl {
  const outer = new DerCursor(der);
  const list = outer.enter(outer.take(TAG.sequence, "revocation list"));
  outer.finish("revocation list");
  const tbs = list.take(TAG.sequence, "tbsCertList");
  const algorithm = findSignatureAlgorithm(der, list.enter(list.take(TAG.sequence, "signatureAlgorithm")));
  const signature = list.take(TAG.bitString, "signature");
  list.finish("revocation list");
  if (algorithm === undefined) throw unsupported("its signature algorithm is not accepted");
  const { issuer, serials } = readList(der, list.enter(tbs));
  const signed = { hash: algorithm.hash, data: wholeOf(der, tbs), signature: contentOf(der, signature) };
  return {
    der,
    issuer: hex(wholeOf(der, issuer)),
    serials,
    isSignedBy: (key) => fits(algorithm, key) && isSignedBy(key, signed),
  };
}

/** The serial number of a certificate as {@link Crl.serials} has it. */
export function serialKey(serialNumber: string): string {
  return serialNumber.toLowerCase().replace(/^0+(?=.)/, "");
}

function fits({ key }: SignatureAlgorithm, { asymmetricKeyType }: KeyObject): boolean {
  return asymmetricKeyType === key;
}

function readList(der: Uint8Array, fields: DerCursor): { issuer: DerElement; serials: ReadonlySet<string> } {
  fields.takeIf(TAG.integer, "version");
  fields.take(TAG.sequence, "signature algorithm");
  const issuer = fields.take(TAG.sequence, "issuer");
  takeTime(fields, "thisUpdate");
  if (fields.peekTag === UTC_TIME || fields.peekTag === GENERALIZED_TIME) takeTime(fields, "nextUpdate");
  const revoked = fields.takeIf(TAG.sequence, "revokedCertificates");
  const wrapper = fields.takeIf(0xa0, "crlExtensions");
  fields.finish("tbsCertList");
  if (wrapper !== undefined) {
    const inside = fields.enter(wrapper);
    refuseCritical(der, inside.enter(inside.take(TAG.sequence, "crlExtensions")));
    inside.finish("crlExtensions");
  }
  return { issuer, serials: revoked === undefined ? new Set() : readSerials(der, fields.enter(revoked)) };
}

function readSerials(der: Uint8Array, entries: DerCursor): ReadonlySet<string> {
  const serials = new Set<string>();
  while (!entries.done) {
    const entry = entries.enter(entries.take(TAG.sequence, "revoked certificate"));
    serials.add(serialKey(hex(contentOf(der, entry.take(TAG.integer, "serial number")))));
    takeTime(entry, "revocationDate");
    const extensions = entry.takeIf(TAG.sequence, "crlEntryExtensions");
    entry.finish("revoked certificate");
    if (extensions !== undefined) refuseCritical(der, entry.enter(extensions));
  }
  return serials;
}

/** Deltas, lists of some reasons or of other issuers say so by a critical extension: taken for a whole list they would mislead. */
function refuseCritical(der: Uint8Array, list: DerCursor): void {
  for (let count = 0; !list.done; count++) {
    if (count >= MOST_EXTENSIONS) throw malformed("extensions", `there are more than ${MOST_EXTENSIONS}`);
    const fields = list.enter(list.take(TAG.sequence, "extension"));
    fields.take(TAG.oid, "extension identifier");
    const critical = fields.takeIf(TAG.boolean, "extension criticality");
    fields.take(TAG.octetString, "extension value");
    fields.finish("extension");
    if (critical !== undefined && !contentEquals(der, critical, [0])) throw unsupported("it has a critical extension");
  }
}

function takeTime(fields: DerCursor, what: string): void {
  const { tag } = fields.takeAny(what);
  if (tag !== UTC_TIME && tag !== GENERALIZED_TIME) throw malformed(what, "it is no time");
}

function unsupported(why: string): Error {
  return x509Error("X509_CRL_UNSUPPORTED", `a revocation list cannot be used: ${why}`);
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}
