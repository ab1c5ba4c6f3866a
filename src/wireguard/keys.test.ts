import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeKey, generateKeyPair, KEY_BYTES, publicKeyOf } from "./keys.ts";

test("a public key is that of RFC 7748 section 5.2: the first iteration from 9", () => {
  const privateKey = Buffer.alloc(KEY_BYTES);
  privateKey[0] = 9;
  const known = Buffer.from("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079", "hex");
  assert.equal(publicKeyOf(privateKey), known.toString("base64"));
});

test("disposing a pair overwrites its private key", () => {
  const pair = generateKeyPair();
  assert.equal(pair.publicKey, publicKeyOf(pair.privateKey));
  assert.ok(pair.privateKey.some((byte) => byte !== 0));
  pair[Symbol.dispose]();
  assert.ok(pair.privateKey.every((byte) => byte === 0));
});

test("only the one base64 form of 32 bytes is a key", () => {
  const { publicKey } = generateKeyPair();
  assert.equal(decodeKey(publicKey)?.length, KEY_BYTES);
  const wrong = [
    "",
    "x",
    publicKey.slice(1),
    `${publicKey}=`,
    `${publicKey}\n`,
    publicKey.replace("=", ""),
    "A".repeat(44),
  ];
  for (const text of wrong) assert.equal(decodeKey(text), undefined, text);
});
