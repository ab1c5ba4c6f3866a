import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { formatSpiffeId } from "#model/spiffe-id";
import { decodeCrl, parseCrls, serialKey } from "./crl.ts";
import { formatPem } from "./pem.ts";
import { findPath, RevocationLists } from "./revocation.ts";
import { TestAuthority, x509 } from "./testing.ts";

const authority = await TestAuthority.create();
const { intermediate, root } = authority;
const uri = (name: string) => formatSpiffeId({ trustDomain: "cluster.local", namespace: "test", serviceAccount: name });
const leaf = (await authority.craft({ uris: [uri("a")] })).certificate;
const other = (await authority.craft({ uris: [uri("b")] })).certificate;
const path = [leaf, intermediate, root].map(({ openssl }) => openssl);

function code(work: () => unknown): string {
  try {
    work();
    return "none";
  } catch (error) {
    return error instanceof CodedError ? error.code : String(error);
  }
}

describe("a file of revocation lists", () => {
  it("is DER, or PEM of one list or several, or empty", async () => {
    const [one, two] = [await authority.crl([leaf]), await authority.crl([intermediate], { by: "root" })];
    const pem = (der: Uint8Array, label = "X509 CRL"): string => formatPem(label, der);
    const read = (content: string | Uint8Array) =>
      parseCrls(typeof content === "string" ? Buffer.from(content) : content, "the file").map(({ serials }) => [
        ...serials,
      ]);
    const [first, second] = [leaf, intermediate].map(({ openssl }) => serialKey(openssl.serialNumber));
    assert.deepEqual(read(one), [[first]]);
    assert.deepEqual(read(pem(one)), [[first]]);
    assert.deepEqual(read(`${pem(one)}${pem(leaf.der, "CERTIFICATE")}\n${pem(two)}`), [[first], [second]]);
    assert.deepEqual(read(""), []);
    assert.deepEqual(read(" \n"), []);
    assert.deepEqual(read(await authority.crl([])), [[]]);
  });

  it("that is damaged is refused, with its code", async () => {
    const der = await authority.crl([leaf, other]);
    assert.equal(
      code(() => parseCrls(Buffer.from("no list"), "the file")),
      "X509_PEM",
    );
    assert.equal(
      code(() => parseCrls(der.subarray(0, -1), "the file")),
      "X509_DER",
    );
    const critical = new x509.Extension("2.5.29.27", true, Uint8Array.of(2, 1, 1)); // delta CRL indicator
    const delta = await authority.crl([leaf], { extensions: [critical] });
    assert.equal(
      code(() => decodeCrl(delta)),
      "X509_CRL_UNSUPPORTED",
    );
    const number = new x509.Extension("2.5.29.20", false, Uint8Array.of(2, 1, 1));
    assert.equal(decodeCrl(await authority.crl([leaf], { extensions: [number] })).serials.size, 1);
  });

  it("never does anything else with any bytes", async () => {
    const der = await authority.crl([leaf, other]);
    const check = (bytes: Uint8Array): void => {
      assert.match(
        code(() => parseCrls(bytes, "the file")),
        /^(none|X509_(DER|PEM|TOO_LARGE|CRL_UNSUPPORTED))$/,
      );
    };
    fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), check));
    const changed = fc
      .tuple(
        fc.array(fc.tuple(fc.nat(der.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 }),
        fc.nat(der.length),
      )
      .map(([changes, cut]) => {
        const bytes = Uint8Array.from(der);
        for (const [at, value] of changes) bytes[at] = value;
        return cut % 3 === 0 ? bytes.subarray(0, cut) : bytes;
      });
    fc.assert(fc.property(changed, check), { numRuns: 300 });
  });
});

describe("a verified path", () => {
  it("leaves out what was presented beside it, and does not depend on the order", async () => {
    const stranger = await TestAuthority.create();
    const junk = [stranger.root, stranger.intermediate].map(({ openssl }) => openssl);
    const found = (presented: typeof path) =>
      findPath(presented, [root.openssl])?.map(({ fingerprint256 }) => fingerprint256);
    const expected = path.map(({ fingerprint256 }) => fingerprint256);
    assert.deepEqual(found([leaf.openssl, intermediate.openssl]), expected);
    assert.deepEqual(found([leaf.openssl, ...junk, intermediate.openssl]), expected);
    assert.deepEqual(found([leaf.openssl, root.openssl, intermediate.openssl]), expected, "the root may come along");
    assert.equal(found([leaf.openssl, ...junk]), undefined);
    assert.equal(found([]), undefined);
    assert.equal(findPath([leaf.openssl, intermediate.openssl], [stranger.root.openssl]), undefined);
  });
});

describe("revocation lists", () => {
  const revoked = (...ders: Uint8Array[]) =>
    new RevocationLists(ders.map((der) => decodeCrl(der))).findRevoked(path)?.fingerprint256;

  it("revoke a leaf and an intermediate, and nothing else", async () => {
    assert.equal(revoked(), undefined);
    assert.equal(revoked(await authority.crl([other])), undefined);
    assert.equal(revoked(await authority.crl([leaf])), leaf.openssl.fingerprint256);
    const ofIntermediate = await authority.crl([intermediate], { by: "root" });
    assert.equal(revoked(ofIntermediate), intermediate.openssl.fingerprint256);
    assert.equal(revoked(await authority.crl([other]), ofIntermediate), intermediate.openssl.fingerprint256);
  });

  it("count for the issuer alone that has signed them: a serial number of another issuer says nothing", async () => {
    assert.equal(revoked(await authority.crl([leaf], { by: "root" })), undefined, "the root has not issued the leaf");
    const namesake = await TestAuthority.create();
    assert.equal(revoked(await namesake.crl([leaf])), undefined, "the same name, another key");
    assert.equal(revoked(await namesake.crl([leaf]), await authority.crl([leaf])), leaf.openssl.fingerprint256);
  });

  it("that have expired still revoke", async () => {
    assert.equal(revoked(await authority.crl([leaf], { expired: true })), leaf.openssl.fingerprint256);
  });

  it("whose signature is wrong revoke nothing", async () => {
    const der = await authority.crl([leaf]);
    der[der.length - 1] = (der.at(-1) ?? 0) ^ 1;
    assert.equal(revoked(der), undefined);
  });
});
