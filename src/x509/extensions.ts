import { contentEquals, contentOf, DerCursor, latin1Of, malformed, TAG, type DerElement } from "./der.ts";
import { x509Error } from "./errors.ts";

/** Bits of the key usage extension (RFC 5280 §4.2.1.3), first octet. */
export const KEY_USAGE = { digitalSignature: 0x80, keyCertSign: 0x04, cRLSign: 0x02 } as const;

/** What the extensions of a certificate (or of a request) say, as far as Veil acts on it. */
export interface Extensions {
  readonly isCa: boolean;
  /** How many intermediates may follow; undefined: any number. */
  readonly pathLength: number | undefined;
  /** First octet of the key usage; undefined when the extension is missing. */
  readonly keyUsage: number | undefined;
  /** Undefined when the extension is missing. */
  readonly extendedKeyUsage: { readonly serverAuth: boolean; readonly clientAuth: boolean } | undefined;
  /** All URIs among the subject alternative names, byte for byte (one character per byte). */
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
  /** Lower-case hex; undefined when the extension is missing. */
  readonly subjectKeyId: string | undefined;
}

const NO_EXTENSIONS: Extensions = {
  isCa: false,
  pathLength: undefined,
  keyUsage: undefined,
  extendedKeyUsage: undefined,
  uris: [],
  dnsNames: [],
  subjectKeyId: undefined,
};

const ID_CE = [0x55, 0x1d] as const; // 2.5.29
const SUBJECT_KEY_ID = 14;
const SAN = 17;
const BASIC_CONSTRAINTS = 19;
const KEY_USAGE_EXTENSION = 15;
const EXTENDED_KEY_USAGE = 37;
const SERVER_AUTH = [0x2b, 6, 1, 5, 5, 7, 3, 1]; // 1.3.6.1.5.5.7.3.1
const CLIENT_AUTH = [0x2b, 6, 1, 5, 5, 7, 3, 2];
const MOST_EXTENSIONS = 64;
const MOST_NAMES = 256;

/** Where the parts of a certificate lie; the input of everything else in this file. */
export interface CertificateParts {
  readonly tbs: DerElement;
  readonly issuer: DerElement;
  readonly subject: DerElement;
  readonly publicKey: DerElement;
  readonly extensions: DerElement | undefined;
}

/** Finds the parts of a certificate (RFC 5280 §4.1). Throws `X509_DER`. */
export function findCertificateParts(der: Uint8Array): CertificateParts {
  const outer = new DerCursor(der);
  const certificate = outer.enter(outer.take(TAG.sequence, "certificate"));
  outer.finish("certificate");
  const tbs = certificate.take(TAG.sequence, "tbsCertificate");
  certificate.take(TAG.sequence, "signatureAlgorithm");
  certificate.take(TAG.bitString, "signature");
  certificate.finish("certificate");
  const fields = certificate.enter(tbs);
  fields.takeIf(0xa0, "version");
  fields.take(TAG.integer, "serialNumber");
  fields.take(TAG.sequence, "signature algorithm");
  const issuer = fields.take(TAG.sequence, "issuer");
  fields.take(TAG.sequence, "validity");
  const subject = fields.take(TAG.sequence, "subject");
  const publicKey = fields.take(TAG.sequence, "subjectPublicKeyInfo");
  fields.takeIf(0x81, "issuerUniqueID");
  fields.takeIf(0x82, "subjectUniqueID");
  const wrapper = fields.takeIf(0xa3, "extensions");
  fields.finish("tbsCertificate");
  if (wrapper === undefined) return { tbs, issuer, subject, publicKey, extensions: undefined };
  const inside = fields.enter(wrapper);
  const extensions = inside.take(TAG.sequence, "extensions");
  inside.finish("extensions");
  return { tbs, issuer, subject, publicKey, extensions };
}

/** Reads the extensions that Veil acts on. Throws `X509_DER`, `X509_DUPLICATE_EXTENSION`. Others are OpenSSL's to judge. */
export function readExtensions(der: Uint8Array, list: DerElement | undefined): Extensions {
  if (list === undefined) return NO_EXTENSIONS;
  const cursor = new DerCursor(der, list);
  const found = { ...NO_EXTENSIONS };
  const seen = new Set<string>();
  while (!cursor.done) {
    const fields = cursor.enter(cursor.take(TAG.sequence, "extension"));
    const oid = fields.take(TAG.oid, "extension identifier");
    fields.takeIf(TAG.boolean, "extension criticality");
    const value = fields.take(TAG.octetString, "extension value");
    fields.finish("extension");
    const name = latin1Of(der, oid);
    if (seen.has(name)) throw x509Error("X509_DUPLICATE_EXTENSION", "a certificate carries one extension twice");
    seen.add(name);
    if (seen.size > MOST_EXTENSIONS) throw malformed("extensions", `there are more than ${MOST_EXTENSIONS}`);
    Object.assign(found, readKnown(der, oid, value));
  }
  return found;
}

function readKnown(der: Uint8Array, oid: DerElement, value: DerElement): Partial<Extensions> {
  const number = der[oid.start + 2] ?? -1;
  if (!contentEquals(der, oid, [...ID_CE, number])) return {};
  const cursor = new DerCursor(der, value);
  switch (number) {
    case SUBJECT_KEY_ID:
      return {
        subjectKeyId: Buffer.from(contentOf(der, cursor.take(TAG.octetString, "subjectKeyIdentifier"))).toString("hex"),
      };
    case SAN:
      return readNames(der, cursor);
    case BASIC_CONSTRAINTS:
      return readBasicConstraints(der, cursor);
    case KEY_USAGE_EXTENSION:
      return readKeyUsage(der, cursor);
    case EXTENDED_KEY_USAGE:
      return readExtendedKeyUsage(der, cursor);
    default:
      return {};
  }
}

function readNames(der: Uint8Array, value: DerCursor): Pick<Extensions, "uris" | "dnsNames"> {
  const names = value.enter(value.take(TAG.sequence, "subjectAltName"));
  value.finish("subjectAltName");
  const uris: string[] = [];
  const dnsNames: string[] = [];
  for (let count = 0; !names.done; count++) {
    if (count >= MOST_NAMES) throw malformed("subjectAltName", `it has more than ${MOST_NAMES} names`);
    const name = names.takeAny("name in subjectAltName");
    if (name.tag === 0x86) uris.push(latin1Of(der, name));
    if (name.tag === 0x82) dnsNames.push(latin1Of(der, name));
  }
  return { uris, dnsNames };
}

function readBasicConstraints(der: Uint8Array, value: DerCursor): Pick<Extensions, "isCa" | "pathLength"> {
  const fields = value.enter(value.take(TAG.sequence, "basicConstraints"));
  value.finish("basicConstraints");
  const flag = fields.takeIf(TAG.boolean, "cA");
  const length = fields.takeIf(TAG.integer, "pathLenConstraint");
  fields.finish("basicConstraints");
  // Anything but FALSE counts as an authority: a reader that is laxer than OpenSSL must err on that side.
  const isCa = flag !== undefined && !contentEquals(der, flag, [0]);
  if (length === undefined) return { isCa, pathLength: undefined };
  if (length.end - length.start !== 1) throw malformed("pathLenConstraint", "it is not a small number");
  return { isCa, pathLength: der[length.start] ?? 0 };
}

function readKeyUsage(der: Uint8Array, value: DerCursor): Pick<Extensions, "keyUsage"> {
  const bits = value.take(TAG.bitString, "keyUsage");
  value.finish("keyUsage");
  if (bits.end - bits.start < 1 || bits.end - bits.start > 3) throw malformed("keyUsage", "it has a wrong size");
  return { keyUsage: bits.end - bits.start === 1 ? 0 : (der[bits.start + 1] ?? 0) };
}

function readExtendedKeyUsage(der: Uint8Array, value: DerCursor): Pick<Extensions, "extendedKeyUsage"> {
  const purposes = value.enter(value.take(TAG.sequence, "extKeyUsage"));
  value.finish("extKeyUsage");
  let serverAuth = false;
  let clientAuth = false;
  for (let count = 0; !purposes.done; count++) {
    if (count >= MOST_EXTENSIONS) throw malformed("extKeyUsage", `it has more than ${MOST_EXTENSIONS} purposes`);
    const purpose = purposes.take(TAG.oid, "purpose in extKeyUsage");
    serverAuth ||= contentEquals(der, purpose, SERVER_AUTH);
    clientAuth ||= contentEquals(der, purpose, CLIENT_AUTH);
  }
  return { extendedKeyUsage: { serverAuth, clientAuth } };
}
