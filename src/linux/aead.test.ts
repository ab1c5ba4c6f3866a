import assert from "node:assert/strict";
import { createCipheriv, createHash, createHmac } from "node:crypto";
import { test } from "node:test";
import { RecordProtection } from "./aead.ts";

const suite = "TLS_AES_128_GCM_SHA256";
const DATA = 23;
const hex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ""), "hex");
const allocate = (byteCount: number): Uint8Array => new Uint8Array(new ArrayBuffer(byteCount));

test("keys and records are those of RFC 8448 §3", () => {
  const secret = hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
  const content = Uint8Array.from({ length: 50 }, (_, index) => index);
  const sealing = new RecordProtection({ suite, secret, use: "seal" });
  const out = allocate(72);
  assert.equal(sealing.seal({ bytes: content, at: 0, count: 50 }, DATA, { bytes: out, at: 0 }), 72);
  const expected = `1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2
    977014bd1e3deae63aeebb21694915e4`;
  assert.equal(Buffer.from(out).toString("hex"), hex(expected).toString("hex"));
  const opening = new RecordProtection({ suite, secret, use: "open" });
  const inner = allocate(51);
  assert.ok(opening.open({ bytes: out, at: 0, count: 72 }, { bytes: inner, at: 0 }));
  assert.deepEqual([...inner], [...content, DATA]);
  sealing.dispose();
  assert.throws(() => sealing.seal({ bytes: content, at: 0, count: 50 }, DATA, { bytes: out, at: 0 }));
});

test("AES-256-GCM and late sequence numbers are as another implementation has them", () => {
  const secret = createHash("sha384").update("any").digest();
  const sequence = 2 ** 32 - 1;
  const sealing = new RecordProtection({ suite: "TLS_AES_256_GCM_SHA384", secret, use: "seal", sequence });
  const expand = (label: string, length: number): Buffer => {
    const info = Buffer.concat([
      Uint8Array.of(0, length, label.length + 6),
      Buffer.from(`tls13 ${label}`),
      Uint8Array.of(0, 1),
    ]);
    return createHmac("sha384", secret).update(info).digest().subarray(0, length);
  };
  const [key, iv] = [expand("key", 32), expand("iv", 12)];
  for (const number of [2n ** 32n - 1n, 2n ** 32n, 2n ** 32n + 1n]) {
    const nonce = Buffer.from(iv);
    nonce.writeBigUInt64BE(nonce.readBigUInt64BE(4) ^ number, 4);
    const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(hex("1703030016"));
    const body = [cipher.update(Buffer.from("hello\x17")), cipher.final(), cipher.getAuthTag()];
    const out = allocate(27);
    sealing.seal({ bytes: Uint8Array.from(Buffer.from("hello")), at: 0, count: 5 }, DATA, { bytes: out, at: 0 });
    assert.deepEqual(Buffer.from(out.subarray(5)), Buffer.concat(body));
  }
});

test("sealing and opening write where they may and nowhere beside, authentic or not", () => {
  const secret = Buffer.alloc(32, 1);
  const sealing = new RecordProtection({ suite, secret, use: "seal" });
  const opening = new RecordProtection({ suite, secret, use: "open" });
  const content = Uint8Array.from({ length: 16_384 }, (_, index) => index * 7);
  const isClean = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0xaa);
  for (const count of [0, 1, 15, 16, 17, 1000, 16_384]) {
    for (const before of [0, 3, 64]) {
      const record = allocate(before + count + 22 + 64).fill(0xaa);
      sealing.seal({ bytes: content, at: 16_384 - count, count }, DATA, { bytes: record, at: before });
      assert.ok(isClean(record.subarray(0, before)) && isClean(record.subarray(before + count + 22)));
      const isAuthentic = before !== 3;
      if (!isAuthentic) record[before + count + 21] = (record[before + count + 21] ?? 0) ^ 1;
      const inner = allocate(before + count + 1 + 64).fill(0xaa);
      const span = { bytes: record, at: before, count: count + 22 };
      assert.equal(opening.open(span, { bytes: inner, at: before }), isAuthentic);
      assert.ok(isClean(inner.subarray(0, before)) && isClean(inner.subarray(before + count + 1)));
      if (isAuthentic) assert.deepEqual(inner.subarray(before, before + count), content.slice(16_384 - count));
    }
  }
  sealing.dispose();
  opening.dispose();
});

test("nothing is sealed or opened outside of its buffers, nor with keys that were wiped", () => {
  const secret = Buffer.alloc(32, 1);
  const sealing = new RecordProtection({ suite, secret, use: "seal" });
  const opening = new RecordProtection({ suite, secret, use: "open" });
  const bytes = allocate(100);
  const whole = { bytes, at: 0, count: 100 };
  const refused = { code: "LINUX_CRYPTO" };
  assert.throws(() => sealing.seal(whole, DATA, { bytes: allocate(121), at: 0 }), refused);
  assert.throws(() => sealing.seal({ bytes, at: 1, count: 100 }, DATA, { bytes: allocate(200), at: 0 }), refused);
  assert.throws(() => sealing.seal({ bytes, at: -1, count: 10 }, DATA, { bytes: allocate(200), at: 0 }), refused);
  assert.throws(
    () => sealing.seal({ bytes, at: Number.NaN, count: 10 }, DATA, { bytes: allocate(200), at: 0 }),
    refused,
  );
  assert.throws(() => opening.open(whole, { bytes: allocate(78), at: 0 }), refused);
  assert.throws(() => opening.open({ bytes, at: 1, count: 100 }, { bytes: allocate(200), at: 0 }), refused);
  assert.equal(opening.open({ bytes, at: 0, count: 21 }, { bytes: allocate(200), at: 0 }), false, "no room for a type");
  assert.equal(opening.open(whole, { bytes: allocate(200), at: 0 }), false);
  for (const protection of [sealing, opening]) {
    protection.dispose();
    protection.dispose();
    assert.throws(() => {
      protection.update();
    }, refused);
  }
  assert.throws(() => sealing.seal(whole, DATA, { bytes: allocate(122), at: 0 }), refused);
  assert.throws(() => opening.open(whole, { bytes: allocate(200), at: 0 }), refused);
});
