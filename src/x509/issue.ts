import { createHash } from "node:crypto";
import type * as peculiar from "@peculiar/x509";
import { systemRandom } from "#base/random";
import type { SpiffeId } from "#model/spiffe-id";
import { decodeCertificate, type Certificate } from "./certificate.ts";
import { contentOf, DerCursor, TAG, wholeOf } from "./der.ts";
import { derBitString, derSequence } from "./der-write.ts";
import { x509Error } from "./errors.ts";
import type { KeyAlgorithm, Signer } from "./keys.ts";

/** What a certificate is for. Authorities carry their trust domain's ID, as X509-SVID §3 asks. */
export type CertificatePurpose =
  | { readonly kind: "root"; readonly commonName: string; readonly trustDomain: string }
  | { readonly kind: "intermediate"; readonly commonName: string; readonly trustDomain: string }
  | { readonly kind: "workload"; readonly id: SpiffeId }
  | { readonly kind: "server"; readonly dnsNames: readonly string[] };

/** A certificate to be issued. */
export interface IssueOptions {
  readonly purpose: CertificatePurpose;
  /** Whose certificate it is: SubjectPublicKeyInfo in DER. */
  readonly publicKeySpki: Uint8Array;
  /** Who signs. `certificate` is undefined for a root, which signs itself. */
  readonly issuer: { readonly signer: Signer; readonly certificate: Certificate | undefined };
  readonly notBeforeMs: number;
  /** Cut to the issuer's own end. */
  readonly notAfterMs: number;
}

type Peculiar = typeof peculiar;

/**
 * Issues a certificate (RFC 5280; X509-SVID for workloads): random serial of 127 bits, critical basic constraints, key usage and
 * SAN, key identifiers. A certificate never outlives its issuer. Throws `X509_EXPIRED` when the issuer's life is over.
 */
export async function issueCertificate(options: IssueOptions): Promise<Certificate> {
  const x509 = await loadLibrary();
  const { purpose, issuer, publicKeySpki, notBeforeMs } = options;
  const notAfterMs = Math.min(options.notAfterMs, issuer.certificate?.notAfterMs ?? options.notAfterMs);
  if (notAfterMs <= notBeforeMs) {
    throw x509Error("X509_EXPIRED", `${issuer.certificate?.label ?? "the new certificate"} would end before it begins`);
  }
  const draft = await x509.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: subjectOf(purpose),
    issuer: issuer.certificate === undefined ? subjectOf(purpose) : issuerName(x509, issuer.certificate),
    notBefore: new Date(notBeforeMs),
    notAfter: new Date(notAfterMs),
    publicKey: Buffer.from(publicKeySpki),
    extensions: extensionsFor(x509, options),
    signingAlgorithm: SIGNING[issuer.signer.algorithm],
    signature: Buffer.alloc(64, 1), // replaced below: signers may be remote, and the library wants one
  });
  return decodeCertificate(await sign(new Uint8Array(draft.rawData), issuer.signer), "the certificate just issued");
}

const SIGNING: Record<KeyAlgorithm, { name: string; hash: string }> = {
  "ecdsa-p256": { name: "ECDSA", hash: "SHA-256" },
  "ecdsa-p384": { name: "ECDSA", hash: "SHA-384" },
  rsa: { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" },
};

/** Replaces the draft's placeholder signature with the signer's. */
async function sign(draft: Uint8Array, signer: Signer): Promise<Uint8Array> {
  const outer = new DerCursor(draft);
  const fields = outer.enter(outer.take(TAG.sequence, "certificate"));
  const tbs = wholeOf(draft, fields.take(TAG.sequence, "tbsCertificate"));
  const algorithm = wholeOf(draft, fields.take(TAG.sequence, "signatureAlgorithm"));
  return derSequence(tbs, algorithm, derBitString(await signer.sign(tbs)));
}

function extensionsFor(x509: Peculiar, options: IssueOptions) {
  const { purpose, issuer, publicKeySpki } = options;
  const isCa = purpose.kind === "root" || purpose.kind === "intermediate";
  const { keyCertSign, cRLSign, digitalSignature } = x509.KeyUsageFlags;
  const { serverAuth, clientAuth } = x509.ExtendedKeyUsage;
  const ownId = keyIdentifier(publicKeySpki);
  const issuerId = issuer.certificate?.extensions.subjectKeyId ?? keyIdentifier(issuer.signer.publicKeySpki);
  const extensions: peculiar.Extension[] = [
    new x509.BasicConstraintsExtension(isCa, isCa ? (purpose.kind === "root" ? 1 : 0) : undefined, true),
    new x509.KeyUsagesExtension(isCa ? keyCertSign | cRLSign : digitalSignature, true),
    new x509.SubjectKeyIdentifierExtension(ownId),
    new x509.AuthorityKeyIdentifierExtension(issuerId),
    new x509.SubjectAlternativeNameExtension(namesOf(purpose), !isCa),
  ];
  if (purpose.kind === "workload") extensions.push(new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth]));
  if (purpose.kind === "server") extensions.push(new x509.ExtendedKeyUsageExtension([serverAuth]));
  return extensions;
}

function namesOf(purpose: CertificatePurpose): { type: "url" | "dns"; value: string }[] {
  if (purpose.kind === "workload") return [{ type: "url", value: purpose.id }];
  if (purpose.kind === "server") return purpose.dnsNames.map((value) => ({ type: "dns", value }));
  return [{ type: "url", value: `spiffe://${purpose.trustDomain}` }];
}

/** Leaves have an empty subject: their names are in the SAN alone. */
function subjectOf(purpose: CertificatePurpose): Record<string, string[]>[] {
  return "commonName" in purpose ? [{ O: ["Veil"] }, { CN: [purpose.commonName] }] : [];
}

function issuerName(x509: Peculiar, certificate: Certificate) {
  return new x509.X509Certificate(Buffer.from(certificate.der)).subjectName;
}

/** RFC 7093 §2 method 1: the first 160 bits of SHA-256 over the public key's bits. Lower-case hex. */
function keyIdentifier(spki: Uint8Array): string {
  const outer = new DerCursor(spki);
  const fields = outer.enter(outer.take(TAG.sequence, "subjectPublicKeyInfo"));
  fields.take(TAG.sequence, "key algorithm");
  const bits = contentOf(spki, fields.take(TAG.bitString, "public key")).subarray(1);
  return createHash("sha256").update(bits).digest("hex").slice(0, 40);
}

function serialNumber(): string {
  const hex = systemRandom.hex(16);
  const first = (Number.parseInt(hex.slice(0, 2), 16) & 0x7f) | 0x40; // positive, and never a leading zero byte
  return first.toString(16).padStart(2, "0") + hex.slice(2);
}

/** Loaded by the first certificate that is issued: 150 ms and 40 MB that only an authority needs. */
export async function loadLibrary(): Promise<Peculiar> {
  await import("reflect-metadata");
  return import("@peculiar/x509");
}
