import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { parseSpiffeId } from "#model/spiffe-id";
import {
  checkPeerLeaf,
  createCsr,
  createKeyPair,
  findPath,
  formatPrivateKey,
  issueCertificate,
  keyPairSigner,
  parseCertificates,
  parseCrls,
  parseCsr,
  parsePrivateKey,
  RevocationLists,
  verifyPath,
  type Certificate,
  type CertificatePurpose,
  type Signer,
} from "#x509";

// The openssl program (another version than the one inside Node) judges what Veil makes, and makes what Veil judges.

const id = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/cart");
const trustDomain = "cluster.local";
const directory = mkdtempSync(join(tmpdir(), "vt-x509-"));
const file = (name: string): string => join(directory, name);
const now = new Date().getTime();

function openssl(...args: string[]): string {
  return execFileSync("openssl", args, { cwd: directory, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

/** What openssl says when it refuses; fails when it does not. */
function refusalOf(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync("openssl", args, { cwd: directory, encoding: "utf8" });
  assert.notEqual(status, 0, `openssl ${args.join(" ")} accepted it`);
  return stdout + stderr;
}

interface Issued {
  readonly certificate: Certificate;
  readonly signer: Signer;
}

async function issue(purpose: CertificatePurpose, issuer?: Issued, algorithm?: "ecdsa-p384"): Promise<Issued> {
  const signer = keyPairSigner(await createKeyPair(algorithm));
  const certificate = await issueCertificate({
    purpose,
    publicKeySpki: signer.publicKeySpki,
    issuer: issuer ?? { signer, certificate: undefined },
    notBeforeMs: now - 120_000,
    notAfterMs: now + 3_600_000,
  });
  return { certificate, signer };
}

let root: Issued;
let intermediate: Issued;
let leaf: Issued;
before(async () => {
  execFileSync("openssl", ["version"]); // fails here, and says so, when the program is missing
  root = await issue({ kind: "root", commonName: "root", trustDomain }, undefined, "ecdsa-p384");
  intermediate = await issue({ kind: "intermediate", commonName: "middle", trustDomain }, root);
  leaf = await issue({ kind: "workload", id }, intermediate);
  for (const [name, { certificate }] of Object.entries({ root, intermediate, leaf })) {
    writeFileSync(file(`${name}.pem`), certificate.pem);
  }
});
after(() => rmSync(directory, { recursive: true }));

const CHAIN = ["-x509_strict", "-CAfile", "root.pem", "-untrusted", "intermediate.pem"];

test("openssl verifies a workload's chain strictly, as client and as server", () => {
  for (const purpose of ["sslclient", "sslserver"]) {
    assert.match(openssl("verify", ...CHAIN, "-purpose", purpose, "leaf.pem"), /leaf\.pem: OK/);
  }
});

test("openssl refuses the same leaf without its intermediate, under another root, and as an authority", async () => {
  const other = await issue({ kind: "root", commonName: "root", trustDomain }, undefined, "ecdsa-p384");
  writeFileSync(file("other.pem"), other.certificate.pem);
  assert.match(refusalOf("verify", "-x509_strict", "-CAfile", "root.pem", "leaf.pem"), /unable to get local issuer/);
  const swapped = ["-x509_strict", "-CAfile", "other.pem", "-untrusted", "intermediate.pem"];
  assert.match(refusalOf("verify", ...swapped, "leaf.pem"), /verification failed/);
  const below = await issue({ kind: "workload", id }, leaf);
  writeFileSync(file("below.pem"), below.certificate.pem);
  const forged = ["-x509_strict", "-CAfile", "root.pem", "-untrusted", "intermediate.pem", "-untrusted", "leaf.pem"];
  assert.match(refusalOf("verify", ...forged, "below.pem"), /verification failed/);
});

test("openssl checks a server certificate's name, and does not take it for a client's", async () => {
  const server = await issue({ kind: "server", dnsNames: ["veil-controller.veil-system.svc"] }, intermediate);
  writeFileSync(file("server.pem"), server.certificate.pem);
  const named = (name: string): string[] => [
    "verify",
    ...CHAIN,
    "-purpose",
    "sslserver",
    "-verify_hostname",
    name,
    "server.pem",
  ];
  assert.match(openssl(...named("veil-controller.veil-system.svc")), /OK/);
  assert.match(refusalOf(...named("evil.veil-system.svc")), /hostname mismatch/i);
  assert.match(refusalOf("verify", ...CHAIN, "-purpose", "sslclient", "server.pem"), /unsuitable certificate purpose/);
});

test("openssl reads our names, usages and lives as they were meant", () => {
  const text = openssl("x509", "-in", "leaf.pem", "-noout", "-text");
  for (const line of [
    /Basic Constraints: critical\s+CA:FALSE/,
    /Key Usage: critical\s+Digital Signature\n/,
    /Alternative Name: critical\s+URI:spiffe:\/\/cluster\.local\/ns\/shop\/sa\/cart\n/,
    /TLS Web Server Authentication, TLS Web Client Authentication/,
    /Subject:\s*\n/,
  ]) {
    assert.match(text, line);
  }
  const top = openssl("x509", "-in", "root.pem", "-noout", "-text");
  for (const line of [/CA:TRUE, pathlen:1/, /Certificate Sign, CRL Sign/, /ecdsa-with-SHA384/]) assert.match(top, line);
  assert.match(openssl("x509", "-in", "intermediate.pem", "-noout", "-text"), /CA:TRUE, pathlen:0/);
});

test("openssl verifies our request, and we read and sign requests of openssl's: both curves and RSA", async () => {
  writeFileSync(file("ours.csr"), await createCsr(await createKeyPair(), id));
  openssl("req", "-in", "ours.csr", "-verify", "-noout");
  for (const [algorithm, ...key] of [
    ["ecdsa-p256", "ec:", "ec_paramgen_curve:P-256"],
    ["ecdsa-p384", "ec:", "ec_paramgen_curve:P-384"],
    ["rsa", "rsa:2048"],
  ] as const) {
    const [kind, parameter] = key;
    const newKey = parameter === undefined ? ["-newkey", kind] : ["-newkey", "ec", "-pkeyopt", parameter];
    const csr = `${algorithm}.csr`;
    openssl(
      "req",
      "-new",
      ...newKey,
      "-nodes",
      "-keyout",
      `${algorithm}.key`,
      "-subj",
      "/CN=evil",
      "-addext",
      "subjectAltName=URI:spiffe://cluster.local/ns/kube-system/sa/admin",
      "-out",
      csr,
    );
    const request = parseCsr(readFileSync(file(csr), "utf8"), csr);
    assert.equal(request.algorithm, algorithm);
    const certificate = await issueCertificate({
      purpose: { kind: "workload", id },
      publicKeySpki: request.publicKeySpki,
      issuer: intermediate,
      notBeforeMs: now - 120_000,
      notAfterMs: now + 3_600_000,
    });
    writeFileSync(file(`${algorithm}.pem`), certificate.pem);
    assert.match(openssl("verify", ...CHAIN, `${algorithm}.pem`), /OK/);
    assert.equal(checkPeerLeaf(certificate.der, { trustDomain }), id, "the request's own name is not in it");
  }
});

test("requests of openssl's that must not be signed are refused", () => {
  const cases: [args: string[], code: string][] = [
    [["-newkey", "rsa:1024"], "X509_KEY_ALGORITHM"],
    [["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"], "X509_KEY_ALGORITHM"],
    [
      ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"],
      "X509_KEY_ALGORITHM",
    ],
    [["-newkey", "ed25519"], "X509_KEY_ALGORITHM"],
    [["-newkey", "rsa:2048", "-sha1"], "X509_CSR_SIGNATURE_ALGORITHM"],
    [["-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss"], "X509_CSR_SIGNATURE_ALGORITHM"],
  ];
  for (const [args, code] of cases) {
    openssl("req", "-new", ...args, "-nodes", "-keyout", "bad.key", "-subj", "/CN=x", "-out", "bad.csr");
    assert.throws(() => parseCsr(readFileSync(file("bad.csr"), "utf8"), "bad.csr"), { code }, args.join(" "));
  }
});

test("leaves of openssl's that break a SPIFFE rule are refused, each with its code, though openssl accepts them", async () => {
  writeFileSync(file("ca.key"), formatPrivateKey(await writeAuthority()));
  openssl(
    "req",
    "-new",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-keyout",
    "l.key",
    "-subj",
    "/CN=l",
    "-out",
    "l.csr",
  );
  const good = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n";
  const san = `subjectAltName=URI:${id}`;
  const cases: [extensions: string, code: string | undefined][] = [
    [`${good}${san}`, undefined],
    [`${good}${san},DNS:cart.shop\nextendedKeyUsage=serverAuth,clientAuth`, undefined],
    [`${good}subjectAltName=DNS:cart.shop`, "X509_NO_URI_SAN"],
    [`${good}${san},URI:spiffe://cluster.local/ns/shop/sa/till`, "X509_TWO_URI_SANS"],
    [`${good}subjectAltName=URI:spiffe://cluster.local/ns/shop/sa/cart/`, "X509_BAD_SPIFFE_ID"],
    [`basicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature,keyCertSign\n${san}`, "X509_CA_AS_LEAF"],
    [
      `basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature,keyCertSign\n${san}`,
      "X509_LEAF_SIGNS_CERTIFICATES",
    ],
    [`basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature,cRLSign\n${san}`, "X509_LEAF_SIGNS_CRLS"],
    [`basicConstraints=CA:FALSE\nkeyUsage=critical,keyAgreement\n${san}`, "X509_NO_DIGITAL_SIGNATURE"],
    [`basicConstraints=CA:FALSE\n${san}`, "X509_NO_DIGITAL_SIGNATURE"],
    [`${good}extendedKeyUsage=serverAuth\n${san}`, "X509_EXTENDED_KEY_USAGE"],
    [`${good}subjectAltName=URI:spiffe://other.domain/ns/shop/sa/cart`, "X509_WRONG_TRUST_DOMAIN"],
  ];
  for (const [extensions, code] of cases) {
    writeFileSync(file("l.ext"), extensions);
    openssl(
      "x509",
      "-req",
      "-in",
      "l.csr",
      "-CA",
      "ca.pem",
      "-CAkey",
      "ca.key",
      "-CAcreateserial",
      "-days",
      "1",
      "-extfile",
      "l.ext",
      "-out",
      "l.pem",
    );
    const [made] = parseCertificates(readFileSync(file("l.pem"), "utf8"), "l.pem");
    assert.ok(made);
    if (code === undefined) assert.equal(checkPeerLeaf(made.der, { trustDomain }), id);
    else assert.throws(() => checkPeerLeaf(made.der, { trustDomain }), { code }, extensions);
    assert.match(openssl("verify", "-CAfile", "ca.pem", "l.pem"), /OK/, "openssl has no objection");
  }
});

test("a chain and a key made by openssl alone are read, verified and used for signing", () => {
  openssl(
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-384",
    "-nodes",
    "-keyout",
    "o.key",
    "-subj",
    "/CN=o",
    "-days",
    "2",
    "-addext",
    "basicConstraints=critical,CA:TRUE",
    "-addext",
    "keyUsage=critical,keyCertSign,cRLSign",
    "-out",
    "o.pem",
  );
  const [certificate] = parseCertificates(readFileSync(file("o.pem"), "utf8"), "o.pem");
  assert.ok(certificate);
  verifyPath([certificate], [certificate], { nowMs: now + 60_000, place: "o.pem" });
  assert.equal(parsePrivateKey(readFileSync(file("o.key"), "utf8"), "o.key").algorithm, "ecdsa-p384");
});

test("revocation lists made by openssl revoke what it has revoked, in PEM and in DER, and nothing else", () => {
  const made = (name: string, ...args: readonly string[]): Certificate => {
    const key = ["-newkey", "rsa:2048", "-nodes", "-keyout", `${name}.key`, "-subj", `/CN=${name}`, "-days", "2"];
    openssl("req", "-x509", ...key, "-out", `${name}.pem`, ...args);
    const [certificate] = parseCertificates(readFileSync(file(`${name}.pem`), "utf8"), name);
    assert.ok(certificate);
    return certificate;
  };
  const authority = made("crl-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign");
  const [revoked, good] = ["bad", "good"].map((name) => made(name, "-CA", "crl-ca.pem", "-CAkey", "crl-ca.key"));
  assert.ok(revoked && good);
  writeFileSync(file("index.txt"), "");
  writeFileSync(file("number"), "01\n");
  const lines = ["[ca]", "default_ca=own", "[own]", "database=index.txt", "crlnumber=number", "default_md=sha384"];
  writeFileSync(file("ca.conf"), [...lines, "default_crl_days=1", "crl_extensions=ext", "[ext]", ""].join("\n"));
  const ca = ["ca", "-config", "ca.conf", "-cert", "crl-ca.pem", "-keyfile", "crl-ca.key"];
  openssl(...ca, "-revoke", "bad.pem", "-crl_reason", "keyCompromise");
  openssl(...ca, "-gencrl", "-out", "list.pem");
  openssl("crl", "-in", "list.pem", "-outform", "DER", "-out", "list.der");
  for (const name of ["list.pem", "list.der"]) {
    const lists = new RevocationLists(parseCrls(readFileSync(file(name)), name));
    const isRevoked = ({ openssl: leaf }: Certificate): boolean => {
      const path = findPath([leaf], [authority.openssl]);
      assert.ok(path);
      return lists.findRevoked(path) !== undefined;
    };
    assert.deepEqual([isRevoked(revoked), isRevoked(good)], [true, false], name);
  }
});

/** An authority whose key openssl may use. */
async function writeAuthority() {
  const keyPair = await createKeyPair();
  const signer = keyPairSigner(keyPair);
  const certificate = await issueCertificate({
    purpose: { kind: "root", commonName: "for openssl", trustDomain },
    publicKeySpki: signer.publicKeySpki,
    issuer: { signer, certificate: undefined },
    notBeforeMs: now - 120_000,
    notAfterMs: now + 172_800_000,
  });
  writeFileSync(file("ca.pem"), certificate.pem);
  return keyPair;
}
