import { parseSpiffeId, trustDomainOf, type SpiffeId } from "#model/spiffe-id";
import { x509Error } from "./errors.ts";
import { findCertificateParts, KEY_USAGE, readExtensions, type Extensions } from "./extensions.ts";

/** Whom a connection accepts at its other end. */
export interface PeerExpectation {
  /** Ours; the peer's must be equal. */
  readonly trustDomain: string;
  /** The identities that may answer here. Undefined: any of the trust domain. Empty: none. */
  readonly accepted?: readonly SpiffeId[] | undefined;
}

const LARGEST_LEAF_BYTES = 64 * 1024;

/**
 * Judges the certificate that a peer presented, after OpenSSL has verified its chain and its life, and returns whose it is.
 * These are the checks of X509-SVID §5 that TLS libraries leave out (OpenSSL accepts two URI SANs and keyCertSign in a leaf).
 * Call it on both sides, on the DER that the session holds, before any byte of the connection passes.
 * Fails closed: whatever cannot be read is a refusal. Throws a distinct `X509_*` code for each rule.
 */
export function checkPeerLeaf(der: Uint8Array, expected: PeerExpectation): SpiffeId {
  if (der.length > LARGEST_LEAF_BYTES) {
    throw x509Error(
      "X509_TOO_LARGE",
      `the peer's certificate has ${der.length} bytes, at most ${LARGEST_LEAF_BYTES} are read`,
    );
  }
  const extensions = readExtensions(der, findCertificateParts(der).extensions);
  checkNoAuthority(extensions);
  const id = readWorkloadId(extensions);
  checkUsages(extensions, id);
  checkExpectation(id, expected);
  return id;
}

function checkNoAuthority({ isCa, keyUsage = 0 }: Extensions): void {
  if (isCa) throw x509Error("X509_CA_AS_LEAF", "the peer presents an authority's certificate as its own");
  if ((keyUsage & KEY_USAGE.keyCertSign) !== 0) {
    throw x509Error("X509_LEAF_SIGNS_CERTIFICATES", "the peer's certificate has the key usage keyCertSign");
  }
  if ((keyUsage & KEY_USAGE.cRLSign) !== 0) {
    throw x509Error("X509_LEAF_SIGNS_CRLS", "the peer's certificate has the key usage cRLSign");
  }
}

function readWorkloadId({ uris }: Extensions): SpiffeId {
  const [uri, second] = uris;
  if (uri === undefined) throw x509Error("X509_NO_URI_SAN", "the peer's certificate has no URI SAN");
  if (second !== undefined) {
    throw x509Error("X509_TWO_URI_SANS", `the peer's certificate has ${uris.length} URI SANs, exactly one is allowed`);
  }
  let id: SpiffeId;
  try {
    id = parseSpiffeId(uri);
  } catch (cause) {
    throw x509Error("X509_BAD_SPIFFE_ID", "the URI SAN of the peer's certificate is no SPIFFE ID", { cause });
  }
  if (id.length === "spiffe://".length + trustDomainOf(id).length) {
    throw x509Error(
      "X509_BAD_SPIFFE_ID",
      `the URI SAN of the peer's certificate, ${id}, has no path: it names no workload`,
    );
  }
  return id;
}

function checkUsages({ keyUsage = 0, extendedKeyUsage }: Extensions, id: SpiffeId): void {
  if ((keyUsage & KEY_USAGE.digitalSignature) === 0) {
    throw x509Error("X509_NO_DIGITAL_SIGNATURE", `the certificate of ${id} has no key usage digitalSignature`);
  }
  if (extendedKeyUsage !== undefined && !(extendedKeyUsage.serverAuth && extendedKeyUsage.clientAuth)) {
    throw x509Error("X509_EXTENDED_KEY_USAGE", `the certificate of ${id} is not for both serverAuth and clientAuth`);
  }
}

function checkExpectation(id: SpiffeId, { trustDomain, accepted }: PeerExpectation): void {
  if (trustDomainOf(id) !== trustDomain) {
    throw x509Error("X509_WRONG_TRUST_DOMAIN", `the peer is ${id}, not of trust domain ${trustDomain}`, {
      details: { peer: id, trustDomain },
    });
  }
  if (accepted !== undefined && !accepted.includes(id)) {
    const wanted = accepted.length === 0 ? "nobody" : accepted.slice(0, 8).join(" or ");
    throw x509Error("X509_UNEXPECTED_IDENTITY", `the peer is ${id}, expected was ${wanted}`, { details: { peer: id } });
  }
}
