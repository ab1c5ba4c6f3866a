import type * as peculiar from "@peculiar/x509";
import { parseSpiffeId, type SpiffeId } from "#model/spiffe-id";
import type { TlsIdentity } from "#model/tls-identity";
import { decodeCertificate, type Certificate } from "./certificate.ts";
import { issueCertificate, loadLibrary } from "./issue.ts";
import { createKeyPair, formatPrivateKey, keyPairSigner, type KeyPair } from "./keys.ts";

/** The library of another hand, for crafting what ours would not make and for reading what ours made. */
export const x509 = await loadLibrary();

/** What a test's leaf is to be; what is left out is as in a proper workload certificate. */
export interface LeafWishes {
  readonly uris?: readonly string[];
  readonly dnsNames?: readonly string[];
  readonly isCa?: boolean;
  /** SubjectPublicKeyInfo of somebody else's key; a new one otherwise. */
  readonly publicKeySpki?: Uint8Array;
  /** `x509.KeyUsageFlags`; undefined leaves the extension out when the property is given. */
  readonly keyUsage?: number | undefined;
  /** Object identifiers; undefined leaves the extension out when the property is given. */
  readonly extendedKeyUsage?: readonly string[] | undefined;
  readonly extraExtensions?: readonly peculiar.Extension[];
  readonly notBeforeMs?: number;
  readonly notAfterMs?: number;
}

/** For tests: a root and an intermediate that sign whatever is asked for, proper or not. Keys live in memory. */
export class TestAuthority {
  readonly root: Certificate;
  readonly intermediate: Certificate;
  readonly #keyPair: KeyPair;
  readonly #rootKeyPair: KeyPair;
  readonly #nowMs: number;

  private constructor(
    root: { certificate: Certificate; keyPair: KeyPair },
    intermediate: { certificate: Certificate; keyPair: KeyPair },
    nowMs: number,
  ) {
    this.root = root.certificate;
    this.intermediate = intermediate.certificate;
    this.#rootKeyPair = root.keyPair;
    this.#keyPair = intermediate.keyPair;
    this.#nowMs = nowMs;
  }

  /** `nowMs`: around which the lives lie (default the machine's clock, so that OpenSSL accepts them). */
  static async create(trustDomain = "cluster.local", nowMs = new Date().getTime()): Promise<TestAuthority> {
    const [rootKeyPair, keyPair] = await Promise.all([createKeyPair(), createKeyPair()]);
    const [rootSigner, signer] = [keyPairSigner(rootKeyPair), keyPairSigner(keyPair)];
    const life = { notBeforeMs: nowMs - 300_000, notAfterMs: nowMs + 86_400_000 };
    const root = await issueCertificate({
      purpose: { kind: "root", commonName: `test root ${trustDomain}`, trustDomain },
      publicKeySpki: rootSigner.publicKeySpki,
      issuer: { signer: rootSigner, certificate: undefined },
      ...life,
    });
    const certificate = await issueCertificate({
      purpose: { kind: "intermediate", commonName: `test intermediate ${trustDomain}`, trustDomain },
      publicKeySpki: signer.publicKeySpki,
      issuer: { signer: rootSigner, certificate: root },
      ...life,
    });
    return new TestAuthority({ certificate: root, keyPair: rootKeyPair }, { certificate, keyPair }, nowMs);
  }

  /** A revocation list in DER of the intermediate, or of the root, that names these certificates. */
  async crl(
    revoked: readonly Certificate[],
    options: { by?: "root" | "intermediate"; expired?: boolean; extensions?: readonly peculiar.Extension[] } = {},
  ): Promise<Uint8Array> {
    const byRoot = options.by === "root";
    const { privateKey } = byRoot ? this.#rootKeyPair : this.#keyPair;
    const issuer = byRoot ? this.root : this.intermediate;
    const ageMs = options.expired === true ? 7_200_000 : 60_000;
    const list = await x509.X509CrlGenerator.create({
      issuer: new x509.X509Certificate(Buffer.from(issuer.der)).subjectName,
      thisUpdate: new Date(this.#nowMs - ageMs),
      nextUpdate: new Date(this.#nowMs - ageMs + 3_600_000),
      entries: revoked.map(({ openssl }) => ({
        serialNumber: openssl.serialNumber,
        revocationDate: new Date(this.#nowMs - ageMs),
      })),
      extensions: [...(options.extensions ?? [])],
      signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
      signingKey: privateKey.toCryptoKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]),
    });
    return new Uint8Array(list.rawData);
  }

  /** A workload's certificate as Veil issues it. */
  async identity(id: SpiffeId): Promise<TlsIdentity> {
    const { certificate, keyPair } = await this.craft({ uris: [id] });
    return {
      id,
      chainPem: certificate.pem + this.intermediate.pem,
      keyPem: formatPrivateKey(keyPair),
      rootsPem: this.root.pem,
      notAfterMs: certificate.notAfterMs,
    };
  }

  /** As {@link identity}, from wishes that break rules; `id` says what the result claims to be. */
  async brokenIdentity(wishes: LeafWishes): Promise<TlsIdentity> {
    const { der, keyPair, notAfterMs } = await this.craftDer(wishes);
    const pem = x509.PemConverter.encode(Buffer.from(der), "CERTIFICATE");
    return {
      id: parseSpiffeId("spiffe://cluster.local/ns/broken/sa/broken"),
      chainPem: `${pem}\n${this.intermediate.pem}`,
      keyPem: formatPrivateKey(keyPair),
      rootsPem: this.root.pem,
      notAfterMs,
    };
  }

  /** A leaf by wishes, read back. */
  async craft(wishes: LeafWishes): Promise<{ certificate: Certificate; keyPair: KeyPair }> {
    const { der, keyPair } = await this.craftDer(wishes);
    return { certificate: decodeCertificate(der, "the crafted certificate"), keyPair };
  }

  /** A leaf by wishes, which our own reader may refuse. */
  async craftDer(wishes: LeafWishes): Promise<{ der: Uint8Array; keyPair: KeyPair; notAfterMs: number }> {
    const keyPair = await createKeyPair();
    const notAfterMs = wishes.notAfterMs ?? this.#nowMs + 3_600_000;
    const certificate = await x509.X509CertificateGenerator.create({
      subject: [],
      issuer: new x509.X509Certificate(Buffer.from(this.intermediate.der)).subjectName,
      notBefore: new Date(wishes.notBeforeMs ?? this.#nowMs - 120_000),
      notAfter: new Date(notAfterMs),
      publicKey: wishes.publicKeySpki ?? keyPair.publicKey.export({ type: "spki", format: "der" }),
      signingAlgorithm: { name: "ECDSA", hash: "SHA-256" },
      signingKey: this.#keyPair.privateKey.toCryptoKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]),
      extensions: extensionsOf(wishes),
    });
    return { der: new Uint8Array(certificate.rawData), keyPair, notAfterMs };
  }
}

function extensionsOf(wishes: LeafWishes): peculiar.Extension[] {
  const { digitalSignature } = x509.KeyUsageFlags;
  const { serverAuth, clientAuth } = x509.ExtendedKeyUsage;
  const keyUsage = "keyUsage" in wishes ? wishes.keyUsage : digitalSignature;
  const purposes = "extendedKeyUsage" in wishes ? wishes.extendedKeyUsage : [serverAuth, clientAuth];
  const names = [
    ...(wishes.uris ?? []).map((value) => ({ type: "url" as const, value })),
    ...(wishes.dnsNames ?? []).map((value) => ({ type: "dns" as const, value })),
  ];
  const extensions: peculiar.Extension[] = [new x509.BasicConstraintsExtension(wishes.isCa ?? false, undefined, true)];
  if (keyUsage !== undefined) extensions.push(new x509.KeyUsagesExtension(keyUsage, true));
  if (purposes !== undefined) extensions.push(new x509.ExtendedKeyUsageExtension([...purposes]));
  if (names.length > 0) extensions.push(new x509.SubjectAlternativeNameExtension(names, true));
  return [...extensions, ...(wishes.extraExtensions ?? [])];
}
