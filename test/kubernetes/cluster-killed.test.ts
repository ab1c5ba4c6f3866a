import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { eventually } from "../netns/harness.ts";
import { clusterProcesses } from "./cgroups.ts";
import { removeAbandoned, startCluster } from "./cluster.ts";
import { leftoversOfCluster } from "./leftovers.ts";
import { CONTROL_CGROUP, nodeLayout } from "./layout.ts";

const UP = join(import.meta.dirname, "up.ts");

/** A process that brings a cluster up and keeps it. */
function startUp(): { child: ChildProcess; said: () => string } {
  const child = spawn(process.execPath, ["--conditions=veil-source", UP], { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout?.setEncoding("utf8").on("data", (text: string) => (said += text));
  return { child, said: () => said };
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = new Promise((resolve) => child.once("close", resolve));
  child.kill("SIGKILL");
  await ended;
}

describe("a test cluster whose process is killed", () => {
  after(removeAbandoned);

  it("is the only one of the machine, dies with its process, and what it leaves is removed by the next", async () => {
    const { child, said } = startUp();
    await eventually("the cluster to be up", () => said().includes("KUBECONFIG=") || undefined, 300_000);
    await assert.rejects(startCluster(), new RegExp(`runs already on this machine, of process ${child.pid}: one at a`));
    assert.ok(clusterProcesses(nodeLayout(1).daemonsCgroup).length > 0);
    await kill(child);
    await eventually("its daemons to end", () => clusterProcesses(CONTROL_CGROUP).length === 0 || undefined);
    assert.notDeepEqual(leftoversOfCluster(), []);
    await removeAbandoned();
    assert.deepEqual(leftoversOfCluster(), []);
  });

  for (const [what, moment] of [
    ["its network is made", "network namespace vt-kube-node1"],
    ["its first daemons run", "process "],
  ] as const) {
    it(`leaves nothing after the next start when it was killed as ${what}`, async () => {
      const { child } = startUp();
      await eventually(what, () => leftoversOfCluster().some((left) => left.startsWith(moment)) || undefined, 120_000);
      await kill(child);
      await removeAbandoned();
      assert.deepEqual(leftoversOfCluster(), []);
    });
  }
});
