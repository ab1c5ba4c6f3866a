import { describe, it } from "node:test";
import {
  killFailsClosed,
  killFailsNothing,
  nothingIsClear,
  unenrolmentFailsNothing,
  type EnrolledScene,
} from "../netns/mesh-bodies.ts";
import { clusterMesh } from "./cluster-mesh.ts";
import type { TestCluster } from "./cluster.ts";

/** What is true in a lab, too: see mesh-bodies.ts. In permissive mode, as there. */
export function meshOnNodes(find: () => TestCluster): void {
  describe("the lab's tests", () => {
    let at: EnrolledScene;

    it("once both ends have been enrolled for the bound, no new connection has a byte in clear; without the label the capture finds them", async () => {
      at = await nothingIsClear(clusterMesh(find()));
    });

    for (const [role, node] of [
      ["controller", undefined],
      ["agent", "node1"],
      ["apiserver", undefined],
    ] as const) {
      it(`kill -9 of the ${role}${node === undefined ? "" : ` of ${node}`} fails no connection, old or new`, (t) =>
        killFailsNothing(at, t, { role, node }));
    }

    for (const node of ["node1", "node2"]) {
      it(`kill -9 of the proxy's data path on ${node} breaks its connections, refuses new ones, never in clear, and passes`, (t) =>
        killFailsClosed(at, t, () => at.mesh.kill("data path", node)));
    }

    it("un-enrolling a pair that has been enrolled for longer than the bound breaks no connection, nor does enrolling it again", () =>
      unenrolmentFailsNothing(at));
  });
}
