import type { X509Certificate } from "node:crypto";
import { serialKey, type Crl } from "./crl.ts";
import { wholeOf } from "./der.ts";
import { findCertificateParts, KEY_USAGE, readExtensions } from "./extensions.ts";

/** Certificates beside the leaf that are looked at, and how long a path may be. */
const MOST_CANDIDATES = 128;
const LONGEST_PATH = 8;

/** A verified path: the leaf, its issuers, a trusted root. */
export type VerifiedPath = readonly X509Certificate[];

/**
 * The path from a peer's certificate to a trusted root, among what it presented (leaf first); undefined when there is none.
 * Certificates that were presented and do not belong to it are left out. Signatures, names and CA flags are checked;
 * lives are not: this is for peers that OpenSSL has accepted, also long after.
 */
export function findPath(
  presented: readonly X509Certificate[],
  roots: readonly X509Certificate[],
): VerifiedPath | undefined {
  const [leaf, ...others] = presented;
  return leaf && extend([leaf], others.slice(0, MOST_CANDIDATES), roots);
}

function extend(
  path: VerifiedPath,
  candidates: readonly X509Certificate[],
  roots: readonly X509Certificate[],
): VerifiedPath | undefined {
  const last = path.at(-1);
  if (last === undefined || path.length > LONGEST_PATH) return undefined;
  const root = roots.find((candidate) => isIssuer(candidate, last));
  if (root !== undefined) return [...path, root];
  for (const candidate of candidates) {
    if (path.includes(candidate) || !isIssuer(candidate, last)) continue;
    const found = extend([...path, candidate], candidates, roots);
    if (found !== undefined) return found;
  }
  return undefined;
}

function isIssuer(issuer: X509Certificate, certificate: X509Certificate): boolean {
  return issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
}

/** The revocation lists in force. */
export class RevocationLists {
  readonly #byIssuer = new Map<string, { readonly crl: Crl; readonly signers: Map<string, boolean> }[]>();
  readonly size: number;

  constructor(crls: readonly Crl[]) {
    this.size = crls.length;
    for (const crl of crls) {
      const known = this.#byIssuer.get(crl.issuer) ?? [];
      this.#byIssuer.set(crl.issuer, [...known, { crl, signers: new Map() }]);
    }
  }

  /**
   * The certificate of a path that its issuer has revoked, the leaf first; undefined when there is none. A certificate
   * whose issuer has no list here is not revoked. A list counts only for the issuer that has signed it: another authority
   * of the same name says nothing about this one's certificates.
   */
  findRevoked(path: VerifiedPath): X509Certificate | undefined {
    if (this.size === 0) return undefined;
    return path.find((certificate, i) => {
      const issuer = path[i + 1];
      return issuer !== undefined && this.#isRevokedBy(certificate, issuer);
    });
  }

  /**
   * For a leaf whose issuer is not known: true when it may be revoked, because a list in its issuer's name (whoever signed
   * it) has its number, or because one of `roots` has revoked something, which may be its issuer.
   */
  mayHaveRevoked(leaf: X509Certificate, roots: readonly X509Certificate[]): boolean {
    const named = this.#byIssuer.get(issuerOf(leaf))?.some(({ crl }) => crl.serials.has(serialKey(leaf.serialNumber)));
    const byRoot = roots.some((root) => this.#byIssuer.get(subjectOf(root))?.some(({ crl }) => crl.serials.size > 0));
    return named === true || byRoot;
  }

  #isRevokedBy(certificate: X509Certificate, issuer: X509Certificate): boolean {
    const lists = this.#byIssuer.get(subjectOf(issuer)) ?? [];
    return lists.some(({ crl, signers }) => {
      if (!crl.serials.has(serialKey(certificate.serialNumber))) return false;
      const key = issuer.fingerprint256;
      let isOwn = signers.get(key);
      if (isOwn === undefined) {
        isOwn = maySignLists(issuer) && crl.isSignedBy(issuer.publicKey);
        signers.set(key, isOwn); // bounded: only authorities of verified paths get here
      }
      return isOwn;
    });
  }
}

/** The subject's name in DER, as a list has its issuer's. */
function subjectOf({ raw }: X509Certificate): string {
  return Buffer.from(wholeOf(raw, findCertificateParts(raw).subject)).toString("hex");
}

/** The issuer's name in DER, likewise. */
function issuerOf({ raw }: X509Certificate): string {
  return Buffer.from(wholeOf(raw, findCertificateParts(raw).issuer)).toString("hex");
}

/** RFC 5280 §6.3.3 (f): an authority with a key usage needs cRLSign in it. */
function maySignLists({ raw }: X509Certificate): boolean {
  const { keyUsage } = readExtensions(raw, findCertificateParts(raw).extensions);
  return keyUsage === undefined || (keyUsage & KEY_USAGE.cRLSign) !== 0;
}
