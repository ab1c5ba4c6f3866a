import assert from "node:assert/strict";
import { test } from "node:test";
import type { NetworkPolicy } from "./kinds.ts";
import { checkProbes } from "./probe-policies.ts";
import { judged, namespaceOf, podAt, said } from "./testing.ts";

type Rule = NonNullable<NonNullable<NetworkPolicy["spec"]>["ingress"]>[number];

const SOURCE = { ipBlock: { cidr: "169.254.7.127/32" } };
const EVERY_POD = { namespaceSelector: {} };

/** What is said of a pod with a probe on port 8080 and a policy of these rules for what comes in, where this network plugin is. */
function say(plugin: string, ...ingress: Rule[]): string {
  const pods = judged(
    [
      podAt("shop/web", { ports: { http: 8080 }, probe: "http" }),
      podAt("shop/silent"),
      podAt("kube-system/plugin-1", { labels: { "k8s-app": plugin } }),
    ],
    [namespaceOf("shop"), namespaceOf("kube-system", {})],
  );
  const policy = { metadata: { name: "policy", namespace: "shop" }, spec: { podSelector: {}, ingress } };
  return said(checkProbes([policy], pods)).join("\n");
}

const ROWS: readonly (readonly [what: string, held: Rule[], twin: Rule[]])[] = [
  ["nothing is let in", [], [{}]],
  ["pods alone are let in", [{ from: [EVERY_POD] }], [{ from: [EVERY_POD, SOURCE] }]],
  [
    "another port is let in",
    [{ from: [SOURCE], ports: [{ port: 9090 }] }],
    [{ from: [SOURCE], ports: [{ port: "http" }] }],
  ],
  [
    "its source is taken out again",
    [{ from: [{ ipBlock: { cidr: "0.0.0.0/0", except: ["169.254.0.0/16"] } }] }],
    [{ from: [{ ipBlock: { cidr: "0.0.0.0/0" } }] }],
  ],
];

for (const [what, held, twin] of ROWS) {
  test(`probes are held back by NetworkPolicies where ${what}`, () => {
    assert.match(
      say("cilium", ...held),
      /^problem: NetworkPolicies keep the kubelet's probes from 1 enrolled pod, .*: shop\/web$/,
    );
    assert.equal(say("cilium", ...twin), "");
  });
}

test("network plugins that judge on the node see the node's own address, which they let in", () => {
  assert.equal(say("calico-node"), "");
  assert.match(say("aws-node"), /^problem/);
});
