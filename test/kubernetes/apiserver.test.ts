import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, it } from "node:test";
import { run } from "../netns/harness.ts";
import { startCluster } from "./cluster.ts";

const SUITE = ["access", "kubectl", "objects", "watch"];

/** Those that kill their server, or stand in for a kubelet, need one of their own: see docs/apiserver.md. */
describe("the suite of the embedded API server", () => {
  it("passes on the API server of Kubernetes, the same files", async () => {
    await using cluster = await startCluster({ nodes: 0 });
    const files = SUITE.map((name) => join(import.meta.dirname, `../conformance/apiserver-${name}.test.ts`));
    const node = [process.execPath, "--conditions=veil-source", "--disable-warning=DEP0111", "--test"];
    const env = { VEIL_TEST_KUBECONFIG: cluster.kubeconfig, VEIL_TEST_PKI: cluster.pki, NODE_TEST_CONTEXT: "" };
    const { code, stdout } = await run([...node, "--test-isolation=none", ...files], { env });
    assert.equal(code, 0, stdout);
    assert.match(stdout, /^ℹ skipped 0$/m);
  });
});
