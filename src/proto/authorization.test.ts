import assert from "node:assert/strict";
import { test } from "node:test";
import { create, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import fc from "fast-check";
import { CodedError } from "#base/errors";
import { bytesToIp, isV6 } from "#base/ip";
import { EMPTY_MATCH, type Authorization } from "#model/authorization";
import { anyMatch, few } from "../model/testing.ts";
import { decodeAuthorization, encodeAuthorization, MAX_AUTHORIZATION_BYTES } from "./authorization.ts";
import { AuthorizationSchema, type MatchSchema } from "./gen/istio/security/authorization_pb.js";

const label = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$/);
const cidr = fc
  .tuple(
    fc.oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.uint8Array({ minLength: 16, maxLength: 16 })),
    fc.nat(128),
  )
  .map(([bytes, length]) => {
    const address = bytesToIp(bytes);
    return { address, length: isV6(address) ? length : length % 33 };
  });
const port = fc.nat(65535);
const policy: fc.Arbitrary<Authorization> = fc.record({
  name: label,
  namespace: label,
  scope: fc.constantFrom("global" as const, "namespace" as const, "workload" as const),
  action: fc.constantFrom("allow" as const, "deny" as const),
  dryRun: fc.boolean(),
  rules: few(few(few(anyMatch({ text: fc.string(), name: label, cidr, port })))),
});

test("a policy comes back from the wire as it was", () => {
  fc.assert(
    fc.property(policy, (made) => {
      const decoded = decodeAuthorization(`${made.namespace}/${made.name}`, encodeAuthorization(made));
      assert.deepEqual(decoded, { policy: structuredClone(made) }); // fast-check's objects have no prototype
    }),
  );
});

test("any bytes are a policy, or its code with whom it may apply to", () => {
  const check = (bytes: Uint8Array): void => {
    const decoded = decodeAuthorization("shop/p", bytes);
    if ("policy" in decoded) return;
    assert.ok(decoded.error instanceof CodedError, String(decoded.error));
    assert.match(decoded.error.code, /^AUTHORIZATION_/);
    assert.notEqual(decoded.namespace, "");
  };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), check));
  const mutated = fc
    .tuple(policy, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 }), fc.nat())
    .map(([made, changes, cut]) => {
      const bytes = encodeAuthorization({ ...made, name: "p", namespace: "shop" });
      for (const [at, value] of changes) bytes[at % bytes.length] = value;
      return cut % 4 === 0 ? bytes.subarray(0, cut % bytes.length) : bytes;
    });
  fc.assert(fc.property(mutated, check), { numRuns: 300 });
});

/** What is told of a message of `shop/p`: its code, whom it may apply to. */
function told(fields: MessageInitShape<typeof AuthorizationSchema>): string {
  const wire = create(AuthorizationSchema, { name: "p", namespace: "shop", scope: 2, ...fields });
  const decoded = decodeAuthorization("shop/p", toBinary(AuthorizationSchema, wire));
  if ("policy" in decoded) return "understood";
  const code = decoded.error instanceof CodedError ? decoded.error.code : "none";
  return `${code} ${decoded.namespace} ${decoded.scope}${decoded.dryRun ? " dry" : ""}`;
}

const match = (fields: MessageInitShape<typeof MatchSchema>): string =>
  told({ rules: [{ clauses: [{ matches: [fields] }] }] });

test("a policy that is not understood says why, and applies as widely as it may", () => {
  assert.equal(told({}), "understood");
  assert.equal(told({ name: "other" }), "AUTHORIZATION_NAME shop workload");
  assert.equal(told({ name: "" }), "AUTHORIZATION_NAME shop workload");
  assert.equal(told({ namespace: "", scope: 1 }), "AUTHORIZATION_NAME shop namespace");
  assert.equal(told({ scope: 9 as number }), "AUTHORIZATION_ENUM shop global");
  assert.equal(told({ action: 2 as number, scope: 1 }), "AUTHORIZATION_ENUM shop namespace");
  assert.equal(told({ action: 2 as number, dryRun: true }), "AUTHORIZATION_ENUM shop workload dry");
  assert.equal(
    match({ sourceIps: [{ address: Uint8Array.of(1, 2, 3), length: 8 }] }),
    "AUTHORIZATION_IP shop workload",
  );
  assert.equal(
    match({ sourceIps: [{ address: new Uint8Array(4), length: 33 }] }),
    "AUTHORIZATION_PREFIX shop workload",
  );
  assert.equal(match({ destinationPorts: [65536] }), "AUTHORIZATION_PORT shop workload");
  assert.equal(match({ principals: [{}] }), "AUTHORIZATION_STRING shop workload");
  assert.equal(match({ extensions: [{ name: "x" }] }), "AUTHORIZATION_CONDITION shop workload");
  const large = { rules: [{ clauses: [{ matches: [{ namespaces: [exact("x".repeat(MAX_AUTHORIZATION_BYTES))] }] }] }] };
  assert.equal(told(large), "AUTHORIZATION_TOO_LARGE shop workload");
  const broken = decodeAuthorization("shop/p", Uint8Array.of(0xff));
  assert.equal("error" in broken ? broken.scope : "", "global", "nobody knows whom it applies to");
});

function exact(value: string) {
  return { matchType: { case: "exact" as const, value } };
}

test("a field of a later version is not ignored: it may narrow what the rest allows", () => {
  const field99 = Uint8Array.of(0x98, 0x06, 0x01); // number 99, varint 1
  const plain = encodeAuthorization({
    name: "p",
    namespace: "shop",
    scope: "namespace",
    action: "allow",
    dryRun: false,
    rules: [[[{ ...EMPTY_MATCH, destinationPorts: [80] }]]],
  });
  const code = (bytes: Uint8Array): string => {
    const decoded = decodeAuthorization("shop/p", bytes);
    return "error" in decoded && decoded.error instanceof CodedError ? decoded.error.code : "understood";
  };
  assert.equal(code(plain), "understood");
  assert.equal(code(Uint8Array.of(...plain, ...field99)), "AUTHORIZATION_CONDITION");
  const inner = [0x12, 0x06, 0x4a, 0x01, 0x50, ...field99]; // Clause.matches: ports [80] and the field
  const rule = [0x2a, inner.length + 2, 0x0a, inner.length, ...inner];
  const head = toBinary(AuthorizationSchema, create(AuthorizationSchema, { name: "p", namespace: "shop", scope: 1 }));
  assert.equal(code(Uint8Array.of(...head, ...rule)), "AUTHORIZATION_CONDITION");
});

test("an IPv4 address in IPv6 form is IPv4", () => {
  const mapped = Uint8Array.from([...Array<number>(10).fill(0), 0xff, 0xff, 10, 1, 0, 0]);
  const of = (length: number) => {
    const rules = [{ clauses: [{ matches: [{ sourceIps: [{ address: mapped, length }] }] }] }];
    const wire = create(AuthorizationSchema, { name: "p", namespace: "shop", rules });
    return decodeAuthorization("shop/p", toBinary(AuthorizationSchema, wire));
  };
  const decoded = of(112);
  assert.deepEqual("policy" in decoded ? decoded.policy.rules[0]?.[0]?.[0]?.sourceIps : [], [
    { address: "10.1.0.0", length: 16 },
  ]);
  assert.ok("error" in of(95));
});
