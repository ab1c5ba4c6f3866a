import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { CLUSTER_RULES, INSIDE_RULES, INSTALLED, PLUGIN_ACCOUNT, PLUGIN_RULES, type AccessRule } from "#install";
import { RawClient } from "../conformance/apiserver-world.ts";
import type { TestCluster } from "./cluster.ts";
import { VEIL_NAMESPACE } from "./veil.ts";

/** An account of Veil's, and what the chart gives it: in the whole cluster, and in Veil's namespace besides. */
const ACCOUNTS: Readonly<Record<string, readonly [everywhere: readonly AccessRule[], inside: readonly AccessRule[]]>> =
  {
    [INSTALLED.controller.account]: [CLUSTER_RULES.controller, INSIDE_RULES.controller],
    [INSTALLED.agent.account]: [CLUSTER_RULES.agent, INSIDE_RULES.agent],
    [INSTALLED.proxy.account]: [[], []],
    [PLUGIN_ACCOUNT]: [PLUGIN_RULES, []],
  };
/** One that nobody has given anything. */
const NOBODY = "default";

/** Asks the API, as each account, for all that it may do, and asserts that it is what the chart lists; what everybody may does not count. */
export async function assertRights(cluster: TestCluster): Promise<void> {
  const twin = await askedAs(cluster, NOBODY);
  for (const [account, [everywhere, inside]] of Object.entries(ACCOUNTS)) {
    const found = await askedAs(cluster, account);
    const more = (namespace: string): string[] =>
      (found[namespace] ?? []).filter((right) => !twin[namespace]?.includes(right));
    assert.deepEqual(more("default"), wordsOf(everywhere), `${account} in the whole cluster`);
    assert.deepEqual(more(VEIL_NAMESPACE), wordsOf([...everywhere, ...inside]), `${account} in ${VEIL_NAMESPACE}`);
  }
}

/** What the API says that the account may do, by namespace. */
async function askedAs(cluster: TestCluster, account: string): Promise<Readonly<Record<string, readonly string[]>>> {
  const token = (await cluster.kubectl("-n", VEIL_NAMESPACE, "create", "token", account)).trim();
  const client = new RawClient(readFileSync(cluster.kubeconfig, "utf8"), { token });
  const rights: Record<string, readonly string[]> = {};
  for (const namespace of ["default", VEIL_NAMESPACE]) {
    const [apiVersion, kind] = ["authorization.k8s.io/v1", "SelfSubjectRulesReview"];
    const { code, body } = await client.call("POST", `/apis/${apiVersion}/selfsubjectrulesreviews`, {
      body: { apiVersion, kind, spec: { namespace } },
    });
    assert.equal(code, 201);
    const { incomplete, resourceRules } = body.status as { incomplete: boolean; resourceRules: AccessRule[] }; // Kubernetes' own kind
    assert.equal(incomplete, false);
    rights[namespace] = wordsOf(resourceRules);
  }
  client.close();
  return rights;
}

/** `verb resource.group/name` of all that the rules allow. */
function wordsOf(rules: readonly AccessRule[]): string[] {
  const words = rules.flatMap(({ verbs, apiGroups, resources, resourceNames = ["*"] }) =>
    verbs.flatMap((verb) =>
      apiGroups.flatMap((group) =>
        resources.flatMap((resource) => resourceNames.map((name) => `${verb} ${resource}.${group}/${name}`)),
      ),
    ),
  );
  return [...new Set(words)].toSorted();
}
