import { X509Certificate } from "node:crypto";
import { messageOf } from "#base/errors";
import { malformed } from "./der.ts";
import { x509Error } from "./errors.ts";
import { findCertificateParts, readExtensions, type Extensions } from "./extensions.ts";
import { formatPem, parsePem } from "./pem.ts";

/** A certificate that was read: by our own reader and by OpenSSL, which must both accept it. */
export interface Certificate {
  readonly der: Uint8Array;
  /** One PEM block, ending in a newline. */
  readonly pem: string;
  /** OpenSSL's view, for signatures and names. */
  readonly openssl: X509Certificate;
  readonly extensions: Extensions;
  /** Milliseconds since the epoch. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** For messages: the common name, or the first URI or DNS name. */
  readonly label: string;
}

const LIMITS = { mostBytes: 512 * 1024, mostBlocks: 64 };

/**
 * Reads all certificates of a PEM text, in order. Throws `X509_PEM`, `X509_DER`, `X509_TOO_LARGE`,
 * `X509_DUPLICATE_EXTENSION`; `place` (a file, `Secret veil-system/veil-ca key root-cert.pem`) is named in the message.
 */
export function parseCertificates(pem: string, place: string): readonly Certificate[] {
  return parsePem(pem, place, LIMITS).map(({ label, der }, i) => {
    if (label !== "CERTIFICATE" && label !== "X509 CERTIFICATE" && label !== "TRUSTED CERTIFICATE") {
      throw x509Error("X509_PEM", `block ${i + 1} of ${place} is a ${label}, not a certificate`, {
        details: { place },
      });
    }
    return decodeCertificate(der, `certificate ${i + 1} of ${place}`);
  });
}

/** Reads one certificate in DER. Throws as {@link parseCertificates} does. */
export function decodeCertificate(der: Uint8Array, place: string): Certificate {
  const extensions = readExtensions(der, findCertificateParts(der).extensions);
  let openssl: X509Certificate;
  try {
    openssl = new X509Certificate(der);
  } catch (cause) {
    throw malformed(place, messageOf(cause));
  }
  const notBeforeMs = openssl.validFromDate.getTime();
  const notAfterMs = openssl.validToDate.getTime();
  if (!Number.isFinite(notBeforeMs) || !Number.isFinite(notAfterMs)) throw malformed(place, "its validity is no time");
  return {
    der,
    pem: formatPem("CERTIFICATE", der),
    openssl,
    extensions,
    notBeforeMs,
    notAfterMs,
    label: labelOf(openssl, extensions),
  };
}

/** Certificates as one PEM text. */
export function formatCertificates(certificates: readonly Certificate[]): string {
  return certificates.map(({ pem }) => pem).join("");
}

function labelOf(openssl: X509Certificate, extensions: Extensions): string {
  const commonName = /^CN=(.*)$/m.exec(openssl.subject ?? "")?.[1];
  return commonName ?? extensions.uris[0] ?? extensions.dnsNames[0] ?? `serial ${openssl.serialNumber}`;
}
