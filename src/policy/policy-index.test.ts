import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseSpiffeId } from "#model/spiffe-id";
import type { Authorization } from "#model/authorization";
import { describeDecision, type Decision } from "./decide.ts";
import { PolicyIndex } from "./policy-index.ts";
import { exactly, testPolicy, testQuestion } from "./testing.ts";

const from = (account: string) => parseSpiffeId(`spiffe://cluster.local/ns/shop/sa/${account}`);
const fromAccount = (account: string) => ({ principals: [exactly(`cluster.local/ns/shop/sa/${account}`)] });
const everything = { rules: [[]] };

function index(...policies: readonly Authorization[]): PolicyIndex {
  const made = new PolicyIndex();
  made.apply({ upserts: policies, unusable: [], removes: [] });
  return made;
}

function line({ allowed, reason, policy, dryRun }: Decision): string {
  const words = [allowed ? "allowed" : "refused", reason, policy];
  if (dryRun !== undefined)
    words.push(`dry run ${dryRun.allowed ? "allows" : "refuses"} ${dryRun.policy ?? ""}`.trim());
  return words.filter(Boolean).join(" ");
}

describe("a decision", () => {
  it("allows where no policy applies", () => {
    assert.equal(line(index().decide(testQuestion())), "allowed no_policy");
    assert.equal(line(index(testPolicy("p", [], { namespace: "other" })).decide(testQuestion())), "allowed no_policy");
  });

  it("goes by who denies before who allows, and then needs one who allows", () => {
    const policies = index(
      testPolicy("allow", [fromAccount("client"), fromAccount("both")]),
      testPolicy("deny", [fromAccount("bad"), fromAccount("both")], { action: "deny" }),
    );
    const ask = (account: string): string => line(policies.decide(testQuestion({ identity: from(account) })));
    assert.equal(ask("client"), "allowed allowed shop/allow");
    assert.equal(ask("bad"), "refused denied shop/deny");
    assert.equal(ask("both"), "refused denied shop/deny");
    assert.equal(ask("stranger"), "refused not_allowed");
    assert.equal(line(policies.decide(testQuestion({ identity: undefined }))), "refused not_allowed");
    assert.equal(
      line(policies.decide(testQuestion({ namespace: "other", identity: from("bad") }))),
      "allowed no_policy",
    );
  });

  it("allows what is not denied where nobody allows anything", () => {
    const policies = index(testPolicy("deny", [fromAccount("bad")], { action: "deny" }));
    assert.equal(line(policies.decide(testQuestion())), "allowed no_policy");
  });

  it("refuses all by an ALLOW without rules, nothing by a DENY without", () => {
    assert.equal(line(index(testPolicy("none")).decide(testQuestion())), "refused not_allowed");
    assert.equal(line(index(testPolicy("none", [], { action: "deny" })).decide(testQuestion())), "allowed no_policy");
  });

  it("refuses where a policy applies that could not be understood", () => {
    const policies = index(testPolicy("allow", [], everything));
    const unusable = { name: "shop/odd", namespace: "shop", scope: "namespace" as const };
    policies.apply({ upserts: [], unusable: [unusable], removes: [] });
    const decision = policies.decide(testQuestion());
    assert.equal(line(decision), "refused unusable shop/odd");
    assert.match(describeDecision(decision), /shop\/odd applies, and this proxy cannot enforce it/);
    policies.apply({ upserts: [testPolicy("odd", [], everything)], unusable: [], removes: [] });
    assert.equal(policies.decide(testQuestion()).allowed, true, "until it is corrected");
  });

  it("says what upstream says", () => {
    const text = (policy: Authorization): string => describeDecision(index(policy).decide(testQuestion()));
    assert.equal(text(testPolicy("p", [fromAccount("client")])), "allowed by: shop/p");
    assert.equal(text(testPolicy("p", [], { ...everything, action: "deny" })), "explicitly denied by: shop/p");
    assert.equal(text(testPolicy("p")), "allow policies exist, but none allowed");
    assert.equal(text(testPolicy("p", [], { namespace: "other" })), "no policy restricts it");
  });
});

describe("a policy in dry run", () => {
  const tried = (name: string, account: string, action: "allow" | "deny"): Authorization =>
    testPolicy(name, [fromAccount(account)], { action, dryRun: true });

  it("decides nothing, and tells what it would have decided", () => {
    const ask = (account: string, ...policies: readonly Authorization[]): string =>
      line(index(...policies).decide(testQuestion({ identity: from(account) })));
    assert.equal(ask("client", tried("d", "client", "deny")), "allowed no_policy dry run refuses shop/d");
    assert.equal(ask("other", tried("d", "client", "deny")), "allowed no_policy");
    assert.equal(ask("client", tried("a", "client", "allow")), "allowed no_policy");
    assert.equal(ask("other", tried("a", "client", "allow")), "allowed no_policy dry run refuses");
    const real = testPolicy("real", [fromAccount("client")]);
    assert.equal(ask("other", real, tried("a", "other", "allow")), "refused not_allowed dry run allows shop/a");
    assert.equal(ask("client", real, tried("a", "other", "allow")), "allowed allowed shop/real");
    const deny = testPolicy("deny", [fromAccount("bad")], { action: "deny" });
    assert.equal(ask("bad", deny, tried("a", "bad", "allow")), "refused denied shop/deny");
    assert.equal(
      ask("client", deny, real, tried("d", "client", "deny")),
      "allowed allowed shop/real dry run refuses shop/d",
    );
  });
});

describe("the index of policies", () => {
  const decides = (policies: PolicyIndex, namespace: string, policyNames: readonly string[] = []): boolean =>
    policies.decide(testQuestion({ namespace, policyNames })).allowed;

  it("finds global ones everywhere, a namespace's there, others where they are listed", () => {
    const of = (scope: Authorization["scope"]): PolicyIndex => index(testPolicy("p", [], { scope }));
    assert.deepEqual([decides(of("global"), "shop"), decides(of("global"), "bank")], [false, false]);
    assert.deepEqual([decides(of("namespace"), "shop"), decides(of("namespace"), "bank")], [false, true]);
    assert.deepEqual([decides(of("workload"), "shop"), decides(of("workload"), "bank", ["shop/p"])], [true, false]);
    assert.equal(decides(of("workload"), "shop", ["shop/unknown"]), true, "a name that is not known is skipped");
    assert.equal(decides(of("namespace"), "shop", ["shop/p"]), false, "listed and found anyway: once");
  });

  it("moves a policy whose scope changes, and forgets one that is removed", () => {
    const policies = index(testPolicy("p", [], { scope: "global" }));
    const change = (scope: Authorization["scope"]): void => {
      policies.apply({ upserts: [testPolicy("p", [], { scope })], unusable: [], removes: [] });
    };
    assert.equal(decides(policies, "bank"), false);
    change("namespace");
    assert.deepEqual([decides(policies, "bank"), decides(policies, "shop")], [true, false]);
    change("workload");
    assert.deepEqual([decides(policies, "shop"), decides(policies, "shop", ["shop/p"])], [true, false]);
    change("global");
    assert.equal(decides(policies, "bank"), false);
    policies.apply({ upserts: [], unusable: [], removes: ["shop/p", "shop/never"] });
    assert.deepEqual([policies.size, decides(policies, "bank")], [0, true]);
  });

  it("grows its version with each change and shows what it holds", () => {
    const policies = index(testPolicy("p"));
    const { version } = policies;
    const unusable = { name: "shop/odd", namespace: "shop", scope: "workload" as const };
    policies.apply({ upserts: [], unusable: [unusable], removes: [] });
    assert.ok(policies.version > version);
    assert.equal(policies.hasWorkloadScoped, true);
    assert.deepEqual(policies.all(), { policies: [testPolicy("p")], unusable: [unusable] });
  });
});
