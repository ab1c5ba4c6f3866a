import assert from "node:assert/strict";
import { test } from "node:test";
import { aliases, kubernetesNames, searchDomains, wildcards } from "./names.ts";

const scope = { namespace: "ns1", clusterDomain: "cluster.local" };

test("short forms stand for the full names that Kubernetes gives", () => {
  const cases: Record<string, readonly string[]> = {
    name: ["name.ns1.svc.cluster.local"],
    "name.ns2": ["name.ns2.svc.cluster.local", "name.ns2.ns1.svc.cluster.local"],
    "name.ns2.svc": ["name.ns2.svc.cluster.local", "name.ns2.svc.svc.cluster.local"],
    "name.ns2.not-svc": ["name.ns2.not-svc.svc.cluster.local"],
    "pod.sub-domain.ns.svc": ["pod.sub-domain.ns.svc.cluster.local"],
    "pod.sub-domain.ns.not-svc": [],
    "name.ns2.svc.cluster": [],
    "name.ns2.svc.cluster.local": [],
    "www.google.com": ["www.google.com.svc.cluster.local"],
  };
  for (const [name, expected] of Object.entries(cases)) assert.deepEqual(kubernetesNames(name, scope), expected, name);
});

test("a name is covered by itself, then by wildcards from narrow to wide", () => {
  assert.deepEqual(wildcards("svc1"), ["svc1"]);
  assert.deepEqual(wildcards("svc1.ns1.svc.cluster.local"), [
    "svc1.ns1.svc.cluster.local",
    "*.ns1.svc.cluster.local",
    "*.svc.cluster.local",
    "*.cluster.local",
    "*.local",
  ]);
});

test("the search list is that of the asking pod's namespace", () => {
  assert.deepEqual(searchDomains({ ...scope, namespace: "shop" }), [
    "shop.svc.cluster.local",
    "svc.cluster.local",
    "cluster.local",
  ]);
});

test("a search domain is stripped only where it ends the name at a dot, and something is left", () => {
  const stripped = (name: string): readonly string[] =>
    aliases(name, scope).flatMap((alias) =>
      alias.strippedTo === undefined ? [] : [`${alias.name}/${alias.strippedTo}`],
    );
  assert.ok(stripped("name.ns.svc.cluster.local").includes("name.ns/2"));
  assert.deepEqual(stripped("name.ns.a.different.domain"), []);
  assert.deepEqual(stripped("cluster.com"), []);
  assert.deepEqual(stripped("xcluster.local"), []);
  assert.deepEqual(stripped("cluster.local"), []);
});

test("readings come from the literal to the stripped, each once", () => {
  const names = aliases("www.google.com.ns1.svc.cluster.local", scope).map(({ name }) => name);
  assert.equal(names[0], "www.google.com.ns1.svc.cluster.local");
  assert.ok(names.indexOf("www.google.com") > 0);
  assert.equal(new Set(names).size, names.length);
});
