import assert from "node:assert/strict";
import { test } from "node:test";
import type { InformerListener, Pod } from "#kube";
import { LivePods } from "./pod-directory.ts";

function pod(name: string, at: { node?: string; account?: string; phase?: string } = {}): Pod {
  return {
    metadata: { name, namespace: "shop" },
    spec: { nodeName: at.node ?? "node1", serviceAccountName: at.account ?? "cart", containers: [] },
    status: { phase: at.phase ?? "Running" },
  };
}

test("a node has the accounts of its live pods, and no others", () => {
  let told: InformerListener<Pod> = {};
  const pods = new LivePods({
    on: (listener) => {
      told = listener;
      return () => undefined;
    },
  });
  assert.equal(pods.hasWorkload("node1", "shop", "cart"), false);
  told.upserted?.(pod("a"), undefined);
  told.upserted?.(pod("b"), undefined);
  assert.equal(pods.hasWorkload("node1", "shop", "cart"), true);
  assert.equal(pods.hasWorkload("node2", "shop", "cart"), false);
  assert.equal(pods.hasWorkload("node1", "other", "cart"), false);
  assert.equal(pods.hasWorkload("node1", "shop", "other"), false);
  told.deleted?.(pod("a"));
  assert.equal(pods.hasWorkload("node1", "shop", "cart"), true, "b is still there");
  told.upserted?.(pod("b", { phase: "Failed" }), pod("b"));
  assert.equal(pods.hasWorkload("node1", "shop", "cart"), false);
  told.upserted?.(pod("c", { node: "" }), undefined);
  assert.equal(pods.hasWorkload("", "shop", "cart"), false, "a pod that is on no node");
  told.upserted?.(pod("c", { node: "node2", account: "" }), pod("c", { node: "" }));
  assert.equal(pods.hasWorkload("node2", "shop", "default"), true);
});
