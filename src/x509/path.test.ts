import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { parseSpiffeId } from "#model/spiffe-id";
import { formatCertificates, parseCertificates, type Certificate } from "./certificate.ts";
import { issueCertificate, type CertificatePurpose } from "./issue.ts";
import {
  checkKeyBelongs,
  createKeyPair,
  formatPrivateKey,
  keyPairSigner,
  parsePrivateKey,
  type Signer,
} from "./keys.ts";
import { checkLife, verifyPath } from "./path.ts";

const NOW = Date.UTC(2026, 0, 1);
const HOUR = 3_600_000;
const id = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/cart");
const root: CertificatePurpose = { kind: "root", commonName: "root", trustDomain: "cluster.local" };
const intermediate: CertificatePurpose = { kind: "intermediate", commonName: "middle", trustDomain: "cluster.local" };
const workload: CertificatePurpose = { kind: "workload", id };

interface Node {
  readonly certificate: Certificate;
  readonly signer: Signer;
}

async function issue(
  purpose: CertificatePurpose,
  issuer: Node | undefined,
  life: { from?: number; to?: number; algorithm?: "ecdsa-p256" | "ecdsa-p384" } = {},
): Promise<Node> {
  const signer = keyPairSigner(await createKeyPair(life.algorithm));
  const certificate = await issueCertificate({
    purpose,
    publicKeySpki: signer.publicKeySpki,
    issuer: issuer ?? { signer, certificate: undefined },
    notBeforeMs: NOW + (life.from ?? -HOUR),
    notAfterMs: NOW + (life.to ?? HOUR),
  });
  return { certificate, signer };
}

const at = (nowMs: number) => ({ nowMs, place: "the test chain" });

test("a chain of three generations and two curves verifies to its root and to no other", async () => {
  const top = await issue(root, undefined, { algorithm: "ecdsa-p384" });
  const middle = await issue(intermediate, top);
  const leaf = await issue(workload, middle);
  const other = await issue(root, undefined);
  const chain = [leaf.certificate, middle.certificate];
  verifyPath(chain, [other.certificate, top.certificate], at(NOW));
  // The other root has the same name: only the key tells them apart.
  assert.throws(() => verifyPath(chain, [other.certificate], at(NOW)), { code: "X509_CHAIN_BROKEN" });
  assert.throws(() => verifyPath(chain, [], at(NOW)), { code: "X509_CHAIN_BROKEN" });
  assert.throws(() => verifyPath([leaf.certificate], [top.certificate], at(NOW)), { code: "X509_CHAIN_BROKEN" });
  assert.throws(() => verifyPath(chain.toReversed(), [top.certificate], at(NOW)), { code: "X509_CHAIN_BROKEN" });
  assert.throws(() => verifyPath([], [top.certificate], at(NOW)), { code: "X509_CHAIN_EMPTY" });
});

test("a leaf cannot sign, and an intermediate cannot have an intermediate below it", async () => {
  const top = await issue(root, undefined);
  const middle = await issue(intermediate, top);
  const leaf = await issue(workload, middle);
  const forged = await issue(workload, leaf);
  const chain = [forged, leaf, middle].map(({ certificate }) => certificate);
  // OpenSSL says "not issued" for a leaf with a key usage that forbids signing; either refusal is one of ours.
  assert.throws(() => verifyPath(chain, [top.certificate], at(NOW)), { code: /^X509_(NOT_A_CA|CHAIN_BROKEN)$/ });
  const second = await issue(intermediate, middle);
  const deep = [await issue(workload, second), second, middle].map(({ certificate }) => certificate);
  assert.throws(() => verifyPath(deep, [top.certificate], at(NOW)), { code: "X509_NOT_A_CA", message: /path length/ });
});

test("a clock outside of a life is named with the distance, for each certificate of the chain", async () => {
  const top = await issue(root, undefined, { from: -3 * HOUR, to: 9 * HOUR });
  const middle = await issue(intermediate, top, { from: -2 * HOUR, to: 6 * HOUR });
  const leaf = await issue(workload, middle, { from: -HOUR, to: 3 * HOUR });
  const chain = [leaf.certificate, middle.certificate];
  const roots = [top.certificate];
  verifyPath(chain, roots, at(NOW - HOUR));
  verifyPath(chain, roots, at(NOW + 3 * HOUR - 1));
  assert.throws(() => verifyPath(chain, roots, at(NOW - HOUR - 180_000)), {
    code: "X509_NOT_YET_VALID",
    message: /clock says .*behind by 3 min/,
  });
  assert.throws(() => verifyPath(chain, roots, at(NOW + 3 * HOUR)), { code: "X509_EXPIRED" });
  const atEnd = { code: "X509_EXPIRED", message: /^middle/ };
  assert.throws(() => verifyPath([middle.certificate], roots, at(NOW + 6 * HOUR)), atEnd);
  assert.throws(() => checkLife(top.certificate, NOW + 9 * HOUR), { code: "X509_EXPIRED", message: /^root/ });
});

test("no certificate outlives its issuer, and none is issued by one whose life is over", async () => {
  const top = await issue(root, undefined, { to: 2 * HOUR });
  const middle = await issue(intermediate, top, { to: 50 * HOUR });
  assert.equal(middle.certificate.notAfterMs, top.certificate.notAfterMs);
  const old = await issue(intermediate, top, { to: -HOUR / 2 });
  await assert.rejects(issue(workload, old, { from: 0 }), { code: "X509_EXPIRED" });
});

test("each certificate has a serial number of its own, positive and of 16 bytes", async () => {
  const top = await issue(root, undefined);
  const serials = new Set<string>();
  for (let i = 0; i < 32; i++) serials.add((await issue(workload, top)).certificate.openssl.serialNumber);
  assert.equal(serials.size, 32);
  for (const serial of serials) assert.match(serial, /^[4-7][0-9A-F]{31}$/);
});

test("a bundle of several certificates is read, and what is none is refused by place and block", async () => {
  const certificates = [(await issue(root, undefined)).certificate, (await issue(root, undefined)).certificate];
  const text = formatCertificates(certificates);
  assert.deepEqual(
    parseCertificates(text, "x").map(({ pem }) => pem),
    certificates.map(({ pem }) => pem),
  );
  const key = formatPrivateKey(await createKeyPair());
  const cases: [string, string, RegExp][] = [
    ["", "X509_PEM", /file f holds no PEM block/],
    [text + key, "X509_PEM", /block 3 of file f is a PRIVATE KEY/],
    [text.slice(0, -40), "X509_PEM", /block 2 of file f is damaged/],
    [text.repeat(40), "X509_TOO_LARGE", /file f/],
  ];
  for (const [input, code, message] of cases)
    assert.throws(() => parseCertificates(input, "file f"), { code, message });
});

test("keys are read back; a wrong one is noticed; no error shows a key", async () => {
  const pair = await createKeyPair();
  const pem = formatPrivateKey(pair);
  assert.ok(parsePrivateKey(pem, "f").privateKey.equals(pair.privateKey));
  const { certificate } = await issue(root, undefined);
  assert.throws(() => checkKeyBelongs(certificate.openssl, pair, "f"), { code: "X509_KEY_MISMATCH" });
  const damaged = pem.replace("PRIVATE KEY-----\nM", "PRIVATE KEY-----\n!");
  const secret = pem.split("\n")[1] ?? "";
  assert.throws(
    () => parsePrivateKey(damaged, "file f"),
    (error: unknown) => {
      assert.ok(error instanceof CodedError && error.code === "X509_PEM");
      assert.ok(!JSON.stringify([error.message, error.details, String(error.cause)]).includes(secret.slice(1, 20)));
      return true;
    },
  );
});

test("any text is read as certificates or refused with a code of ours", async () => {
  const { certificate } = await issue(root, undefined);
  const change = fc.tuple(fc.nat(certificate.pem.length - 1), fc.string({ maxLength: 2 }));
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
      let text = certificate.pem;
      for (const [at, piece] of changes) text = text.slice(0, at) + piece + text.slice(at + 1);
      try {
        parseCertificates(text, "fuzz");
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("X509_"), String(error));
      }
    }),
    { numRuns: 1000 },
  );
});
