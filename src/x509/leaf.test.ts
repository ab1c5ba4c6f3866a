import assert from "node:assert/strict";
import { before, test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { parseSpiffeId } from "#model/spiffe-id";
import { checkPeerLeaf } from "./leaf.ts";
import { TestAuthority, x509, type LeafWishes } from "./testing.ts";

const id = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/cart");
const ours = { trustDomain: "cluster.local" };
const flags = x509.KeyUsageFlags;
let authority: TestAuthority;
before(async () => {
  authority = await TestAuthority.create();
});

test("a proper workload certificate yields its identity", async () => {
  for (const wishes of [{}, { dnsNames: ["cart.shop"] }, { extendedKeyUsage: undefined }] as LeafWishes[]) {
    const { der } = await authority.craftDer({ uris: [id], ...wishes });
    assert.equal(checkPeerLeaf(der, ours), id);
    assert.equal(checkPeerLeaf(der, { ...ours, accepted: [id] }), id);
  }
});

const { serverAuth, clientAuth } = x509.ExtendedKeyUsage;
const san = "2.5.29.17";
const refusals: [name: string, wishes: LeafWishes, code: string][] = [
  ["no subject alternative name at all", {}, "X509_NO_URI_SAN"],
  ["only DNS names", { dnsNames: ["cart.shop"] }, "X509_NO_URI_SAN"],
  ["two URI SANs", { uris: [id, "spiffe://cluster.local/ns/shop/sa/till"] }, "X509_TWO_URI_SANS"],
  ["the same URI SAN twice", { uris: [id, id] }, "X509_TWO_URI_SANS"],
  ["a URI SAN that is no SPIFFE ID beside the right one", { uris: [id, "https://a.b/"] }, "X509_TWO_URI_SANS"],
  ["a URI that is no SPIFFE ID", { uris: ["https://cluster.local/ns/shop/sa/cart"] }, "X509_BAD_SPIFFE_ID"],
  ["an ID with a dot segment", { uris: ["spiffe://cluster.local/ns/shop/../sa/cart"] }, "X509_BAD_SPIFFE_ID"],
  ["an ID with a NUL", { uris: [`${id}\0.evil`] }, "X509_BAD_SPIFFE_ID"],
  ["an ID without path", { uris: ["spiffe://cluster.local"] }, "X509_BAD_SPIFFE_ID"],
  ["the CA flag", { uris: [id], isCa: true }, "X509_CA_AS_LEAF"],
  ["keyCertSign", { uris: [id], keyUsage: flags.digitalSignature | flags.keyCertSign }, "X509_LEAF_SIGNS_CERTIFICATES"],
  ["cRLSign", { uris: [id], keyUsage: flags.digitalSignature | flags.cRLSign }, "X509_LEAF_SIGNS_CRLS"],
  ["no digitalSignature", { uris: [id], keyUsage: flags.keyEncipherment }, "X509_NO_DIGITAL_SIGNATURE"],
  ["no key usage", { uris: [id], keyUsage: undefined }, "X509_NO_DIGITAL_SIGNATURE"],
  ["only serverAuth", { uris: [id], extendedKeyUsage: [serverAuth] }, "X509_EXTENDED_KEY_USAGE"],
  ["only clientAuth", { uris: [id], extendedKeyUsage: [clientAuth] }, "X509_EXTENDED_KEY_USAGE"],
  ["another trust domain", { uris: ["spiffe://other/ns/shop/sa/cart"] }, "X509_WRONG_TRUST_DOMAIN"],
  [
    "a trust domain that begins like ours",
    { uris: ["spiffe://cluster.local.evil/ns/a/sa/b"] },
    "X509_WRONG_TRUST_DOMAIN",
  ],
  [
    "two subject alternative name extensions",
    { uris: [id], extraExtensions: [new x509.Extension(san, true, Buffer.from("3000", "hex"))] },
    "X509_DUPLICATE_EXTENSION",
  ],
];
for (const [name, wishes, code] of refusals) {
  test(`a peer with ${name} is refused with ${code}`, async () => {
    const { der } = await authority.craftDer(wishes);
    assert.throws(() => checkPeerLeaf(der, { ...ours, accepted: [id] }), { code });
  });
}

test("a certificate of an authority is refused, root or intermediate", () => {
  for (const { der } of [authority.root, authority.intermediate]) {
    assert.throws(() => checkPeerLeaf(der, ours), { code: "X509_CA_AS_LEAF" });
  }
});

test("a good peer that is not the expected one is refused, and both are named", async () => {
  const { der } = await authority.craftDer({ uris: [id] });
  const other = parseSpiffeId("spiffe://cluster.local/ns/shop/sa/till");
  assert.throws(() => checkPeerLeaf(der, { ...ours, accepted: [other] }), {
    code: "X509_UNEXPECTED_IDENTITY",
    message: `the peer is ${id}, expected was ${other}`,
  });
  assert.throws(() => checkPeerLeaf(der, { ...ours, accepted: [] }), { code: "X509_UNEXPECTED_IDENTITY" });
});

test("what is cut short, too long or followed by something is refused with the place", async () => {
  const { der } = await authority.craftDer({ uris: [id] });
  for (let length = 0; length < der.length; length++) {
    assert.throws(() => checkPeerLeaf(der.subarray(0, length), ours), { code: "X509_DER" }, `${length} bytes`);
  }
  const longer = new Uint8Array([...der, 0]);
  assert.throws(() => checkPeerLeaf(longer, ours), { code: "X509_DER", message: /1 bytes follow its end/ });
  assert.throws(() => checkPeerLeaf(new Uint8Array(64 * 1024 + 1), ours), { code: "X509_TOO_LARGE" });
});

test("any bytes are judged or refused with a code of ours", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => refusedOrRead(bytes)));
});

test("a certificate with changed bytes is judged or refused with a code of ours, and never becomes another identity by a wrong length", async () => {
  const { der } = await authority.craftDer({ uris: [id] });
  const change = fc.tuple(fc.nat(der.length - 1), fc.nat(255));
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
      const bytes = Uint8Array.from(der);
      for (const [at, value] of changes) bytes[at] = value;
      refusedOrRead(bytes);
    }),
    { numRuns: 3000 },
  );
});

function refusedOrRead(bytes: Uint8Array): void {
  try {
    const read = checkPeerLeaf(bytes, ours);
    assert.ok(Buffer.from(bytes).includes(read), "the identity must lie in the input as it stands");
  } catch (error) {
    assert.ok(error instanceof CodedError && error.code.startsWith("X509_"), String(error));
  }
}
