import {
  createPrivateKey,
  generateKeyPairSync,
  randomBytes,
  webcrypto,
  X509Certificate,
  type KeyObject,
} from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import { messageOf } from "#base/errors";
import { apiserverError } from "./errors.ts";

const DAY_MS = 86_400_000;
const CA_DAYS = 3650;
const LEAF_DAYS = 365;
/** Certificates are valid a little earlier than they are made, for clocks that are behind. */
const BACKDATE_MS = 300_000;
/** The server's own certificates are made anew when less than this is left. */
export const RENEW_BEFORE_MS = 30 * DAY_MS;

/** A certificate with its key, in PEM. */
export interface CertificateFiles {
  readonly certPem: string;
  readonly keyPem: string;
}

/** Everything that the server keeps in `DIR/pki`. */
export interface Pki {
  readonly caPem: string;
  readonly server: CertificateFiles;
  /** With which the server authenticates itself at kubelets: user `kube-apiserver-kubelet-client`. */
  readonly kubeletClient: CertificateFiles;
  /** Signs service account tokens (P-256). */
  readonly tokenKey: KeyObject;
}

/**
 * Opens the keys and certificates of a data directory; makes those that are missing on first start. The serving
 * certificate is renewed when its names or its life do not suffice.
 * Throws `APISERVER_DATA_UNREADABLE` for a file that exists and cannot be used: an authority is never replaced.
 */
export async function openPki(dataDir: string, names: readonly string[], nowMs: number): Promise<Pki> {
  const ca = await openAuthority(dataDir, { create: true, nowMs });
  const server = await openLeaf(ca, {
    name: "server",
    nowMs,
    subject: { commonName: "kube-apiserver", groups: [] },
    names,
  });
  const client = { commonName: "kube-apiserver-kubelet-client", groups: ["system:masters"] };
  const kubeletClient = await openLeaf(ca, { name: "kubelet-client", nowMs, subject: client, names: [] });
  const keyPath = join(ca.folder, "sa.key");
  const made = (): string => {
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
    return String(privateKey.export({ type: "pkcs8", format: "pem" }));
  };
  const tokenKey = readUsable(keyPath, () => createPrivateKey(readOrWrite(keyPath, made)));
  return { caPem: ca.files.certPem, server, kubeletClient, tokenKey };
}

/** Issues a client certificate from the authority of a data directory; works while no server runs. */
export async function issueClient(
  dataDir: string,
  subject: CertificateSubject,
  nowMs: number,
): Promise<CertificateFiles & { readonly caPem: string }> {
  const ca = await openAuthority(dataDir, { create: false, nowMs });
  return { ...(await issue(ca, { subject, names: [], nowMs })), caPem: ca.files.certPem };
}

/** Who a certificate is for: user name and groups, as Kubernetes reads them from the subject. */
export interface CertificateSubject {
  readonly commonName: string;
  readonly groups: readonly string[];
}

interface Authority {
  readonly folder: string;
  readonly files: CertificateFiles;
}

async function openAuthority(dataDir: string, options: { create: boolean; nowMs: number }): Promise<Authority> {
  const folder = join(dataDir, "pki");
  const certPath = join(folder, "ca.crt");
  const keyPath = join(folder, "ca.key");
  if (existsSync(certPath) !== existsSync(keyPath) && existsSync(certPath)) {
    throw apiserverError("APISERVER_DATA_UNREADABLE", `${certPath} is there, but its key ${keyPath} is missing`);
  }
  if (!existsSync(certPath)) {
    if (!options.create)
      throw apiserverError("APISERVER_DATA_UNREADABLE", `${certPath} does not exist: start veil apiserver first`);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const files = await issue(undefined, {
      subject: { commonName: "kubernetes", groups: [] },
      names: [],
      nowMs: options.nowMs,
    });
    writeAtomically(keyPath, files.keyPem);
    writeAtomically(certPath, files.certPem);
  }
  const files = { certPem: readText(certPath), keyPem: readText(keyPath) };
  readUsable(certPath, () => {
    if (!new X509Certificate(files.certPem).checkPrivateKey(createPrivateKey(files.keyPem))) {
      throw new Error(`${keyPath} is not its key`);
    }
  });
  return { folder, files };
}

interface LeafRequest {
  readonly subject: CertificateSubject;
  /** DNS names and IP addresses; none for a client. */
  readonly names: readonly string[];
  readonly nowMs: number;
}

async function openLeaf(ca: Authority, request: LeafRequest & { name: string }): Promise<CertificateFiles> {
  const certPath = join(ca.folder, `${request.name}.crt`);
  const keyPath = join(ca.folder, `${request.name}.key`);
  if (existsSync(certPath) && existsSync(keyPath)) {
    const files = { certPem: readText(certPath), keyPem: readText(keyPath) };
    const certificate = readUsable(certPath, () => new X509Certificate(files.certPem));
    if (suffices(certificate, ca, request) && certificate.checkPrivateKey(createPrivateKey(files.keyPem))) return files;
  }
  const files = await issue(ca, request);
  writeAtomically(keyPath, files.keyPem);
  writeAtomically(certPath, files.certPem);
  return files;
}

function suffices(certificate: X509Certificate, ca: Authority, request: LeafRequest): boolean {
  const authority = new X509Certificate(ca.files.certPem);
  if (!certificate.checkIssued(authority) || certificate.validToDate.getTime() - request.nowMs < RENEW_BEFORE_MS)
    return false;
  return request.names.every(
    (name) => (isIP(name) === 0 ? certificate.checkHost(name) : certificate.checkIP(name)) !== undefined,
  );
}

/** Makes a key and a certificate; self-signed as an authority when no issuer is given. Loads the X.509 library only now. */
async function issue(issuer: Authority | undefined, request: LeafRequest): Promise<CertificateFiles> {
  await import("reflect-metadata");
  const x509 = await import("@peculiar/x509");
  const { subtle } = webcrypto;
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const keys = await subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const { KeyUsageFlags: usage, ExtendedKeyUsage: extended } = x509;
  const signer = issuer === undefined ? keys.privateKey : await importKey(issuer.files.keyPem, algorithm);
  const days = issuer === undefined ? CA_DAYS : LEAF_DAYS;
  const names = request.names.map((value) => ({ type: isIP(value) === 0 ? ("dns" as const) : ("ip" as const), value }));
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: `4${randomBytes(16).toString("hex").slice(1)}`,
    subject: nameOf(request.subject),
    issuer: issuer === undefined ? nameOf(request.subject) : new x509.X509Certificate(issuer.files.certPem).subjectName,
    notBefore: new Date(request.nowMs - BACKDATE_MS),
    notAfter: new Date(request.nowMs + days * DAY_MS),
    publicKey: keys.publicKey,
    signingKey: signer,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(issuer === undefined, undefined, true),
      new x509.KeyUsagesExtension(
        issuer === undefined ? usage.keyCertSign | usage.cRLSign : usage.digitalSignature,
        true,
      ),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ...(issuer === undefined
        ? []
        : [new x509.ExtendedKeyUsageExtension([names.length > 0 ? extended.serverAuth : extended.clientAuth])]),
      ...(names.length > 0 ? [new x509.SubjectAlternativeNameExtension(names)] : []),
    ],
  });
  const key = Buffer.from(await subtle.exportKey("pkcs8", keys.privateKey)).toString("base64");
  const keyPem = `-----BEGIN PRIVATE KEY-----\n${key.replaceAll(/(.{64})(?=.)/g, "$1\n")}\n-----END PRIVATE KEY-----\n`;
  return { certPem: `${certificate.toString("pem")}\n`, keyPem };
}

function nameOf(subject: CertificateSubject): Record<string, string[]>[] {
  return [...subject.groups.map((group) => ({ O: [group] })), { CN: [subject.commonName] }];
}

async function importKey(pem: string, algorithm: { name: string; namedCurve: string }): Promise<webcrypto.CryptoKey> {
  const der = createPrivateKey(pem).export({ type: "pkcs8", format: "der" });
  return webcrypto.subtle.importKey("pkcs8", new Uint8Array(der), algorithm, false, ["sign"]);
}

function readText(path: string): string {
  return readUsable(path, () => readFileSync(path, "utf8"));
}

function readOrWrite(path: string, make: () => string): string {
  if (!existsSync(path)) writeAtomically(path, make());
  return readFileSync(path, "utf8");
}

function readUsable<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw apiserverError("APISERVER_DATA_UNREADABLE", `cannot use ${path}: ${messageOf(error)}`, {
      cause: error,
      details: { path },
    });
  }
}

/** Writes a file that only the owner reads, whole or not at all. */
export function writeAtomically(path: string, text: string): void {
  const temporary = `${path}.${process.pid}.new`;
  writeFileSync(temporary, text, { mode: 0o600, flush: true });
  chmodSync(temporary, 0o600);
  renameSync(temporary, path);
}
