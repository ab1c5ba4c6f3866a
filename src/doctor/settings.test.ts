import assert from "node:assert/strict";
import { test } from "node:test";
import { readValues, renderInstallation } from "#install";
import type { DaemonSet } from "#kube";
import { judgePods } from "./pods.ts";
import { readSettings } from "./settings.ts";
import { namespaceOf, podAt } from "./testing.ts";

const DEFAULT = {
  trustBundle: "istio-ca-root-cert",
  enrolLabels: ["istio.io/dataplane-mode", "io.cilium/mtls-enabled"],
};

function agents(values: Record<string, unknown> = {}): DaemonSet[] {
  const objects = renderInstallation(readValues(values), "1.0.0") as (DaemonSet & { kind?: string })[]; // by their kind
  return objects.filter(({ kind }) => kind === "DaemonSet");
}

test("what is looked at follows the values of the installation", () => {
  assert.deepEqual(readSettings({ value: agents() }, "veil-system"), DEFAULT);
  const chosen = { trustBundle: "veil-roots", enrolLabels: ["io.cilium/mtls-enabled"] };
  assert.deepEqual(readSettings({ value: agents(chosen) }, "veil-system"), chosen);
  assert.deepEqual(readSettings({ value: agents(chosen) }, "elsewhere"), DEFAULT, "another installation's agents");
  assert.deepEqual(readSettings({ unknown: "no right" }, "veil-system"), DEFAULT);
});

test("a label that does not enrol here asks for nothing", () => {
  const asks = (labels: readonly string[]): boolean | undefined =>
    judgePods([podAt("shop/web")], [namespaceOf("shop")], { enrolLabels: labels })[0]?.eligibility.eligible;
  assert.equal(asks(["io.cilium/mtls-enabled"]), true);
  assert.equal(asks(["istio.io/dataplane-mode"]), false);
});
