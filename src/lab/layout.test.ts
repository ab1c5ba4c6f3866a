import assert from "node:assert/strict";
import { test } from "node:test";
import { isNetnsOf, labLayout, MAX_NODES, mountMark, nodeLayout, nodeLayouts } from "./layout.ts";

test("everything of a lab carries its name", () => {
  const lab = labLayout("demo");
  assert.equal(lab.folder, "/run/veil-lab/demo");
  assert.equal(lab.switchNetns, "veil-demo-switch");
  assert.deepEqual(
    nodeLayouts(lab, 2).map(({ name, netns, address, podRange }) => [name, netns, address, podRange]),
    [
      ["node1", "veil-demo-node1", "172.20.0.11", "10.244.1.0/24"],
      ["node2", "veil-demo-node2", "172.20.0.12", "10.244.2.0/24"],
    ],
  );
});

test("the last node that is allowed has an address of its own", () => {
  const addresses = new Set(nodeLayouts(labLayout("a"), MAX_NODES).map(({ address }) => address));
  assert.equal(addresses.size, MAX_NODES);
});

for (const name of ["", "-a", "a-", "A", "a_b", "a/b", "..", "a.b", "a".repeat(21), "ä"]) {
  test(`"${name}" is refused as a name`, () => {
    assert.throws(() => labLayout(name), { code: "LAB_NAME" });
  });
}

test("namespaces of a lab are told from those of labs with similar names", () => {
  const lab = labLayout("a");
  for (const netns of ["veil-a-switch", "veil-a-control", "veil-a-node1", "veil-a-node40"]) {
    assert.ok(isNetnsOf(lab, netns), netns);
  }
  for (const netns of [
    "veil-ab-switch",
    "veil-a-b-switch",
    "veil-a-node1-switch",
    "veil-a-node0",
    "veil-a-node",
    "a-switch",
  ]) {
    assert.ok(!isNetnsOf(lab, netns), netns);
  }
});

test("the mark of one lab's mounts is no beginning of another's", () => {
  assert.ok(!mountMark(labLayout("ab"), nodeLayout(labLayout("ab"), 1)).startsWith(mountMark(labLayout("a"))));
});
