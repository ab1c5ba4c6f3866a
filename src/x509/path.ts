import type { Certificate } from "./certificate.ts";
import { x509Error } from "./errors.ts";
import { KEY_USAGE } from "./extensions.ts";

/**
 * Follows a chain (leaf first) to one of `roots` and checks signatures, lives, CA flags and path lengths on the way. For what
 * an authority is about to use or a node has been given; peers are verified by OpenSSL in the handshake. `place` names the
 * chain in messages. Throws `X509_CHAIN_EMPTY`, `X509_CHAIN_BROKEN`, `X509_NOT_A_CA`, `X509_NOT_YET_VALID`, `X509_EXPIRED`.
 */
export function verifyPath(
  chain: readonly Certificate[],
  roots: readonly Certificate[],
  { nowMs, place }: { nowMs: number; place: string },
): void {
  const leaf = chain[0];
  if (leaf === undefined) throw x509Error("X509_CHAIN_EMPTY", `${place} holds no certificate`, { details: { place } });
  checkLife(leaf, nowMs);
  for (const [i, certificate] of chain.entries()) {
    const next = chain[i + 1];
    const candidates = next === undefined ? roots : [next];
    const issuer = candidates.find((candidate) => isIssuer(candidate, certificate));
    if (issuer === undefined) {
      const by = next === undefined ? `any of ${roots.length} trusted roots` : next.label;
      throw x509Error("X509_CHAIN_BROKEN", `in ${place}, ${certificate.label} was not signed by ${by}`, {
        details: { place },
      });
    }
    checkAuthority(issuer, i);
    checkLife(issuer, nowMs);
  }
}

/** Throws `X509_NOT_YET_VALID` or `X509_EXPIRED`, with the distance to this machine's clock, since a clock is often the cause. */
export function checkLife(certificate: Certificate, nowMs: number): void {
  const { notBeforeMs, notAfterMs, label } = certificate;
  const details = { certificate: label, nowMs, notBeforeMs, notAfterMs };
  const now = new Date(nowMs).toISOString();
  if (nowMs < notBeforeMs) {
    const behind = formatDistance(notBeforeMs - nowMs);
    throw x509Error(
      "X509_NOT_YET_VALID",
      `${label} is valid from ${new Date(notBeforeMs).toISOString()}, and this machine's clock says ${now}: it is behind by ${behind} or more`,
      { details },
    );
  }
  if (nowMs >= notAfterMs) {
    const ago = formatDistance(nowMs - notAfterMs);
    throw x509Error(
      "X509_EXPIRED",
      `${label} was valid until ${new Date(notAfterMs).toISOString()}, and this machine's clock says ${now}, ${ago} later`,
      { details },
    );
  }
}

function isIssuer(issuer: Certificate, certificate: Certificate): boolean {
  return certificate.openssl.checkIssued(issuer.openssl) && certificate.openssl.verify(issuer.openssl.publicKey);
}

function checkAuthority({ extensions, label }: Certificate, intermediatesBelow: number): void {
  const { isCa, keyUsage, pathLength } = extensions;
  const why = !isCa
    ? "it lacks the CA flag"
    : keyUsage !== undefined && (keyUsage & KEY_USAGE.keyCertSign) === 0
      ? "it lacks the key usage keyCertSign"
      : pathLength !== undefined && pathLength < intermediatesBelow
        ? "its path length is exceeded"
        : undefined;
  if (why !== undefined) throw x509Error("X509_NOT_A_CA", `${label} may not sign certificates: ${why}`);
}

function formatDistance(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}
