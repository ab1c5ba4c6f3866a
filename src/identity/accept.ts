import { CodedError } from "#base/errors";
import { trustDomainOf, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import {
  checkKeyBelongs,
  checkLife,
  checkPeerLeaf,
  formatPrivateKey,
  parseCertificates,
  parsePrivateKey,
  verifyPath,
  type Certificate,
  type KeyPair,
} from "#x509";
import { identityError } from "./errors.ts";

/** A certificate that may be used, and since when. */
export interface AcceptedIdentity {
  readonly identity: TlsIdentity;
  readonly notBeforeMs: number;
}

/**
 * Judges what an authority answered: the leaf must be for `id` and for our key, verify to the roots beside it, and be valid now.
 * Throws `IDENTITY_BAD_ANSWER`, or, when only the time is wrong, `IDENTITY_CLOCK_BEHIND` or `IDENTITY_CLOCK_AHEAD`.
 */
export function acceptAnswer(
  answer: readonly string[],
  expected: { readonly id: SpiffeId; readonly keyPair: KeyPair; readonly nowMs: number },
): AcceptedIdentity {
  const { id, keyPair, nowMs } = expected;
  try {
    const rootsPem = answer.at(-1) ?? "";
    const chainPem = answer.slice(0, -1).map(endLine).join("");
    const { chain, roots, accepted } = judge(
      { chainPem, keyPem: formatPrivateKey(keyPair), rootsPem: endLine(rootsPem) },
      { id, keyPair, nowMs },
    );
    verifyPath(chain, roots, { nowMs, place: `the chain for ${id}` });
    return accepted;
  } catch (cause) {
    const code = TIME_CODES.get(cause instanceof CodedError ? cause.code : "") ?? "IDENTITY_BAD_ANSWER";
    const why = cause instanceof Error ? cause.message : "unreadable";
    throw identityError(code, `the authority's answer for ${id} cannot be used: ${why}`, {
      cause,
      details: { identity: id },
    });
  }
}

/**
 * Judges what the agent sent to the proxy: the leaf must be for `id` and for the key beside it, and be valid now. Whether it
 * verifies to the roots beside it is for the peers to find out: a root that was withdrawn must reach the proxy at once, also when
 * our own certificate still hangs on it. Throws `IDENTITY_BAD_UPDATE`.
 */
export function acceptUpdate(
  update: { readonly chainPem: string; readonly keyPem: string; readonly rootsPem: string },
  { id, nowMs }: { id: SpiffeId; nowMs: number },
): AcceptedIdentity {
  try {
    return judge(update, { id, keyPair: parsePrivateKey(update.keyPem, "the agent's update"), nowMs }).accepted;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : "unreadable";
    throw identityError("IDENTITY_BAD_UPDATE", `the agent's certificate for ${id} cannot be used: ${why}`, { cause });
  }
}

const TIME_CODES = new Map([
  ["X509_NOT_YET_VALID", "IDENTITY_CLOCK_BEHIND"],
  ["X509_EXPIRED", "IDENTITY_CLOCK_AHEAD"],
] as const satisfies [string, Parameters<typeof identityError>[0]][]) as ReadonlyMap<
  string,
  Parameters<typeof identityError>[0]
>; // widened so that any code can be looked up

/** True when the certificate at hand verifies to these roots at this time. */
export function verifiesTo(identity: TlsIdentity, rootsPem: string, nowMs: number): boolean {
  try {
    const place = `the chain for ${identity.id}`;
    verifyPath(parseCertificates(identity.chainPem, place), parseCertificates(rootsPem, "the roots"), { nowMs, place });
    return true;
  } catch {
    return false;
  }
}

function judge(
  pem: { readonly chainPem: string; readonly keyPem: string; readonly rootsPem: string },
  { id, keyPair, nowMs }: { id: SpiffeId; keyPair: KeyPair; nowMs: number },
): { chain: readonly Certificate[]; roots: readonly Certificate[]; accepted: AcceptedIdentity } {
  const chain = parseCertificates(pem.chainPem, `the chain for ${id}`);
  const roots = parseCertificates(pem.rootsPem, `the roots for ${id}`);
  const [leaf] = chain;
  if (leaf === undefined) throw new Error("it holds no leaf");
  checkPeerLeaf(leaf.der, { trustDomain: trustDomainOf(id), accepted: [id] });
  checkKeyBelongs(leaf.openssl, keyPair, `the chain for ${id}`);
  checkLife(leaf, nowMs);
  const { chainPem, keyPem, rootsPem } = pem;
  const { notBeforeMs, notAfterMs } = leaf;
  const identity = { id, chainPem, keyPem, rootsPem, notAfterMs };
  return { chain, roots, accepted: { identity, notBeforeMs } };
}

function endLine(pem: string): string {
  return pem.endsWith("\n") ? pem : `${pem}\n`;
}
