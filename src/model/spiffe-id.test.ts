import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { formatSpiffeId, parseSpiffeId, parseWorkloadIdentity, trustDomainOf } from "./spiffe-id.ts";

test("IDs that the standard allows are read as they stand", () => {
  const ids = [
    "spiffe://td",
    "spiffe://td/path",
    "spiffe://td/.path",
    "spiffe://td/...",
    "spiffe://1.2.3.4/x",
    "spiffe://a_b.c-d/X_1.2",
  ];
  for (const id of ids) assert.equal(parseSpiffeId(id), id);
  assert.equal(trustDomainOf(parseSpiffeId("spiffe://a.b/ns/c")), "a.b");
});

test("each broken rule has its own code", () => {
  const cases: [string, string][] = [
    ["", "EMPTY"],
    ...["s", "spiffe:/", "Spiffe://td", "SPIFFE://td", "http://td/x"].map((id): [string, string] => [id, "SCHEME"]),
    ...[
      "spiffe://",
      "spiffe:///",
      "spiffe:///p",
      "spiffe://TD/x",
      "spiffe://td:80/x",
      "spiffe://u@td/x",
      "spiffe://[::1]/x",
      "spiffe://%41/x",
    ].map((id): [string, string] => [id, "TRUST_DOMAIN"]),
    ...[
      "spiffe://td/",
      "spiffe://td/p/",
      "spiffe://td//p",
      "spiffe://td/.",
      "spiffe://td/a/..",
      "spiffe://td/p$",
      "spiffe://td/p?x=1",
      "spiffe://td/p#f",
      "spiffe://td/%62",
    ].map((id): [string, string] => [id, "PATH"]),
    [`spiffe://td/${"a".repeat(2048)}`, "TOO_LONG"],
  ];
  for (const [id, code] of cases) assert.throws(() => parseSpiffeId(id), { code: `SPIFFE_ID_${code}` }, id);
});

test("a workload's ID has exactly a namespace and a service account", () => {
  const identity = { trustDomain: "cluster.local", namespace: "shop", serviceAccount: "cart" };
  assert.equal(formatSpiffeId(identity), "spiffe://cluster.local/ns/shop/sa/cart");
  assert.deepEqual(parseWorkloadIdentity(formatSpiffeId(identity)), identity);
  for (const id of ["spiffe://td", "spiffe://td/ns/a", "spiffe://td/ns/a/sa/b/c", "spiffe://td/sa/a/ns/b"]) {
    assert.throws(() => parseWorkloadIdentity(id), { code: "SPIFFE_ID_WORKLOAD" });
  }
  assert.throws(() => formatSpiffeId({ ...identity, namespace: "a/b/../c" }), { code: "SPIFFE_ID_PATH" });
  for (const part of ["trustDomain", "namespace", "serviceAccount"] as const) {
    assert.throws(() => formatSpiffeId({ ...identity, [part]: "a/b" }), { code: "SPIFFE_ID_WORKLOAD" });
  }
});

test("any text is read back unchanged or refused with a code of ours", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.webUrl({ validSchemes: ["spiffe"] })), (text) => {
      try {
        assert.equal(parseSpiffeId(text), text);
      } catch (error) {
        assert.ok(error instanceof CodedError && error.code.startsWith("SPIFFE_ID_"));
      }
    }),
  );
});
