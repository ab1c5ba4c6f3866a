import assert from "node:assert/strict";
import { test } from "node:test";
import { resources, type ClusterRole, type DaemonSet, type Deployment, type KubeObject, type ResourceRef } from "#kube";
import { VEIL_NAMESPACE, VEIL_ROLES, veilManifests } from "./manifests.ts";

const manifests = veilManifests({
  program: "/x/bin/veil",
  compileCache: "/cache",
});

function find<T extends KubeObject>(ref: ResourceRef<T>, name: string): T {
  const found = manifests.find((each) => each.ref.kind === ref.kind && each.object.metadata?.name === name);
  assert.ok(found, `${ref.kind} ${name}`);
  return found.object as T; // the reference tells the type
}

test("the namespace comes before what lives in it, and nothing else of Veil is outside it", () => {
  assert.equal(manifests[0]?.ref, resources.namespaces);
  for (const { ref, object } of manifests.filter(({ ref }) => ref.namespaced)) {
    assert.equal(object.metadata?.namespace, VEIL_NAMESPACE, `${ref.kind} ${object.metadata?.name}`);
  }
});

test("agent and proxy run on every node in the node's network, the controller in its own", () => {
  for (const role of ["agent", "proxy"] as const) {
    const pod = find(resources.daemonSets, VEIL_ROLES[role].app).spec?.template.spec;
    assert.equal(pod?.hostNetwork, true);
    assert.equal(pod.containers[0]?.command?.[0], "/x/bin/veil");
    assert.equal(pod.containers[0]?.command?.[1], role);
  }
  const controller = find(resources.deployments, "veil-controller").spec?.template.spec;
  assert.equal(controller?.hostNetwork, false);
});

test("the proxy is found where istioctl looks for it: the DaemonSet ztunnel, its pods with the label app=ztunnel", () => {
  const { metadata, spec } = find(resources.daemonSets, "ztunnel");
  assert.deepEqual(spec?.selector.matchLabels, { app: "ztunnel" });
  assert.deepEqual([metadata?.labels, spec.template.metadata?.labels], [{ app: "ztunnel" }, { app: "ztunnel" }]);
});

const ACCOUNTS = new Map<string, string>(Object.values(VEIL_ROLES).map(({ app, account }) => [app, account]));

test("every role has the token that the authority asks for, and an account of its own", () => {
  for (const { object } of manifests.filter(({ ref }) => ["DaemonSet", "Deployment"].includes(ref.kind))) {
    const pod = (object as DaemonSet | Deployment).spec?.template.spec;
    assert.equal(pod?.serviceAccountName, ACCOUNTS.get(object.metadata?.name ?? ""));
    assert.equal(pod?.volumes?.[0]?.projected?.sources?.[0]?.serviceAccountToken?.audience, "istio-ca");
    assert.equal(pod?.containers[0]?.volumeMounts?.[0]?.mountPath, "/var/run/secrets/tokens");
  }
});

test("only the controller may touch secrets, and only in Veil's own namespace", () => {
  for (const { object } of manifests.filter(({ ref }) => ref.kind === "ClusterRole")) {
    const touched = (object as ClusterRole).rules?.flatMap(({ resources }) => resources ?? []);
    assert.ok(!touched?.includes("secrets") && !touched?.includes("*"), object.metadata?.name);
  }
});
