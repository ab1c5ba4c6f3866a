import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { bytesToIp, cidrContains, isV6, parseCidr, parseIp, type Cidr, type IpAddress } from "#base/ip";
import { EMPTY_MATCH, type Authorization, type AuthorizationMatch, type StringMatch } from "#model/authorization";
import { formatSpiffeId, parseSpiffeId } from "#model/spiffe-id";
import { CidrSet } from "./cidr-set.ts";
import { compileRules, subjectOf, type PolicyRequest } from "./matcher.ts";
import { anyMatch, few } from "../model/testing.ts";
import { exactly, testPolicy } from "./testing.ts";

const plaintext: PolicyRequest = {
  identity: undefined,
  sourceIp: parseIp("127.0.0.1"),
  destinationIp: parseIp("127.0.0.2"),
  destinationPort: 8080,
};
const mutual: PolicyRequest = { ...plaintext, identity: parseSpiffeId("spiffe://td/ns/shop/sa/cart") };
const stranger: PolicyRequest = {
  identity: parseSpiffeId("spiffe://other/ns/bank/sa/thief"),
  sourceIp: parseIp("127.0.0.3"),
  destinationIp: parseIp("127.0.0.4"),
  destinationPort: 9090,
};

function matches(policy: Authorization, request: PolicyRequest): boolean {
  return compileRules(policy)(subjectOf(request));
}

describe("rules", () => {
  const with_ = (rules: Authorization["rules"]): boolean => matches(testPolicy("p", [], { rules }), plaintext);

  it("that are empty match nothing, with no clause or an empty one everything, with an empty match nothing", () => {
    assert.equal(with_([]), false);
    assert.equal(with_([[]]), true);
    assert.equal(with_([[[]]]), true);
    assert.equal(with_([[[EMPTY_MATCH]]]), false);
  });

  it("skip an empty match beside others, and need every clause", () => {
    const port = { ...EMPTY_MATCH, destinationPorts: [8080] };
    assert.equal(with_([[[EMPTY_MATCH, port]]]), true);
    assert.equal(with_([[[port], [EMPTY_MATCH]]]), false);
    assert.equal(with_([[[port], []]]), true);
  });

  const namespace = (name: string): AuthorizationMatch => ({ ...EMPTY_MATCH, namespaces: [exactly(name)] });
  const from = (name: string, destinationPort = 80): PolicyRequest => ({
    ...plaintext,
    identity: parseSpiffeId(`spiffe://td/ns/${name}/sa/x`),
    destinationPort,
  });

  it("take one match of a clause, all clauses of a rule", () => {
    const clauses = [[namespace("a"), namespace("b")], [{ ...EMPTY_MATCH, destinationPorts: [80] }]];
    const policy = testPolicy("p", [], { rules: [clauses] });
    assert.equal(matches(policy, from("a")), true);
    assert.equal(matches(policy, from("b")), true);
    assert.equal(matches(policy, from("c")), false);
    assert.equal(matches(policy, from("b", 81)), false);
  });

  it("take one rule of several", () => {
    const policy = testPolicy("p", [], { rules: [[[namespace("a")]], [[namespace("b")]]] });
    assert.deepEqual(
      ["a", "b", "c"].map((name) => matches(policy, from(name))),
      [true, true, false],
    );
  });
});

describe("a match", () => {
  // In plaintext, with the identity, of somebody else.
  const rows: readonly (readonly [string, Partial<AuthorizationMatch>, readonly [boolean, boolean, boolean]])[] = [
    ["namespaces", { namespaces: [exactly("shop")] }, [false, true, false]],
    ["notNamespaces", { notNamespaces: [exactly("shop")] }, [true, false, true]],
    ["serviceAccounts", { serviceAccounts: [{ namespace: "shop", serviceAccount: "cart" }] }, [false, true, false]],
    [
      "notServiceAccounts",
      { notServiceAccounts: [{ namespace: "shop", serviceAccount: "cart" }] },
      [true, false, true],
    ],
    ["principals", { principals: [exactly("td/ns/shop/sa/cart")] }, [false, true, false]],
    ["notPrincipals", { notPrincipals: [exactly("td/ns/shop/sa/cart")] }, [true, false, true]],
    ["principals: presence", { principals: [{ kind: "presence" }] }, [false, true, true]],
    ["notPrincipals: presence, which is STRICT", { notPrincipals: [{ kind: "presence" }] }, [true, false, false]],
    [
      "principals with spiffe:// never fit",
      { principals: [exactly("spiffe://td/ns/shop/sa/cart")] },
      [false, false, false],
    ],
    ["sourceIps", { sourceIps: [parseCidr("127.0.0.1/32")] }, [true, true, false]],
    ["notSourceIps", { notSourceIps: [parseCidr("127.0.0.1/32")] }, [false, false, true]],
    ["destinationIps", { destinationIps: [parseCidr("127.0.0.2/32")] }, [true, true, false]],
    ["notDestinationIps", { notDestinationIps: [parseCidr("127.0.0.2/32")] }, [false, false, true]],
    ["destinationIps by range", { destinationIps: [parseCidr("127.0.0.1/24")] }, [true, true, true]],
    ["destinationPorts", { destinationPorts: [8080] }, [true, true, false]],
    ["notDestinationPorts", { notDestinationPorts: [8080] }, [false, false, true]],
    [
      "positive and negative together",
      { destinationPorts: [8080, 9090], notPrincipals: [{ kind: "presence" }] },
      [true, false, false],
    ],
  ];
  for (const [name, match, expected] of rows) {
    it(`by ${name}`, () => {
      const policy = testPolicy("p", [match]);
      assert.deepEqual(
        [plaintext, mutual, stranger].map((request) => matches(policy, request)),
        expected,
      );
    });
  }
});

describe("a text", () => {
  const rows: readonly (readonly [StringMatch, string, boolean])[] = [
    [exactly("foo"), "foo", true],
    [exactly("foo"), "not", false],
    [exactly("foo"), "Foo", false],
    [{ kind: "prefix", value: "foo" }, "foobar", true],
    [{ kind: "prefix", value: "foo" }, "notfoo", false],
    [{ kind: "suffix", value: "foo" }, "barfoo", true],
    [{ kind: "suffix", value: "foo" }, "foonot", false],
    [{ kind: "presence" }, "foo", true],
  ];
  for (const [match, namespace, expected] of rows) {
    it(`${JSON.stringify(match)} ${expected ? "fits" : "does not fit"} ${namespace}`, () => {
      const identity = formatSpiffeId({ trustDomain: "td", namespace, serviceAccount: "x" });
      assert.equal(matches(testPolicy("p", [{ namespaces: [match] }]), { ...plaintext, identity }), expected);
    });
  }

  it("that is empty is only what plaintext's namespace is", () => {
    const fits = (match: StringMatch): boolean => matches(testPolicy("p", [{ namespaces: [match] }]), plaintext);
    assert.deepEqual(
      [fits(exactly("foo")), fits({ kind: "prefix", value: "foo" }), fits({ kind: "presence" })],
      [false, false, false],
    );
    assert.equal(fits({ kind: "suffix", value: "" }), true);
  });

  it("of an identity that names no workload is its principal alone", () => {
    const odd = { ...plaintext, identity: parseSpiffeId("spiffe://td/machine/7") };
    assert.equal(matches(testPolicy("p", [{ principals: [exactly("td/machine/7")] }]), odd), true);
    assert.equal(matches(testPolicy("p", [{ namespaces: [{ kind: "presence" }] }]), odd), false);
    assert.equal(matches(testPolicy("p", [{ serviceAccounts: [{ namespace: "", serviceAccount: "" }] }]), odd), false);
  });
});

const ip: fc.Arbitrary<IpAddress> = fc
  .oneof(
    fc.tuple(fc.constantFrom(10, 192), fc.nat(1), fc.nat(1), fc.nat(255)).map((bytes) => Uint8Array.from(bytes)),
    fc.tuple(fc.nat(1), fc.nat(255)).map(([a, b]) => Uint8Array.from([0xfd, ...Array<number>(13).fill(0), a, b])),
  )
  .map((bytes) => bytesToIp(bytes));
const cidr: fc.Arbitrary<Cidr> = fc
  .tuple(ip, fc.nat(128))
  .map(([address, length]) => ({ address, length: isV6(address) ? length : length % 33 }));

describe("many prefixes together", () => {
  it("hold what one of them holds", () => {
    fc.assert(
      fc.property(fc.array(cidr, { maxLength: 6 }), ip, (cidrs, address) => {
        const expected = cidrs.some((one) => cidrContains(one, address));
        assert.equal(new CidrSet(cidrs).has(address), expected);
      }),
    );
  });
});

/** The same in the words of the table, without any preparation. */
function obvious(
  policy: Authorization,
  { identity, sourceIp, destinationIp, destinationPort }: PolicyRequest,
): boolean {
  const [trustDomain, , namespace = "", , account] = identity?.slice("spiffe://".length).split("/") ?? [];
  const text = (match: StringMatch, value: string): boolean =>
    match.kind === "presence"
      ? value !== ""
      : { exact: value === match.value, prefix: value.startsWith(match.value), suffix: value.endsWith(match.value) }[
          match.kind
        ];
  const fit = <T>(yes: readonly T[], no: readonly T[], holds: (one: T) => boolean): boolean =>
    (yes.length === 0 || yes.some(holds)) && !no.some(holds);
  const one = (match: AuthorizationMatch): boolean =>
    Object.values(match).some((list) => list.length > 0) &&
    fit(match.namespaces, match.notNamespaces, (m) => text(m, namespace)) &&
    fit(
      match.principals,
      match.notPrincipals,
      (m) => identity !== undefined && text(m, `${trustDomain}/ns/${namespace}/sa/${account}`),
    ) &&
    fit(
      match.serviceAccounts,
      match.notServiceAccounts,
      (m) => m.namespace === namespace && m.serviceAccount === account,
    ) &&
    fit(match.sourceIps, match.notSourceIps, (m) => cidrContains(m, sourceIp)) &&
    fit(match.destinationIps, match.notDestinationIps, (m) => cidrContains(m, destinationIp)) &&
    fit(match.destinationPorts, match.notDestinationPorts, (m) => m === destinationPort);
  return policy.rules.some((rule) => rule.every((clause) => clause.length === 0 || clause.some(one)));
}

describe("a compiled policy", () => {
  const name = fc.constantFrom("a", "ab", "b");
  const text = fc.constantFrom("a", "ab", "b", "", "td/ns/a/sa/b", "td/", "/b");
  const port = fc.constantFrom(80, 81);
  // Most conditions are left out, so that some policies match.
  const sparse = fc.tuple(anyMatch({ text, name, cidr, port }), fc.uniqueArray(fc.nat(11))).map(
    ([full, kept]): AuthorizationMatch =>
      Object.fromEntries(
        Object.entries(full).map(([key, list], i) => [key, kept[0] === i || kept[1] === i ? list : []]),
      ) as unknown as AuthorizationMatch, // the same keys
  );
  const rules = few(few(few(sparse)));
  const identity = fc.option(
    fc
      .tuple(name, name)
      .map(([namespace, serviceAccount]) => formatSpiffeId({ trustDomain: "td", namespace, serviceAccount })),
    { nil: undefined },
  );
  const request = fc.record({ identity, sourceIp: ip, destinationIp: ip, destinationPort: port });

  it("decides as the obvious evaluation does", () => {
    fc.assert(
      fc.property(rules, request, (some, asked) => {
        const policy = testPolicy("p", [], { rules: some });
        assert.equal(matches(policy, asked), obvious(policy, asked));
      }),
      { numRuns: 500 },
    );
  });
});
