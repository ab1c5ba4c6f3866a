import assert from "node:assert/strict";
import { test } from "node:test";
import type { Pod } from "#kube";
import type { Explanation } from "#proxy";
import { answerWhy, formatAnswer } from "./why-answer.ts";

const MESH = { "io.cilium/mtls-enabled": "true" };

function pod(
  name: string,
  options: { redirected?: boolean; labels?: Record<string, string>; hostNetwork?: boolean } = {},
): Pod {
  const { redirected = false, labels = {}, hostNetwork = false } = options;
  const annotations: Record<string, string> = redirected ? { "ambient.istio.io/redirection": "enabled" } : {};
  const spec = { nodeName: "node1", hostNetwork, containers: [] };
  return {
    metadata: { namespace: "shop", name, uid: name, labels, annotations },
    spec,
    status: { podIP: "10.0.0.1", phase: "Running" },
  };
}

function proxySays(options: Partial<Explanation> = {}): Explanation {
  return {
    source: "shop/a",
    destination: "10.0.0.1:80",
    sourceServedHere: true,
    decision: "tunnel",
    encrypted: true,
    reason: "ok",
    because: "both ends are enrolled",
    destinationWorkload: undefined,
    destinationService: undefined,
    acceptedIdentities: [],
    policy: undefined,
    connections: [],
    ...options,
  };
}

const plain = proxySays({
  encrypted: false,
  decision: "plain",
  reason: "destination_not_enrolled",
  because: "the proxy's word",
});
const base = {
  source: pod("a"),
  destination: pod("b"),
  namespace: "veil-system",
  sourceNamespace: {},
  destinationNamespace: {},
  address: "10.0.0.1:80",
  proxy: plain,
};

test("a pair without labels is told which command enrols it", () => {
  const answer = answerWhy(base);
  assert.equal(answer.encrypted, false);
  assert.match(answer.because, /shop\/a has no label/);
  assert.equal(answer.remedy, "kubectl label namespace shop io.cilium/mtls-enabled=true");
  assert.match(formatAnswer(answer), /NOT encrypted/);
});

test("a policy that refuses the connection is named, also where it would be encrypted", () => {
  const policy = { allowed: false, because: "explicitly denied by: shop/p" };
  assert.match(
    formatAnswer(answerWhy({ ...base, proxy: proxySays({ policy }) })),
    /REFUSE it: explicitly denied by: shop\/p/,
  );
  const allowed = { allowed: true, because: "allowed by: shop/p" };
  assert.match(
    formatAnswer(answerWhy({ ...base, proxy: proxySays({ policy: allowed }) })),
    /let it in: allowed by: shop\/p/,
  );
});

test("a label whose value means nothing is named, with the values that do", () => {
  const { because } = answerWhy({ ...base, sourceNamespace: { "io.cilium/mtls-enabled": "yes" } });
  assert.match(
    because,
    /shop\/a has no label .*; label io\.cilium\/mtls-enabled=yes \(it can be true or false\) means nothing/,
  );
});

test("what stands in the way is named: opt-out, host network, an agent that has not finished", () => {
  const labelled = { ...base, sourceNamespace: MESH, destinationNamespace: MESH };
  const source = pod("a", { redirected: true });
  const because = (destination: Pod): string => answerWhy({ ...labelled, source, destination }).because;
  assert.match(because(pod("b", { labels: { "istio.io/dataplane-mode": "none" } })), /shop\/b opts out/);
  assert.match(because(pod("b", { hostNetwork: true })), /shop\/b uses its node's network/);
  assert.match(
    because(pod("b")),
    /shop\/b is enrolled by its namespace's label, but its connections are not redirected yet/,
  );
  assert.equal(because(pod("b", { redirected: true })), "the proxy's word");
});

test("only the proxy's own decision makes the answer encrypted", () => {
  const both = {
    ...base,
    sourceNamespace: MESH,
    destinationNamespace: MESH,
    source: pod("a", { redirected: true }),
    destination: pod("b", { redirected: true }),
  };
  assert.equal(answerWhy({ ...both, proxy: proxySays() }).encrypted, true);
  assert.equal(answerWhy({ ...both, proxy: "no proxy runs on node1" }).encrypted, false);
  assert.equal(answerWhy({ ...both, proxy: "no proxy runs on node1" }).because, "no proxy runs on node1");
});

test("an address without a pod is said to be none", () => {
  const answer = answerWhy({
    ...base,
    source: pod("a", { redirected: true }),
    sourceNamespace: MESH,
    destination: undefined,
    address: "192.0.2.1:80",
  });
  assert.match(answer.because, /192\.0\.2\.1:80 is no pod of this cluster/);
  assert.equal(answer.remedy, undefined);
});
