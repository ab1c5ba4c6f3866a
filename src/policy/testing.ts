import { parseIp } from "#base/ip";
import { EMPTY_MATCH, type Authorization, type AuthorizationMatch } from "#model/authorization";
import { parseSpiffeId } from "#model/spiffe-id";
import type { PolicyQuestion } from "./policy-index.ts";

/** For tests: an ALLOW of namespace `shop` with one rule of one clause of these matches; no matches: no rule. */
export function testPolicy(
  name: string,
  matches: readonly Partial<AuthorizationMatch>[] = [],
  more: Partial<Authorization> = {},
): Authorization {
  const clause = matches.map((match) => ({ ...EMPTY_MATCH, ...match }));
  const rules = matches.length === 0 ? [] : [[clause]];
  return { name, namespace: "shop", scope: "namespace", action: "allow", rules, dryRun: false, ...more };
}

/** For tests: an exact text. */
export function exactly(value: string): { kind: "exact"; value: string } {
  return { kind: "exact", value };
}

/** For tests: `shop/client` from 10.1.0.1 calls port 8080 of a workload of `shop` at 10.1.0.2. */
export function testQuestion(more: Partial<PolicyQuestion> = {}): PolicyQuestion {
  return {
    identity: parseSpiffeId("spiffe://cluster.local/ns/shop/sa/client"),
    sourceIp: parseIp("10.1.0.1"),
    destinationIp: parseIp("10.1.0.2"),
    destinationPort: 8080,
    namespace: "shop",
    policyNames: [],
    ...more,
  };
}
