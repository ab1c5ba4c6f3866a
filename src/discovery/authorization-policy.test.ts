import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { AuthorizationMatch } from "#model/authorization";
import { convertAuthorizationPolicy } from "./authorization-policy.ts";
import type { AuthorizationPolicy } from "./security-kinds.ts";

type Spec = NonNullable<AuthorizationPolicy["spec"]>;

function convert(spec: Spec, metadata: AuthorizationPolicy["metadata"] = {}) {
  return convertAuthorizationPolicy({ metadata: { name: "p", namespace: "shop", ...metadata }, spec }, "istio-system");
}

/** The rules in short: what is not empty of each match. */
function rules(spec: Spec): unknown {
  const short = (match: AuthorizationMatch): object =>
    Object.fromEntries(Object.entries(match).filter(([, list]) => list.length > 0));
  return convert(spec).policy?.rules.map((rule) => rule.map((clause) => clause.map(short)));
}

const exact = (value: string) => ({ kind: "exact", value });
const every = { kind: "presence" };

describe("an AuthorizationPolicy", () => {
  it("is about what it selects, its namespace, or the mesh", () => {
    const scope = (spec: Spec, namespace = "shop"): string | undefined => convert(spec, { namespace }).policy?.scope;
    assert.equal(scope({ selector: { matchLabels: { app: "a" } } }), "workload");
    assert.equal(scope({ selector: {} }), "workload");
    assert.equal(scope({}), "namespace");
    assert.equal(scope({}, "istio-system"), "global");
    assert.equal(scope({ selector: {} }, "istio-system"), "workload");
  });

  it("is left to the waypoint that it names", () => {
    const target = { kind: "Gateway", name: "waypoint" };
    const nothing = { policy: undefined, problem: undefined, elsewhere: true };
    assert.deepEqual(convert({ targetRefs: [target] }), nothing);
    assert.deepEqual(convert({ targetRef: target }), nothing);
  });

  it("allows, denies, and says when its action cannot be enforced", () => {
    assert.equal(convert({}).policy?.action, "allow");
    assert.equal(convert({ action: "ALLOW" }).policy?.action, "allow");
    assert.equal(convert({ action: "DENY" }).policy?.action, "deny");
    for (const action of ["AUDIT", "CUSTOM"]) {
      assert.equal(convert({ action }).policy, undefined);
      assert.match(convert({ action }).problem ?? "", new RegExp(`action ${action} is not enforced`));
    }
  });

  it("is only tried out when it says so", () => {
    const dryRun = (value: string) => convert({}, { annotations: { "istio.io/dry-run": value } }).policy?.dryRun;
    assert.deepEqual([dryRun("true"), dryRun("false"), convert({}).policy?.dryRun], [true, false, false]);
  });

  it("keeps no rule, and a rule without conditions, as they are", () => {
    assert.deepEqual(rules({}), []);
    assert.deepEqual(rules({ rules: [{}] }), [[]]);
  });

  it("reads texts as all, prefix, suffix or exact, accounts in their namespace, addresses and ports", () => {
    const source = {
      principals: ["td/ns/a/sa/b", "td/ns/a/*", "*/sa/b", "*"],
      notPrincipals: ["*"],
      namespaces: ["a"],
      notNamespaces: ["b*"],
      serviceAccounts: ["bank/teller", "cart"],
      notServiceAccounts: ["till"],
      ipBlocks: ["1.2.3.4", "5.6.0.0/16", "fd00::1"],
      notIpBlocks: ["2.2.3.4/32"],
    };
    const operation = { ports: ["80", "90"], notPorts: ["800"] };
    assert.deepEqual(rules({ rules: [{ from: [{ source }], to: [{ operation }] }] }), [
      [
        [{ destinationPorts: [80, 90], notDestinationPorts: [800] }],
        [
          {
            principals: [
              exact("td/ns/a/sa/b"),
              { kind: "prefix", value: "td/ns/a/" },
              { kind: "suffix", value: "/sa/b" },
              every,
            ],
            notPrincipals: [every],
            namespaces: [exact("a")],
            notNamespaces: [{ kind: "prefix", value: "b" }],
            serviceAccounts: [
              { namespace: "bank", serviceAccount: "teller" },
              { namespace: "shop", serviceAccount: "cart" },
            ],
            notServiceAccounts: [{ namespace: "shop", serviceAccount: "till" }],
            sourceIps: [
              { address: "1.2.3.4", length: 32 },
              { address: "5.6.0.0", length: 16 },
              { address: "fd00::1", length: 128 },
            ],
            notSourceIps: [{ address: "2.2.3.4", length: 32 }],
          },
        ],
      ],
    ]);
  });

  it("makes a clause of all entries of from, of all of to, and one of each condition", () => {
    const from = ["a", "b"].map((name) => ({ source: { namespaces: [name] } }));
    const when = [
      { key: "source.namespace", values: ["c"], notValues: ["d"] },
      { key: "source.ip", values: ["10.0.0.1"] },
      { key: "source.principal", notValues: ["*"] },
      { key: "destination.ip", values: ["10.0.0.2"] },
      { key: "destination.port", values: ["91"], notValues: ["92"] },
    ];
    assert.deepEqual(rules({ rules: [{ from, when }] }), [
      [
        [{ namespaces: [exact("a")] }, { namespaces: [exact("b")] }],
        [{ namespaces: [exact("c")], notNamespaces: [exact("d")] }],
        [{ sourceIps: [{ address: "10.0.0.1", length: 32 }] }],
        [{ notPrincipals: [every] }],
        [{ destinationIps: [{ address: "10.0.0.2", length: 32 }] }],
        [{ destinationPorts: [91], notDestinationPorts: [92] }],
      ],
    ]);
  });
});

const mixedFrom = {
  from: [{ source: { principals: ["x"], requestPrincipals: ["y"] } }],
  to: [{ operation: { ports: ["80"] } }],
};
const mixedTo = { to: [{ operation: { ports: ["80"], methods: ["GET"] } }] };
const plain = { from: [{ source: { principals: ["x"] } }], to: [{ operation: { ports: ["80"] } }] };
const httpOnly = { from: [{ source: { requestPrincipals: ["y"] } }], to: [{ operation: { paths: ["/x"] } }] };
const whenMixed = {
  when: [
    { key: "source.namespace", values: ["a"] },
    { key: "connection.sni", values: ["b"] },
  ],
};
const headers = { when: [{ key: "request.headers[X-User]", values: ["b"] }] };

describe("conditions that only a reader of HTTP can decide", () => {
  it("leave out every ALLOW rule that has one, and the status says so", () => {
    const spec = { rules: [mixedFrom, mixedTo, plain, httpOnly, whenMixed, headers] };
    assert.deepEqual(rules(spec), [[[{ destinationPorts: [80] }], [{ principals: [exact("x")] }]]]);
    const { problem = "" } = convert(spec);
    assert.match(problem, /HTTP \(connection\.sni, methods, paths, request\.headers\[X-User\], requestPrincipals\)/);
    assert.match(problem, /less is allowed than is written/);
    assert.deepEqual(rules({ rules: [httpOnly] }), [], "an ALLOW without rules allows nothing");
  });

  it("are taken out of DENY rules: mixed entries deny more", () => {
    const spec = { action: "DENY", rules: [mixedFrom, mixedTo, plain] };
    assert.deepEqual(rules(spec), [
      [[{ destinationPorts: [80] }], [{ principals: [exact("x")] }]],
      [[{ destinationPorts: [80] }]],
      [[{ destinationPorts: [80] }], [{ principals: [exact("x")] }]],
    ]);
    const { problem = "" } = convert(spec);
    assert.match(problem, /more is denied than is written/);
    assert.doesNotMatch(problem, /NO EFFECT/);
  });

  it("leave an empty match where nothing else is: that DENY rule is without effect, and the status says so", () => {
    const spec = { action: "DENY", rules: [httpOnly, whenMixed, headers, plain] };
    assert.deepEqual(rules(spec), [
      [[{}], [{}]],
      [[{ namespaces: [exact("a")] }], [{}]],
      [[{}]],
      [[{ destinationPorts: [80] }], [{ principals: [exact("x")] }]],
    ]);
    assert.match(convert(spec).problem ?? "", /3 of 4 rules have NO EFFECT/);
    assert.equal(convert({ action: "DENY", rules: [plain] }).problem, undefined);
  });

  it("are everything that is not known by name, names of every object's own too", () => {
    const { problem = "" } = convert({ action: "DENY", rules: [{ when: [{ key: "constructor", values: ["x"] }] }] });
    assert.match(problem, /constructor/);
  });
});

describe("a value that cannot be read", () => {
  const broken = {
    from: [{ source: { ipBlocks: ["10.0.0.0/33", "10.0.0.1"] } }],
    to: [{ operation: { ports: ["80"] } }],
  };

  it("leaves out its ALLOW rule", () => {
    assert.deepEqual(rules({ rules: [broken, plain] }), [
      [[{ destinationPorts: [80] }], [{ principals: [exact("x")] }]],
    ]);
    assert.match(
      convert({ rules: [broken] }).problem ?? "",
      /values of ipBlocks cannot be read: rules with them are left out/,
    );
  });

  it("makes the clause of a DENY rule true", () => {
    assert.deepEqual(rules({ action: "DENY", rules: [broken] }), [[[{ destinationPorts: [80] }], []]]);
    const ports = { when: [{ key: "destination.port", values: ["http"] }] };
    assert.deepEqual(rules({ action: "DENY", rules: [ports] }), [[[]]]);
    assert.match(
      convert({ action: "DENY", rules: [ports] }).problem ?? "",
      /destination\.port cannot be read: they are taken/,
    );
    const negative = { to: [{ operation: { notPorts: ["65536"] } }] };
    assert.deepEqual(rules({ action: "DENY", rules: [negative] }), [[[]]]);
  });
});
