import assert from "node:assert/strict";
import type { webcrypto } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { parseSpiffeId } from "#model/spiffe-id";
import { createCsr, parseCsr } from "./csr.ts";
import { createKeyPair } from "./keys.ts";
import { formatPem, parsePem } from "./pem.ts";
import { x509 } from "./testing.ts";

type WebKey = webcrypto.EcKeyGenParams | webcrypto.RsaHashedKeyGenParams | webcrypto.Algorithm;

const id = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/cart");

/** A request made by another implementation, with any WebCrypto key. */
async function foreignCsr(algorithm: WebKey, hash = "SHA-256"): Promise<string> {
  const keys = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  if (!("privateKey" in keys)) throw new Error("no key pair");
  const extension = new x509.SubjectAlternativeNameExtension([{ type: "url", value: id }], true);
  const signingAlgorithm = { ...algorithm, hash };
  const options = { name: "CN=whatever", keys, signingAlgorithm, extensions: [extension] };
  return (await x509.Pkcs10CertificateRequestGenerator.create(options)).toString("pem");
}

const rsa = (modulusLength: number): webcrypto.RsaHashedKeyGenParams => ({
  name: "RSASSA-PKCS1-v1_5",
  modulusLength,
  publicExponent: Uint8Array.of(1, 0, 1),
  hash: "SHA-256",
});

test("our own requests are read back, for both curves", async () => {
  for (const algorithm of ["ecdsa-p256", "ecdsa-p384"] as const) {
    const keyPair = await createKeyPair(algorithm);
    const request = parseCsr(await createCsr(keyPair, id), "test");
    assert.equal(request.algorithm, algorithm);
    assert.deepEqual(request.requestedUris, [id]);
    assert.deepEqual(Buffer.from(request.publicKeySpki), keyPair.publicKey.export({ type: "spki", format: "der" }));
  }
});

test("another implementation reads our request as we do", async () => {
  const pem = await createCsr(await createKeyPair(), id);
  const request = new x509.Pkcs10CertificateRequest(pem);
  assert.ok(await request.verify());
  assert.equal(request.subject, "");
});

test("requests of another implementation are read: both curves, RSA, all hashes", async () => {
  const ec = (namedCurve: string): webcrypto.EcKeyGenParams => ({ name: "ECDSA", namedCurve });
  assert.equal(parseCsr(await foreignCsr(ec("P-256")), "test").algorithm, "ecdsa-p256");
  assert.equal(parseCsr(await foreignCsr(ec("P-384"), "SHA-384"), "test").algorithm, "ecdsa-p384");
  assert.equal(parseCsr(await foreignCsr(ec("P-256"), "SHA-512"), "test").algorithm, "ecdsa-p256");
  assert.equal(parseCsr(await foreignCsr(rsa(2048)), "test").algorithm, "rsa");
});

test("keys that are too weak, too strong to be honest, or of a kind that is not accepted are refused", async () => {
  for (const algorithm of [rsa(1024), { name: "ECDSA", namedCurve: "P-521" }, { name: "Ed25519" }]) {
    const csr = await foreignCsr(algorithm);
    assert.throws(() => parseCsr(csr, "test"), { code: "X509_KEY_ALGORITHM" }, algorithm.name);
  }
});

test("a signature by another key, an altered name and an altered signature are refused", async () => {
  const pem = await createCsr(await createKeyPair(), id);
  const der = derOf(pem);
  const at = Buffer.from(der).indexOf("cart");
  const renamed = Uint8Array.from(der);
  renamed.set(Buffer.from("till"), at);
  assert.throws(() => parseCsr(pemOf(renamed), "test"), { code: "X509_CSR_SIGNATURE" });
  const resigned = Uint8Array.from(der);
  resigned[der.length - 1] = (resigned[der.length - 1] ?? 0) ^ 1;
  assert.throws(() => parseCsr(pemOf(resigned), "test"), { code: "X509_CSR_SIGNATURE" });
});

test("a request for another's key, which the sender does not hold, is refused", async () => {
  const victim = await createKeyPair();
  const attacker = await createKeyPair();
  const pem = await createCsr({ ...victim, privateKey: attacker.privateKey }, id);
  assert.throws(() => parseCsr(pem, "test"), { code: "X509_CSR_SIGNATURE" });
});

test("a signature algorithm that is not accepted, or does not fit the key, is refused", async () => {
  const der = derOf(await createCsr(await createKeyPair(), id));
  const withSha1 = Uint8Array.from(der);
  // ecdsa-with-SHA256 is 1.2.840.10045.4.3.2; the last byte names the hash.
  const at = Buffer.from(der).lastIndexOf(Buffer.from("2a8648ce3d040302", "hex"));
  withSha1[at + 7] = 1;
  assert.throws(() => parseCsr(pemOf(withSha1), "test"), { code: "X509_CSR_SIGNATURE_ALGORITHM" });
  const rsaDer = derOf(await foreignCsr(rsa(2048)));
  const md5 = Uint8Array.from(rsaDer);
  const rsaAt = Buffer.from(rsaDer).lastIndexOf(Buffer.from("2a864886f70d01010b", "hex"));
  md5[rsaAt + 8] = 4;
  assert.throws(() => parseCsr(pemOf(md5), "test"), { code: "X509_CSR_SIGNATURE_ALGORITHM" });
});

test("what is no request is refused with what it is", async () => {
  const pem = await createCsr(await createKeyPair(), id);
  const cases: [text: string, code: string][] = [
    ["", "X509_PEM"],
    ["nonsense", "X509_PEM"],
    [pem.replaceAll("CERTIFICATE REQUEST", "CERTIFICATE"), "X509_PEM"],
    [pem.replace("-----END", "-----FIN"), "X509_PEM"],
    [pem.replace("MI", "M!"), "X509_PEM"],
    [pem + pem, "X509_TOO_LARGE"],
    [pem.padEnd(17_000, "\n"), "X509_TOO_LARGE"],
    [pemOf(derOf(pem).subarray(0, 60)), "X509_DER"],
    [pemOf(Uint8Array.of(0x30, 0x80, 0, 0)), "X509_DER"],
    [pemOf(Uint8Array.of(0x30, 0x84, 0xff, 0xff, 0xff, 0xff)), "X509_DER"],
  ];
  for (const [text, code] of cases)
    assert.throws(() => parseCsr(text, "the request of x"), { code }, text.slice(0, 80));
});

test("any text, and any request with changed bytes, is read or refused with a code of ours", async () => {
  const der = derOf(await createCsr(await createKeyPair(), id));
  const change = fc.tuple(fc.nat(der.length - 1), fc.nat(255));
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
      const bytes = Uint8Array.from(der);
      for (const [at, value] of changes) bytes[at] = value;
      const same = Buffer.compare(bytes, der) === 0;
      try {
        parseCsr(pemOf(bytes), "fuzz");
        // Only the signed part proves anything: a request that was altered there must not pass.
        assert.ok(same, "an altered request was accepted");
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("X509_"), String(error));
      }
    }),
    { numRuns: 1500 },
  );
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 400 }), (text) => {
      assert.throws(() => parseCsr(text, "fuzz"), { name: "CodedError" });
    }),
  );
});

test("PEM text is read back as it was written, whatever lies between the blocks", () => {
  const limits = { mostBytes: 1e6, mostBlocks: 4 };
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { minLength: 1, maxLength: 4 }), (ders) => {
      const text = ders.map((der) => `a remark\n${formatPem("CERTIFICATE", der)}`).join("\r\n");
      assert.deepEqual(
        parsePem(text, "test", limits).map(({ der }) => Buffer.from(der)),
        ders.map((der) => Buffer.from(der)),
      );
    }),
  );
});

function derOf(pem: string): Uint8Array {
  const [block] = parsePem(pem, "test", { mostBytes: 1e6, mostBlocks: 1 });
  assert.ok(block);
  return block.der;
}

function pemOf(der: Uint8Array): string {
  return formatPem("CERTIFICATE REQUEST", der);
}
